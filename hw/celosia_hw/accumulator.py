"""The output accumulators of one lane."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import Widths
from .config import AcceleratorConfig
from .pipeline import delayed, shift_right_twice
from .ram import ram
from .softmax_lane import SHIFT_BITS
from .timing import ACCUMULATOR_READ, Timing

__all__ = ["AccumulatorLane", "AccumulatorStep"]

WRITE_LAG = ACCUMULATOR_READ + 1
"""Clocks from an accumulator's address to its write."""


class AccumulatorStep(data.StructLayout):
    """Which accumulator is at hand; passed from lane to lane.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    valid, first, fresh : 1
        An accumulator is at hand; it is the tile's first; its tile is the query tile's first.
    bank : 1
    index : unsigned
        Element of the value dimension.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "valid": 1,
                "first": 1,
                "fresh": 1,
                "bank": 1,
                "index": range(config.accumulator_depth),
            }
        )


class AccumulatorLane(wiring.Component):
    """Two banks of accumulators: one adds partial sums up while the other is read out.

    Every clock one accumulator is read, shifted right by the tile's rescaling, added to the
    partial sum and written back. Latency `WRITE_LAG` clocks from the read step to the write, so
    an index comes back after ``AcceleratorConfig.tile_latency`` clocks or later. There is no
    back-pressure.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    partial : In
        `ACCUMULATOR_READ` clocks after its read step.
    read_step, write_step, next_read_step, next_write_step : In, Out
        `AccumulatorStep`, the write step `WRITE_LAG` clocks after the read step.
    rescale_valid, rescale : In
        For each tile, before its first read step: the right shift of the sums so far.
    score, is_product : In
        With `is_product` the score is written instead, one clock after it came.
    state_write, state_bank, state_index, state : In
        Write an accumulator of the bank that does not add up.
    drain_bank, drain_index : In
        Accumulator to read out.
    drained : Out
        It, three clocks later.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        widths = Widths(config)
        self._accumulator = signed(widths.accumulator)
        step = AccumulatorStep(config)
        super().__init__(
            {
                "partial": In(signed(widths.partial)),
                "read_step": In(step),
                "write_step": In(step),
                "next_read_step": Out(step),
                "next_write_step": Out(step),
                "rescale_valid": In(1),
                "rescale": In(SHIFT_BITS),
                "drain_bank": In(1),
                "score": In(signed(widths.score)),
                "is_product": In(1),
                "state_write": In(1),
                "state_bank": In(1),
                "state_index": In(range(config.accumulator_depth)),
                "state": In(self._accumulator),
                "drain_index": In(range(config.accumulator_depth)),
                "drained": Out(self._accumulator),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.d.sync += [
            self.next_read_step.eq(self.read_step),
            self.next_write_step.eq(self.write_step),
        ]
        total = Signal(self._accumulator, reset_less=True)
        outputs = [self._bank(m, bank, total) for bank in range(2)]
        read_bank = delayed(m, self.read_step.bank, 2, "read_bank")
        drain_bank = delayed(m, self.drain_bank, 2, "drain_bank")
        stored = delayed(m, Mux(read_bank, outputs[1], outputs[0]), 1, "stored")
        drained = delayed(m, Mux(drain_bank, outputs[1], outputs[0]), 1, "drained")
        m.d.comb += self.drained.eq(drained)
        rescaled = shift_right_twice(
            m,
            stored,
            self._shift(m),
            "rescaled",
            clear=delayed(m, self.read_step.fresh, 3, "fresh"),
        )
        m.d.sync += total.eq(Mux(self.is_product, self.score, rescaled + self.partial))
        return m

    def _bank(self, m: Module, bank: int, total: Signal):
        depth = self._config.accumulator_depth
        storage = ram(self._accumulator, depth)
        m.submodules[f"bank_{bank}"] = storage
        write, read = storage.write_port(), storage.read_port()
        adds = self.write_step.valid & (self.write_step.bank == bank)
        m.d.comb += [
            write.addr.eq(Mux(adds, self.write_step.index, self.state_index)),
            write.data.eq(Mux(adds, total, self.state)),
            write.en.eq(adds | self.state_write & (self.state_bank == bank)),
            # The bank that adds up is never the one that is read out.
            read.addr.eq(
                Mux(
                    self.read_step.valid & (self.read_step.bank == bank),
                    self.read_step.index,
                    self.drain_index,
                )
            ),
        ]
        return delayed(m, read.data.as_signed(), 1, f"bank_{bank}_data")

    def _shift(self, m: Module) -> Signal:
        """The tile's rescaling, which waits in a ring while its weights enter the value array."""
        timing = Timing(self._config)
        wait = timing.partial - timing.probability
        depth = wait // max(self._config.key_rows, self._config.tile_latency) + 2
        m.submodules.rescale_ring = ring = memory.Memory(shape=SHIFT_BITS, depth=depth, init=[])
        write, read = ring.write_port(), ring.read_port(domain="comb")
        place = Signal(range(depth))
        taken = Signal(range(depth))
        with m.If(self.rescale_valid):
            m.d.sync += place.eq(Mux(place == depth - 1, 0, place + 1))
        shift = Signal(SHIFT_BITS, reset_less=True)
        # A clock late, as the last accumulator of the tile before still needs its own.
        with m.If(delayed(m, self.read_step.valid & self.read_step.first, 2, "first")):
            m.d.sync += [
                shift.eq(read.data),
                taken.eq(Mux(taken == depth - 1, 0, taken + 1)),
            ]
        m.d.comb += [
            write.addr.eq(place),
            write.data.eq(self.rescale),
            write.en.eq(self.rescale_valid),
            read.addr.eq(taken),
        ]
        return shift
