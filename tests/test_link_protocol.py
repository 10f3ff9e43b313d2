"""Frames of the serial link: layout, damage, segments."""

import random
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celosia_hw.link_protocol import (
    COBS_BLOCK,
    Frame,
    Kind,
    LinkConfig,
    Welcome,
    bit_rate,
    cobs_decode,
    cobs_encode,
    decode_frame,
    encode_frame,
    join_segments,
    split_segments,
)

FRAME = Frame(Kind.DATA, 7, 1, 2, 3, True, False, b"\x81abcd")


def test_known_frame():
    line = encode_frame(FRAME)
    # kind 3 with NAK, session, seq, ack, credit, length; segment; CRC-32 of the 12 bytes.
    assert line.hex(" ") == "07 13 07 01 02 03 05 0a 81 61 62 63 64 33 0c ab 74 00"
    assert decode_frame(line[:-1]) == FRAME


@given(st.lists(st.sampled_from([b"\0", b"\1", b"ab", b"\xff" * 253, b"\xfe" * 254])).map(b"".join))
@settings(max_examples=300, deadline=None)
def test_cobs(data):
    line = cobs_encode(data)
    assert 0 not in line
    assert cobs_decode(line) == data
    assert len(line) <= len(data) + len(data) // COBS_BLOCK + 1


@pytest.mark.parametrize("line", [b"", b"\x03a", b"\xff" + b"a" * 253, b"\x01\x05abc", b"a\0b"])
def test_what_cobs_never_makes(line):
    assert cobs_decode(line) is None


@given(
    st.builds(
        Frame,
        st.sampled_from(Kind),
        *[st.integers(0, 255)] * 4,
        *[st.booleans()] * 2,
        st.binary(max_size=600),
    )
)
@settings(deadline=None)
def test_frames(frame):
    line = encode_frame(frame)
    assert line.count(0) == 1
    assert decode_frame(line[:-1]) == frame


def test_damage_does_not_pass():
    dice = random.Random(1)
    line = encode_frame(Frame(Kind.DATA, 9, 1, 2, 3, payload=dice.randbytes(100)))[:-1]
    for _ in range(3000):
        damaged = bytearray(line)
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(damaged))
            change = dice.randrange(3)
            if change == 0:
                damaged[place] ^= 1 << dice.randrange(8)
            elif change == 1:
                del damaged[place]
            else:
                damaged.insert(place, dice.randrange(256))
        if damaged != line:
            assert decode_frame(bytes(damaged)) is None


def test_short_and_unknown_frames():
    assert decode_frame(cobs_encode(bytes(10))) is None
    body = cobs_decode(encode_frame(FRAME)[:-1])
    assert body is not None
    unknown = b"\x1f" + body[1:-4]
    assert decode_frame(cobs_encode(unknown + zlib.crc32(unknown).to_bytes(4, "little"))) is None


@given(
    st.lists(st.binary(min_size=1, max_size=700), max_size=6),
    st.sampled_from([4, 8, 64]),
    st.sampled_from([128, 256, 1024]),
)
@settings(deadline=None)
def test_segments(packets, link_bytes, frame_bytes):
    payloads = list(split_segments(packets, link_bytes, frame_bytes))
    assert all(0 < len(payload) <= frame_bytes for payload, _ in payloads)
    assert sum(ends for _, ends in payloads) == len(packets)
    joined, present = [], b""
    for payload, _ in payloads:
        for words, is_end in join_segments(payload, link_bytes):
            present += words
            if is_end:
                joined.append(present)
                present = b""
    assert present == b""
    assert joined == [packet + bytes(-len(packet) % link_bytes) for packet in packets]
    # All but the last frame are full: no room for another segment of a word.
    assert all(len(payload) + 1 + link_bytes > frame_bytes for payload, _ in payloads[:-1])


@pytest.mark.parametrize("payload", [b"\0", b"\x01abc", b"\x01abcd\x80", b"\x82abcd"])
def test_segments_that_cannot_be(payload):
    with pytest.raises(ValueError, match="a segment at byte"):
        list(join_segments(payload, 4))


def test_welcome():
    welcome = Welcome(b"abcd", 1, 8, 1024, 16)
    assert Welcome.decode(welcome.encode()) == welcome
    assert Welcome.decode(welcome.encode() + b"more of a later version") == welcome
    assert Welcome.decode(welcome.encode()[:-1]) is None


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"frames": 3}, ValueError, "frames must be a power of two, not 3"),
        ({"frames": 128}, ValueError, "frames must be between 2 and 64, not 128"),
        ({"frame_bytes": 100}, ValueError, "power of two, not 100"),
        ({"frame_bytes": True}, TypeError, "frame_bytes must be an int, not True"),
        ({"retry_characters": 1}, ValueError, "between 64"),
    ],
)
def test_bad_sizes(values, error, message):
    with pytest.raises(error, match=message):
        LinkConfig(**values)


def test_bit_rate():
    assert bit_rate(100_000_000, 3_000_000) * 3 == 100
    with pytest.raises(ValueError, match="3000000 baud need a clock of 6000000 Hz"):
        bit_rate(5_000_000, 3_000_000)
