import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celosia_hw.config import PRESETS, AcceleratorConfig, ConfigError, preset
from celosia_hw.protocol import (
    ATTEND_FIELDS,
    COMMAND_BYTES,
    COUNTERS_FIELDS,
    IDENTITY_FIELDS,
    LOAD_FIELDS,
    REPLY_BYTES,
    REPLY_FIELDS,
    Opcode,
    ProtocolError,
    decode_header,
    encode_header,
    identity_payload,
    key_tile_words,
    parse_identity,
    parse_statistics,
    query_tile_words,
    result_tile_words,
)

LAYOUTS = [
    (COUNTERS_FIELDS, COMMAND_BYTES),
    (LOAD_FIELDS, COMMAND_BYTES),
    (ATTEND_FIELDS, COMMAND_BYTES),
    (REPLY_FIELDS, REPLY_BYTES),
]


def _range(name, bits):
    if name in ("low", "high"):
        return -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return 0, (1 << bits) - 1


@pytest.mark.parametrize(("fields", "size"), LAYOUTS)
def test_layouts_fill_their_headers_in_whole_bytes(fields, size):
    assert sum(fields.values()) <= 8 * size
    if "low" in fields or fields is REPLY_FIELDS:
        assert sum(fields.values()) == 8 * size


@pytest.mark.parametrize(("fields", "size"), LAYOUTS)
@given(data=st.data())
def test_headers_round_trip(fields, size, data):
    values = {n: data.draw(st.integers(*_range(n, bits)), label=n) for n, bits in fields.items()}
    packed = encode_header(fields, size, **values)
    assert len(packed) == size
    assert decode_header(fields, packed) == values


def test_attend_bytes():
    header = encode_header(
        ATTEND_FIELDS,
        COMMAND_BYTES,
        opcode=Opcode.ATTEND,
        tag=0xAB,
        slot=0x1234,
        tiles=0x0102,
        last_dim=63,
        last_value_dim=31,
        score_shift=0b100001,
        result_fraction=0b1000,
        low_step=1,
        high_step=0,
        low=-2,
        high=0x1122,
        limit=0xFFFE,
    )
    assert header == bytes.fromhex("04ab 3412 0201 3f1f 2106 feff 2211 feff")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tag", 256),
        ("tag", -1),
        ("slot", 1 << 16),
        ("score_shift", 64),
        ("result_fraction", 16),
        ("low_step", 2),
        ("low", -32769),
        ("high", 32768),
        ("limit", -1),
    ],
)
def test_values_must_fit_their_fields(name, value):
    with pytest.raises(ProtocolError, match=f"{name} {value} does not fit"):
        encode_header(ATTEND_FIELDS, COMMAND_BYTES, **{name: value})


def test_unknown_fields_are_refused():
    with pytest.raises(ProtocolError, match="no such header field: slots"):
        encode_header(LOAD_FIELDS, COMMAND_BYTES, slots=1)


@pytest.mark.parametrize("name", PRESETS)
def test_identity_round_trip(name):
    payload = identity_payload(preset(name), (1, 20, 300))
    assert parse_identity(payload + bytes(12)) == (preset(name), (1, 20, 300))


def test_identity_covers_every_parameter():
    parameters = set(IDENTITY_FIELDS) - {"protocol_version"}
    assert parameters == set(AcceleratorConfig().to_dict())


def test_identity_of_another_protocol():
    payload = bytearray(identity_payload(preset("tiny"), (0, 1, 0)))
    struct.pack_into("<I", payload, 0, 1)
    with pytest.raises(ProtocolError, match="the device speaks protocol 1, this driver 2"):
        parse_identity(bytes(payload))


def test_identity_too_short():
    with pytest.raises(ProtocolError, match="identity of 67 bytes, expected 68"):
        parse_identity(identity_payload(preset("tiny"), (0, 1, 0))[:-1])


def test_identity_of_an_impossible_configuration():
    payload = bytearray(identity_payload(preset("tiny"), (0, 1, 0)))
    struct.pack_into("<I", payload, 4, 1000)
    with pytest.raises((ConfigError, ProtocolError), match="key_rows must be between"):
        parse_identity(bytes(payload))


def test_statistics():
    payload = struct.pack("<4Q", 1, 1 << 40, 3, (1 << 64) - 1)
    assert parse_statistics(payload + bytes(16)) == {
        "busy": 1,
        "stalled_input": 1 << 40,
        "stalled_output": 3,
        "array_steps": (1 << 64) - 1,
    }
    with pytest.raises(ProtocolError, match="statistics of 31 bytes"):
        parse_statistics(payload[:-1])


def test_tile_sizes_of_tiny():
    # 4 rows, 3 lanes, 4-byte words: 8 bytes of factors, 4 bytes a row; 6 bytes, 3 bytes a row.
    config = preset("tiny")
    assert key_tile_words(config, 5, 7) == 2 * 2 + 5 + 7
    assert query_tile_words(config, 5) == 2 + 5
    assert result_tile_words(config, 7) == 7 * 2


def test_tile_sizes_pad_each_row():
    config = AcceleratorConfig(key_rows=16, query_lanes=16, link_bytes=64)
    assert key_tile_words(config, 64, 64) == 2 + 128
    assert query_tile_words(config, 64) == 1 + 64
    assert result_tile_words(config, 64) == 64
