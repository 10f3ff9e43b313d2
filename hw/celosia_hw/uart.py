"""An asynchronous serial line: 8 data bits, no parity, 1 stop bit."""

from __future__ import annotations

from fractions import Fraction

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from .link_protocol import BREAK_BITS, CHARACTER_BITS

__all__ = ["UartReceiver", "UartTransmitter"]


def _check(clocks_per_bit: int | Fraction) -> Fraction:
    clocks = Fraction(clocks_per_bit).limit_denominator(1 << 16)
    if not 2 <= clocks <= 1 << 16:
        raise ValueError(f"clocks_per_bit must be between 2 and 65536, not {clocks_per_bit}")
    return clocks


def _rounded(value: Fraction) -> int:
    return int(value + Fraction(1, 2))


class UartTransmitter(wiring.Component):
    """Sends bytes.

    Where a bit is no whole number of clocks, bits differ by one clock and a character is right to
    half a clock. Latency: the start bit begins 2 clocks after a byte is taken, if the line is idle.
    Throughput: characters follow each other without a gap. Back-pressure: `i` is ready while the
    one register before the line is free.

    Parameters
    ----------
    clocks_per_bit : int or Fraction
        At least 2.

    Members
    -------
    i : In
        Stream of bytes.
    tx : Out(1)
        The line, a register.
    idle : Out(1)
        Nothing is being sent.
    """

    def __init__(self, clocks_per_bit: int | Fraction) -> None:
        self._clocks = _check(clocks_per_bit)
        super().__init__(
            {"i": In(stream.Signature(8)), "tx": Out(1, init=1), "idle": Out(1, init=1)}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        edges = [_rounded(k * self._clocks) for k in range(CHARACTER_BITS + 1)]
        least = int(self._clocks)
        # Whether a bit takes a clock more than the shortest.
        longer = Const(
            sum((edges[k + 1] - edges[k] - least) << k for k in range(CHARACTER_BITS)),
            CHARACTER_BITS,
        )
        held = Signal(8)
        is_held = Signal()
        # Bits still to come, the present one first; all ones once there are none.
        bits = Signal(CHARACTER_BITS, init=-1)
        left = Signal(range(CHARACTER_BITS + 1))
        extra = Signal(CHARACTER_BITS)
        count = Signal(range(least + 1))
        ends = Signal()
        m.d.comb += self.i.ready.eq(~is_held)
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += [held.eq(self.i.payload), is_held.eq(1)]
        # `ends` comes with a count of 0, that is in a bit's last clock.
        m.d.comb += ends.eq(count == 0)
        m.d.sync += [self.tx.eq(bits[0]), self.idle.eq((left == 0) & ~is_held)]
        with m.If(~ends):
            m.d.sync += count.eq(count - 1)
        with m.Elif(left > 1):
            m.d.sync += [
                bits.eq(Cat(bits[1:], 1)),
                left.eq(left - 1),
                extra.eq(extra >> 1),
                count.eq(Mux(extra[0], least, least - 1)),
            ]
        with m.Elif(is_held):
            m.d.sync += [
                bits.eq(Cat(0, held, 1)),
                left.eq(CHARACTER_BITS),
                extra.eq(longer >> 1),
                count.eq(least - 1 + (edges[1] - least)),
                is_held.eq(0),
            ]
        with m.Else():
            m.d.sync += left.eq(0)
        return m


class UartReceiver(wiring.Component):
    """Receives bytes.

    Bits are sampled in their middle. A byte without a stop bit is dropped. Latency: a byte comes
    half a bit before its character ends, and 3 clocks more. It must be taken at once.

    Parameters
    ----------
    clocks_per_bit : int or Fraction
        At least 2.

    Members
    -------
    rx : In(1)
        The line; may change at any time.
    valid : Out(1)
        A byte has come, for one clock.
    data : Out(8)
    framing_error : Out(1)
        A byte without a stop bit has come, for one clock.
    line_break : Out(1)
        The line has been low for `BREAK_BITS` bit times, and still is.
    """

    def __init__(self, clocks_per_bit: int | Fraction) -> None:
        self._clocks = _check(clocks_per_bit)
        super().__init__(
            {
                "rx": In(1, init=1),
                "valid": Out(1),
                "data": Out(8),
                "framing_error": Out(1),
                "line_break": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        clocks, least = self._clocks, int(self._clocks)
        line = Signal(init=1)
        m.submodules.synchronizer = FFSynchronizer(self.rx, line, init=1)

        half = Fraction(1, 2)
        # The middles of bits; the first counts from the clock in which the line is seen low.
        middles = [_rounded((k + half) * clocks) for k in range(CHARACTER_BITS)]
        longer = [middles[k + 1] - middles[k] - least for k in range(CHARACTER_BITS - 1)]
        extras = Array([*longer, 0])
        count = Signal(range(least + 2))
        bit = Signal(range(CHARACTER_BITS))
        samples = Signal(9)
        m.d.sync += [self.valid.eq(0), self.framing_error.eq(0)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [bit.eq(0), count.eq(max(middles[0] - 1, 0))]
                with m.If(~line):
                    m.next = "BITS"
            with m.State("BITS"):
                with m.If(count != 0):
                    m.d.sync += count.eq(count - 1)
                with m.Else():
                    m.d.sync += [
                        samples.eq(Cat(samples[1:], line)),
                        bit.eq(bit + 1),
                        count.eq(least - 1 + extras[bit]),
                    ]
                    with m.If((bit == 0) & line):  # a spike
                        m.next = "IDLE"
                    with m.Elif(bit == CHARACTER_BITS - 1):
                        m.d.sync += [
                            self.data.eq(samples[1:]),
                            self.valid.eq(line),
                            self.framing_error.eq(~line),
                        ]
                        with m.If(line):
                            m.next = "IDLE"
                        with m.Else():
                            m.next = "HIGH"
            with m.State("HIGH"), m.If(line):
                m.next = "IDLE"

        limit = _rounded(BREAK_BITS * clocks)
        low = Signal(range(limit + 1))
        m.d.sync += self.line_break.eq(low == limit)
        with m.If(line):
            m.d.sync += low.eq(0)
        with m.Elif(low != limit):
            m.d.sync += low.eq(low + 1)
        return m
