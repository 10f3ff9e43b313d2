"""The UART, bit by bit, in Amaranth's simulator."""

from fractions import Fraction
from typing import Any

import pytest
from amaranth.hdl import Module

from celosia_hw.link_protocol import BREAK_BITS
from celosia_hw.uart import UartReceiver, UartTransmitter
from simulate import put, simulate

RATES = [2, 3, 4, Fraction(80, 3), Fraction(100, 3), Fraction(25, 3), Fraction(9, 4)]
DATA = bytes([0x00, 0xFF, 0x55, 0xAA, 0x01, 0x80, 0x37])


def levels(data, clocks_per_bit, stop=1):
    """The line, clock by clock, with edges at rounded multiples of a bit."""
    edges = [int(k * Fraction(clocks_per_bit) + Fraction(1, 2)) for k in range(11)]
    line = []
    for byte in data:
        bits = [0, *((byte >> k) & 1 for k in range(8)), stop]
        for k, bit in enumerate(bits):
            line += [bit] * (edges[k + 1] - edges[k])
    return line


@pytest.mark.parametrize("rate", RATES)
def test_transmitter(rate):
    """The line is right in every clock, characters follow without a gap, latency 2 clocks."""
    dut: Any = UartTransmitter(rate)
    expected = [1, 1, *levels(DATA, rate), 1, 1]

    async def feed(ctx):
        for byte in DATA:
            await put(ctx, dut.i, byte)

    async def watch(ctx):
        assert ctx.get(dut.idle)
        line = []
        for _ in expected:
            _, _, level = await ctx.tick().sample(dut.tx)
            line.append(level)
        # The byte is taken at the end of the first clock, the start bit begins 2 clocks later.
        assert line[1:] == expected[:-1]
        await ctx.tick().repeat(3)
        assert ctx.get(dut.idle)

    simulate(dut, watch, feed)


def receive(dut, line):
    """What a receiver makes of a line: bytes, framing errors, clocks of both, clocks of breaks."""
    found: dict[str, list] = {"bytes": [], "errors": [], "at": [], "breaks": []}

    async def drive(ctx):
        for clock, level in enumerate(line):
            ctx.set(dut.rx, level)
            sample = ctx.tick().sample(dut.valid, dut.data, dut.framing_error, dut.line_break)
            _, _, valid, data, error, is_break = await sample
            assert not (valid and error)
            if valid:
                found["bytes"].append(data)
                found["at"].append(clock)
            if error:
                found["errors"].append(clock)
            if is_break:
                found["breaks"].append(clock)

    simulate(dut, drive, clocks=len(line) + 10)
    return found


@pytest.mark.parametrize("rate", RATES)
def test_receiver(rate):
    """Characters without a gap; latency of 3 clocks after the middle of the stop bit."""
    found = receive(UartReceiver(rate), [1] * 5 + levels(DATA, rate) + [1] * 50)
    assert bytes(found["bytes"]) == DATA
    assert not found["errors"]
    assert not found["breaks"]
    middle = int(Fraction(19, 2) * Fraction(rate) + Fraction(1, 2))
    assert found["at"][0] == 5 + middle + 3


@pytest.mark.parametrize("error", [Fraction(97, 100), Fraction(103, 100)])
def test_receiver_at_a_rate_that_is_off(error):
    rate = Fraction(100, 3)
    found = receive(UartReceiver(rate), [1] * 9 + levels(DATA, rate * error) + [1] * 400)
    assert bytes(found["bytes"]) == DATA


def test_spikes_are_no_start_bits():
    found = receive(UartReceiver(8), [1] * 9 + [0] * 3 + [1] * 90 + levels(DATA, 8) + [1] * 90)
    assert bytes(found["bytes"]) == DATA


def test_a_byte_without_a_stop_bit_is_dropped():
    line = [1] * 9 + levels(b"\x55", 8, stop=0) + [1] * 20 + levels(DATA, 8) + [1] * 90
    found = receive(UartReceiver(8), line)
    assert len(found["errors"]) == 1
    assert bytes(found["bytes"]) == DATA
    assert not found["breaks"]


@pytest.mark.parametrize("rate", [4, Fraction(100, 3)])
def test_break(rate):
    bits = int(BREAK_BITS * rate + Fraction(1, 2))
    found = receive(UartReceiver(rate), [1] * 9 + [0] * (bits - 1) + [1] * 400)
    assert not found["breaks"]
    line = [1] * 9 + [0] * (bits + 5) + [1] * 400 + levels(DATA, rate) + [1] * 400
    found = receive(UartReceiver(rate), line)
    assert len(found["breaks"]) == 6
    assert bytes(found["bytes"]) == DATA


@pytest.mark.filterwarnings("ignore:.*created but never used")
@pytest.mark.parametrize("component", [UartReceiver, UartTransmitter])
def test_too_fast(component):
    with pytest.raises(ValueError, match="clocks_per_bit must be between 2 and 65536, not 1"):
        component(1)


@pytest.mark.parametrize("rate", [2, Fraction(25, 3)])
def test_both_ends(rate):
    """A transmitter and a receiver, joined."""
    m: Any = Module()
    m.submodules.sender = sender = UartTransmitter(rate)
    m.submodules.receiver = receiver = UartReceiver(rate)
    m.d.comb += receiver.rx.eq(sender.tx)
    sent: Any = sender

    async def feed(ctx):
        for byte in range(0, 256, 5):
            await put(ctx, sent.i, byte)

    async def watch(ctx):
        received = []
        while len(received) < 52:
            _, _, valid, data = await ctx.tick().sample(receiver.valid, receiver.data)
            if valid:
                received.append(data)
        assert received == list(range(0, 256, 5))

    simulate(m, watch, feed, clocks=30_000)
