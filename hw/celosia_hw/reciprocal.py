"""Reciprocals of row sums."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import DIVISOR_BITS, RECIPROCAL_BITS, Widths
from .config import AcceleratorConfig
from .pipeline import delayed

__all__ = ["Reciprocal"]

_GROUP = 8
"""Bits whose highest one is found in a clock."""


class Reciprocal(wiring.Component):
    """`arithmetic.reciprocal` as a pipeline of restoring division.

    Throughput: a row sum every clock. Latency `LATENCY` clocks. There is no back-pressure.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    i_valid, total : In
        A row sum.
    o_valid, mantissa, length : Out
        Its reciprocal.
    """

    LATENCY = RECIPROCAL_BITS + 3

    def __init__(self, config: AcceleratorConfig) -> None:
        self._total_bits = bits = Widths(config).total
        super().__init__(
            {
                "i_valid": In(1),
                "total": In(bits),
                "o_valid": Out(1),
                "mantissa": Out(RECIPROCAL_BITS),
                "length": Out(range(bits + 1)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        length = self._bit_length(m)
        total = delayed(m, self.total, 2, "total")
        divisor = Signal(DIVISOR_BITS, reset_less=True)
        m.d.sync += divisor.eq(Cat(Const(0, DIVISOR_BITS), total) >> length)
        m.d.comb += [
            self.o_valid.eq(delayed(m, self.i_valid, self.LATENCY, "valid")),
            self.length.eq(delayed(m, length, 1 + RECIPROCAL_BITS, "length_beside")),
            self.mantissa.eq(self._divide(m, divisor)),
        ]
        return m

    def _bit_length(self, m: Module) -> Signal:
        """Bit length of the row sum, two clocks later: in groups of bits, then of all of them."""
        length = Signal.like(self.length, name="bit_length", reset_less=True)
        chosen = Signal.like(length, name="chosen")
        for start in range(0, self._total_bits, _GROUP):
            group = self.total[start : start + _GROUP]
            inside = Signal(range(len(group) + 1), name=f"length_from_{start}")
            for bit in range(len(group)):
                with m.If(group[bit]):
                    m.d.comb += inside.eq(bit + 1)
            inside = delayed(m, inside, 1, inside.name)
            with m.If(inside != 0):
                m.d.comb += chosen.eq(start + inside)
        m.d.sync += length.eq(chosen)
        return length

    def _divide(self, m: Module, divisor: Signal) -> Signal:
        """Fraction bits of ``2**(DIVISOR_BITS - 1) / divisor``, one a stage."""
        remainder = Const(1 << (DIVISOR_BITS - 1), DIVISOR_BITS)
        quotient = Const(0, 1)
        for stage in range(RECIPROCAL_BITS):
            doubled = Cat(Const(0, 1), remainder)
            difference = Signal(DIVISOR_BITS + 2, name=f"difference_{stage}")
            m.d.comb += difference.eq(doubled - divisor)
            bit = ~difference[-1]
            next_remainder = Signal(DIVISOR_BITS, name=f"remainder_{stage}", reset_less=True)
            next_quotient = Signal(stage + 1, name=f"quotient_{stage}", reset_less=True)
            m.d.sync += [
                next_remainder.eq(Mux(bit, difference, doubled)),
                next_quotient.eq(Cat(bit, quotient) if stage else bit),
            ]
            divisor = delayed(m, divisor, 1, f"divisor_{stage}")
            remainder, quotient = next_remainder, next_quotient
        return quotient
