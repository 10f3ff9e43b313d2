"""A stage of registers in a stream."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, ShapeLike, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

__all__ = ["RegisterSlice"]


class RegisterSlice(wiring.Component):
    """Registers all signals of a stream, its ready too, so that no path leads through.

    Latency one clock; throughput a word every clock. It holds two words: when `o` is not ready, `i`
    is not ready from the next clock on, nor is it during reset and in the clock after.

    Parameters
    ----------
    shape : ShapeLike
        Of the payload.

    Members
    -------
    i, o : In, Out
        Streams.
    """

    def __init__(self, shape: ShapeLike) -> None:
        signature = stream.Signature(shape)
        super().__init__({"i": In(signature), "o": Out(signature)})

    def elaborate(self, platform) -> Module:
        m = Module()
        payload = Signal.like(self.i.payload, reset_less=True)
        spare = Signal.like(self.i.payload, reset_less=True)
        is_spare = Signal()
        arrives = Signal()
        moves = ~self.o.valid | self.o.ready
        fills = ~moves & (is_spare | arrives)
        m.d.comb += [self.o.payload.eq(payload), arrives.eq(self.i.valid & self.i.ready)]
        m.d.sync += [is_spare.eq(fills), self.i.ready.eq(~fills)]
        with m.If(moves):
            m.d.sync += [
                self.o.valid.eq(is_spare | arrives),
                payload.eq(Mux(is_spare, spare, self.i.payload)),
            ]
        with m.If(~is_spare):
            m.d.sync += spare.eq(self.i.payload)
        return m
