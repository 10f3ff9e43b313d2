"""The parts of the serial link's gateware by themselves: latency, throughput, back-pressure."""

import random
from typing import Any

import pytest

from celosia_hw.cobs import CobsDecoder, CobsEncoder
from celosia_hw.link_frames import FrameReceiver, FrameSender
from celosia_hw.link_memory import CommandFrames, ReplyFrames
from celosia_hw.link_protocol import (
    Frame,
    Kind,
    LinkConfig,
    cobs_decode,
    cobs_encode,
    decode_frame,
    encode_frame,
    join_segments,
    split_segments,
)
from simulate import put, simulate

LINK = LinkConfig(frames=4, frame_bytes=64)
LINK_BYTES = 4


def random_frames(dice, number):
    lengths = [1, 2, 253, 254, 255, 256, 508, 509, 700]
    kinds = [lambda n: bytes(n), lambda n: b"\x07" * n, dice.randbytes]
    return [dice.choice(kinds)(dice.choice(lengths)) for _ in range(number)]


async def get(ctx, stream, number, dice=None):
    """Some values of a stream, with random pauses, and the clocks they came at."""
    values, at, clock = [], [], 0
    while len(values) < number:
        ready = dice is None or dice.random() < 0.5
        ctx.set(stream.ready, ready)
        _, _, valid, value = await ctx.tick().sample(stream.valid, stream.payload)
        if ready and valid:
            values.append(value)
            at.append(clock)
        clock += 1
    ctx.set(stream.ready, 0)
    return values, at


@pytest.mark.parametrize("seed", range(3))
def test_cobs_encoder(seed):
    """Against Python's, with random stalls at both ends."""
    dice = random.Random(seed)
    frames = random_frames(dice, 8)
    dut: Any = CobsEncoder()
    total = sum(len(cobs_encode(frame)) for frame in frames)
    found = []

    async def feed(ctx):
        for frame in frames:
            for place, byte in enumerate(frame):
                await put(ctx, dut.i, {"data": byte, "last": place == len(frame) - 1})
                while dice.random() < 0.3:
                    await ctx.tick()

    async def watch(ctx):
        while found.count(0) < len(frames) + 1:
            values, _ = await get(ctx, dut.o, 1, random.Random(seed + len(found)))
            found.extend(values)
            # A frame that comes after a pause begins with a 0, others need none.
            while len(found) > 1 and found[-1] == 0 and found[-2] == 0:
                found.pop()
            if found.count(0) == len(frames) + 1:
                break
        await ctx.tick().repeat(4)
        assert ctx.get(dut.idle)

    simulate(dut, watch, feed, clocks=20 * total + 1000)
    lines = bytes(found).split(b"\0")
    assert [cobs_decode(line) for line in lines if line] == frames


def test_cobs_encoder_throughput():
    """In: a byte in 2 clocks, 4 at the end of a frame; out: a byte in 2 clocks."""
    frames = [bytes([1 + n % 200 for n in range(200)])] * 3
    dut: Any = CobsEncoder()
    taken = []

    async def feed(ctx):
        for frame in frames:
            for place, byte in enumerate(frame):
                await put(ctx, dut.i, {"data": byte, "last": place == len(frame) - 1})
                taken.append(byte)

    async def watch(ctx):
        line = len(cobs_encode(frames[0])) + 1
        values, at = await get(ctx, dut.o, 1 + 3 * line)
        assert bytes(values) == b"\0" + b"".join(cobs_encode(frame) + b"\0" for frame in frames)
        assert at[line] - at[2] == 2 * (line - 2)
        # The last frame leaves when all of it is known.
        assert at[-1] <= 3 * (2 * 200 + 4) + 2 * line + 5

    simulate(dut, watch, feed)


@pytest.mark.parametrize("gap", [0, 3])
def test_cobs_decoder(gap):
    dice = random.Random(1)
    frames = random_frames(dice, 12)
    line = b"\0\0" + b"\0".join(map(cobs_encode, frames)) + b"\0\0"
    dut: Any = CobsDecoder()
    found, ends = [bytearray()], []

    async def drive(ctx):
        for byte in line + b"\0":
            ctx.set(dut.i_valid, 1)
            ctx.set(dut.i_data, byte)
            for _ in range(1 + gap):
                sample = ctx.tick().sample(dut.valid, dut.data, dut.end, dut.whole)
                _, _, valid, data, end, whole = await sample
                assert not (valid and end)
                if valid:
                    found[-1].append(data)
                if end:
                    ends.append(whole)
                    found.append(bytearray())
                ctx.set(dut.i_valid, 0)

    simulate(dut, drive, clocks=5 * len(line) + 100)
    assert [bytes(frame) for frame in found[:-1]] == frames
    assert ends == [1] * len(frames)
    assert not found[-1]


def test_frame_receiver():
    """Good, damaged, short and long frames; latency of 6 clocks."""
    payload = bytes(range(64))
    good = encode_frame(Frame(Kind.DATA, 7, 1, 2, 3, True, False, payload))
    damaged = bytearray(good)
    damaged[20] ^= 1
    longer = encode_frame(Frame(Kind.DATA, 7, 1, 2, 3, payload=payload + b"x"))
    lines = [
        (b"\0" + good, "good"),
        (bytes(damaged), "bad"),
        (longer, "bad"),
        (good[:30] + b"\0", "bad"),
        (b"\x02\x01\0", "bad"),
        (encode_frame(Frame(Kind.HELLO, 9, payload=b"abcd")), "good"),
        (good, "good"),
    ]
    dut: Any = FrameReceiver(LINK)
    written: dict[int, int] = {}

    async def drive(ctx):
        async def clock():
            sample = ctx.tick().sample(dut.write, dut.position, dut.data, dut.good, dut.bad)
            _, _, write, position, data, is_good, is_bad = await sample
            if write:
                written[position] = data
            return "good" * is_good + "bad" * is_bad

        for line, expected in lines:
            for place, byte in enumerate(line):
                ctx.set(dut.i_valid, 1)
                ctx.set(dut.i_data, byte)
                results = []
                for _ in range(8):
                    results.append(await clock())
                    ctx.set(dut.i_valid, 0)
                is_end = place == len(line) - 1
                # The result is there 6 clocks after the byte, for one clock.
                assert results == [expected if is_end and n == 6 else "" for n in range(8)]
            if expected == "good" and len(line) > 60:
                header = ctx.get(dut.header)
                assert (header.kind, header.nak, header.session, header.length) == (3, 1, 7, 64)
                assert bytes(written[n] for n in range(64)) == payload
            elif expected == "good":
                assert ctx.get(dut.token).to_bytes(4, "little") == b"abcd"
            written.clear()

    simulate(dut, drive, clocks=8 * sum(len(line) for line, _ in lines) + 100)


@pytest.mark.parametrize("stalls", [False, True])
def test_frame_sender(stalls):
    """A frame as Python makes it, of at most 3 clocks a byte."""
    dut: Any = FrameSender(LINK, LINK_BYTES)
    payload = random.Random(0).randbytes(64)
    frame = Frame(Kind.DATA, 7, 1, 2, 3, False, True, payload)
    line = b"\0" + encode_frame(frame)
    done = []

    async def feed(ctx):
        values = {"kind": 3, "poll": 1, "session": 7, "seq": 1, "ack": 2, "credit": 3}
        await put(ctx, dut.header, {**values, "length": 64})

    async def memory(ctx):
        while True:
            _, _, position = await ctx.tick().sample(dut.position)
            ctx.set(dut.data, payload[position])

    async def watch(ctx):
        dice = random.Random(1) if stalls else None
        values, at = await get(ctx, dut.o, len(line), dice)
        assert bytes(values) == line
        assert decode_frame(line[1:-1]) == frame
        if not stalls:
            assert at[-1] <= 3 * (7 + 64 + 4) + 2 * len(line) + 20
        await ctx.tick().repeat(4)
        assert ctx.get(dut.idle)
        done.append(True)

    simulate(dut, watch, feed, memory)


def test_command_frames():
    """Words come out in order; latency, throughput, room."""
    dut: Any = CommandFrames(LINK, LINK_BYTES)
    dice = random.Random(2)
    packets = [dice.randbytes(4 * n) for n in (5, 1, 13)]
    payloads = [payload for payload, _ in split_segments(packets, LINK_BYTES, 64)]
    words = [packet[i : i + 4] for packet in packets for i in range(0, len(packet), 4)]
    ends = [i + 4 == len(packet) for packet in packets for i in range(0, len(packet), 4)]
    clock, committed = [0], []

    async def count(ctx):
        while True:
            await ctx.tick()
            clock[0] += 1

    async def drive(ctx):
        for payload in payloads:
            for position, byte in enumerate(payload):
                ctx.set(dut.write, 1)
                ctx.set(dut.position, position)
                ctx.set(dut.data, byte)
                await ctx.tick()
            ctx.set(dut.write, 0)
            ctx.set(dut.length, len(payload))
            ctx.set(dut.commit, 1)
            await ctx.tick()
            ctx.set(dut.commit, 0)
            committed.append(clock[0])

    async def watch(ctx):
        while not ctx.get(dut.words.valid):
            await ctx.tick()
        assert clock[0] - committed[0] == 6 + 3 * LINK_BYTES
        values, at = await get(ctx, dut.words, len(words))
        assert [value.data.to_bytes(4, "little") for value in values] == words
        assert [value.last for value in values] == ends
        assert at[1] - at[0] == 1 + 3 * LINK_BYTES
        assert at[5] - at[4] == 1 + 3 * LINK_BYTES + 3
        await ctx.tick().repeat(8)
        assert ctx.get(dut.received) == ctx.get(dut.freed) == len(payloads)

    simulate(dut, watch, drive, count)


def test_command_frames_without_room():
    dut: Any = CommandFrames(LINK, LINK_BYTES)

    async def drive(ctx):
        ctx.set(dut.length, 5)
        for number in range(LINK.frames):
            assert ctx.get(dut.has_room)
            for position, byte in enumerate([0x81, number, 0, 0, 0]):
                ctx.set(dut.write, 1)
                ctx.set(dut.position, position)
                ctx.set(dut.data, byte)
                await ctx.tick()
            ctx.set(dut.write, 0)
            ctx.set(dut.commit, 1)
            await ctx.tick()
            ctx.set(dut.commit, 0)
            await ctx.tick()
        assert not ctx.get(dut.has_room)
        # What is written now must not go over a frame that is waiting.
        ctx.set(dut.write, 1)
        ctx.set(dut.position, 1)
        ctx.set(dut.data, 99)
        await ctx.tick()
        ctx.set(dut.write, 0)
        values, _ = await get(ctx, dut.words, LINK.frames)
        assert [value.data for value in values] == list(range(LINK.frames))
        await ctx.tick().repeat(8)
        assert ctx.get(dut.has_room)

    simulate(dut, drive)


@pytest.mark.parametrize("words", [1, 5, 16, 40])
def test_reply_frames(words):
    """Payloads as Python makes them, a word in 3 + `link_bytes` clocks."""
    dut: Any = ReplyFrames(LINK, LINK_BYTES)
    data = [random.Random(words).randbytes(4) for _ in range(words)]
    taken = []

    async def feed(ctx):
        for number, word in enumerate(data):
            value = {"data": int.from_bytes(word, "little"), "last": number == words - 1}
            await put(ctx, dut.words, value)
            taken.append(number)
            if number == words - 1:
                ctx.set(dut.flush, 1)

    async def watch(ctx):
        packets = b""
        expected = [payload for payload, _ in split_segments([b"".join(data)], LINK_BYTES, 64)]
        limit = (3 + LINK_BYTES) * words + 6 * len(expected) + 5
        for _ in range(limit):
            await ctx.tick()
        assert ctx.get(dut.closed) == len(expected)
        ends = []
        for number, payload in enumerate(expected):
            ctx.set(dut.frame, number)
            await ctx.tick()
            assert ctx.get(dut.length) == len(payload)
            found = bytearray()
            for position in range(len(payload)):
                ctx.set(dut.position, position)
                await ctx.tick()
                found.append(ctx.get(dut.data))
            assert bytes(found) == payload
            for part, is_end in join_segments(payload, LINK_BYTES):
                packets += part
                ends.append(is_end)
        assert packets == b"".join(data)
        assert ends == [False] * (len(ends) - 1) + [True]
        assert ctx.get(dut.is_empty)

    simulate(dut, watch, feed)


def test_reply_frames_wait_for_room():
    dut: Any = ReplyFrames(LINK, LINK_BYTES)
    taken = []

    async def feed(ctx):
        for number in range(200):
            await put(ctx, dut.words, {"data": number, "last": 0})
            taken.append(number)

    async def watch(ctx):
        # 15 words and a segment byte in each of 4 frames.
        await ctx.tick().repeat(2000)
        assert len(taken) == 4 * 15
        assert ctx.get(dut.closed) == 4
        ctx.set(dut.oldest, 1)
        await ctx.tick().repeat(1000)
        assert len(taken) == 5 * 15

    simulate(dut, watch, feed)
