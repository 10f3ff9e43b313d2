"""Turns the event of a tile into everything that must happen later, each at its clock."""

from __future__ import annotations

from typing import NamedTuple

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from .accumulator import WRITE_LAG, AccumulatorStep
from .arithmetic import (
    ANCHOR_BITS,
    FACTOR_BITS,
    MASK_TILES,
    OPERAND_BITS,
    PART_BITS,
    SLOPE_BITS,
    SUM_PARTS,
    Widths,
)
from .config import AcceleratorConfig
from .drain import DrainJob, DrainKind
from .mask_memory import MaskStep
from .multiplier import multiply
from .payload import INTERVAL_BITS
from .pipeline import (
    EventDelay,
    Steps,
    delayed,
    halve_and_clamp,
    shift_right_twice,
)
from .sequencer import TileRecord
from .softmax_lane import LaneStep
from .timing import ACCUMULATOR_READ, FACTOR_READ, MEMORY_READ, Timing

__all__ = ["Conductor"]


_DRAINED = "tag last_value_dim result_fraction load_state store_state"
"""What the accumulators and the drain are told of a tile."""


class _Event(NamedTuple):
    """A strobe and the record beside it."""

    valid: Value
    record: data.View


class Conductor(wiring.Component):
    """Times the pipeline behind the sequencer.

    Every output follows `tile_valid` by the clocks that `Timing` gives for lane 0; lanes pass
    what they need on to their neighbours. There is no back-pressure.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    tile_valid, tile : In
        Event and `TileRecord`, at least ``max(key_rows, tile_latency)`` clocks apart.
    query_factor_start, query_buffer : Out
    key_factor_start, key_slot, value_factor_start, value_slot : Out
        Reads of the factor memories.
    key_factor, value_factor : In
        What they give.
    step : Out
        `LaneStep` of lane 0.
    interval_start, interval_buffer, interval, sums
        Read of the explicit key intervals and of the row sums of states, as of factors.
    initial_maximum, initial_total : Out
        What the lane whose ``step.load_interval`` is set starts from.
    is_product : Out(1)
        The query tiles in the pipeline are those of MULTIPLYs.
    mask_step : Out
        `MaskStep` of lane 0.
    mask_done : Out(1)
        Strobe: the mask bits and biases of a key tile are no longer needed.
    low, high : Out
        Key interval of the lane whose ``step.load_interval`` is set.
    load, load_first : Out(1)
        As in `ValueArray`.
    value_row, swap : Out
        Row of the value memory to read, and the tag for the value array.
    read_step, write_step : Out
        `AccumulatorStep` of lane 0.
    job : Out
        Stream of `DrainJob` without back-pressure: a query tile is summed up in all lanes.
    buffer_done : Out(1)
        Strobe: a query buffer is no longer read.
    banks_done : Out
        Strobe for each key bank: a query tile no longer reads it.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._timing = Timing(config)
        self._spacing = max(config.key_rows, config.tile_latency)
        slot = range(config.slots)
        super().__init__(
            {
                "tile_valid": In(1),
                "tile": In(TileRecord(config)),
                "query_factor_start": Out(1),
                "query_buffer": Out(1),
                "key_factor_start": Out(1),
                "key_slot": Out(slot),
                "value_factor_start": Out(1),
                "value_slot": Out(slot),
                "key_factor": In(FACTOR_BITS),
                "value_factor": In(FACTOR_BITS),
                "step": Out(LaneStep(config)),
                "interval_start": Out(1),
                "interval_buffer": Out(1),
                "interval": In(2 * INTERVAL_BITS),
                "mask_step": Out(MaskStep(config)),
                "mask_done": Out(1),
                "sums": In(SUM_PARTS * PART_BITS),
                "initial_maximum": Out(signed(Widths(config).maximum)),
                "initial_total": Out(Widths(config).total),
                "is_product": Out(1),
                "low": Out(signed(18)),
                "high": Out(signed(18)),
                "load": Out(1),
                "load_first": Out(1),
                "value_row": Out(range(config.slots * config.max_head_dim)),
                "swap": Out(1),
                "read_step": Out(AccumulatorStep(config)),
                "write_step": Out(AccumulatorStep(config)),
                "job": Out(stream.Signature(DrainJob(), always_ready=True)),
                "buffer_done": Out(1),
                "banks_done": Out(config.key_banks),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        product = _Event(self.tile_valid & self.tile.product, self.tile)
        tile = _Event(self.tile_valid & ~self.tile.product, self.tile)
        with m.If(self.tile_valid):
            m.d.sync += self.is_product.eq(self.tile.product)
        self._factors(m, tile)
        self._masks(m, platform, tile)
        scaled = self._scores(m, tile)
        summed = self._probabilities(m, scaled)
        self._outputs(m, summed, product)
        return m

    def _later(self, m: Module, event: _Event, clocks: int, name: str, keep: str) -> _Event:
        """The event `clocks` clocks later, with the fields of its record named in `keep`."""
        if clocks == 0:
            return event
        layout = TileRecord(self._config)
        shape = data.StructLayout({field: layout[field].shape for field in keep.split()})
        m.submodules[name] = delay = EventDelay(shape, clocks, self._spacing)
        m.d.comb += delay.i_valid.eq(event.valid)
        m.d.comb += [delay.i[field].eq(event.record[field]) for field in keep.split()]
        return _Event(delay.o_valid, delay.o)

    def _steps(self, m: Module, event: _Event, name: str, last: Value, limit: int) -> Steps:
        m.submodules[name] = steps = Steps(limit)
        m.d.comb += [steps.start.eq(event.valid), steps.count_minus_one.eq(last)]
        return steps

    def _hold(self, m: Module, event: _Event, field: str, name: str) -> Signal:
        """A field from the clock after its event on."""
        held = Signal(event.record[field].shape(), name=name, reset_less=True)
        with m.If(event.valid):
            m.d.sync += held.eq(event.record[field])
        return held

    def _factors(self, m: Module, tile: _Event) -> None:
        timing = self._timing
        query = self._later(
            m, tile, timing.load_factor - FACTOR_READ, "query_factors", "first query_buffer"
        )
        key = self._later(m, tile, timing.key_factor - FACTOR_READ, "key_factors", "slot")
        every = _Event(self.tile_valid, self.tile)
        done = self._later(
            m, every, timing.position + self._config.query_lanes, "query_done", "last"
        )
        start = query.valid & query.record.first
        m.d.comb += [
            self.query_factor_start.eq(start),
            self.query_buffer.eq(query.record.query_buffer),
            self.step.load_factor.eq(delayed(m, start, FACTOR_READ, "load_factor")),
            self.key_factor_start.eq(key.valid),
            self.key_slot.eq(key.record.slot),
            self.step.key_factor.eq(self.key_factor),
            self.buffer_done.eq(done.valid & done.record.last),
        ]

    def _slope_bias(self, m: Module, platform, tile: _Event) -> Signal:
        """`arithmetic.slope_bias` of one key after the other."""
        stages = self._config.multiplier_stages
        fields = "position anchor slope slope_shift"
        event = self._later(m, tile, self._timing.slope, "slope", fields)
        distance = Signal(signed(ANCHOR_BITS + 1), reset_less=True)
        with m.If(event.valid):
            m.d.sync += distance.eq(event.record.position - event.record.anchor)
        slope = self._hold(m, event, "slope", "slope_held")
        shift_held = self._hold(m, event, "slope_shift", "slope_shift_held")

        # The product of the first key in two parts, one after the other: the distance is wider
        # than a hard multiplier. Each further key adds the slope.
        low_bits = OPERAND_BITS - 1
        low = Cat(distance[:low_bits], Const(0, 1)).as_signed()
        high = distance[low_bits:].as_signed()
        part = Mux(delayed(m, event.valid, 2, "slope_high"), high, low)
        product = multiply(m, slope, part, stages, "slope_product", platform)
        low_product = delayed(m, product, 1, "slope_low_product")
        total = Signal(signed(SLOPE_BITS + ANCHOR_BITS + 1), name="slope_total", reset_less=True)
        increment = Signal(SLOPE_BITS, name="slope_increment", reset_less=True)
        shift = Signal(6, name="slope_shift", reset_less=True)
        with m.If(delayed(m, event.valid, 2 + stages, "slope_complete")):
            m.d.sync += [
                total.eq(low_product + (product << low_bits)),
                increment.eq(slope),
                shift.eq(shift_held),
            ]
        with m.Else():
            m.d.sync += total.eq(total + increment)

        shifted = shift_right_twice(m, Cat(Const(0, 1), total).as_signed(), shift, "slope_shifted")
        slope_bias = Signal.like(self.mask_step.slope_bias, name="slope_bias", reset_less=True)
        m.d.sync += slope_bias.eq(halve_and_clamp(shifted, slope_bias.shape()))
        return slope_bias

    def _masks(self, m: Module, platform, tile: _Event) -> None:
        """Mask steps, and linear biases beside them."""
        timing, config, step = self._timing, self._config, self.mask_step
        slope_bias = self._slope_bias(m, platform, tile)
        event = self._later(m, tile, timing.mask - 1, "masks", "mask bias bias_shift")
        steps = self._steps(m, event, "mask_steps", config.key_rows - 1, config.key_rows)
        place = Signal(range(MASK_TILES))
        following = Signal(range(MASK_TILES))
        with m.If(event.valid):
            m.d.sync += [
                place.eq(following),
                following.eq(following + (event.record.mask | event.record.bias)),
            ]
        done = self._later(
            m, event, config.key_rows + config.query_lanes, "masks_done", "mask bias"
        )
        m.d.comb += [
            step.row.eq(steps.index),
            step.place.eq(place),
            step.masked.eq(self._hold(m, event, "mask", "masked")),
            step.biased.eq(self._hold(m, event, "bias", "biased")),
            step.bias_shift.eq(self._hold(m, event, "bias_shift", "bias_shift")),
            step.slope_bias.eq(slope_bias),
            self.mask_done.eq(done.valid & (done.record.mask | done.record.bias)),
        ]

    def _scores(self, m: Module, tile: _Event) -> _Event:
        timing, step = self._timing, self.step
        behind = f"slot base banks {_DRAINED}"
        shift = self._later(
            m,
            tile,
            timing.score_shift - 1,
            "scores",
            "first last score_shift position low high low_step high_step limit intervals "
            f"query_buffer {behind}",
        )
        m.d.comb += step.score_shift.eq(self._hold(m, shift, "score_shift", "score_shift"))

        wait = timing.position - timing.score_shift
        fields = "first low high low_step high_step limit intervals load_state"
        ahead = wait - FACTOR_READ
        early = self._later(m, shift, ahead, "interval_read", f"{fields} query_buffer")
        m.d.comb += [
            self.interval_start.eq(early.valid & early.record.first),
            self.interval_buffer.eq(early.record.query_buffer),
        ]
        self._interval(m, self._later(m, early, FACTOR_READ - 1, "interval_rule", fields))

        key = self._later(m, shift, wait, "position", "position")
        position = Signal.like(key.record.position, name="key_position")
        m.d.sync += position.eq(Mux(key.valid, key.record.position, position + 1))
        m.d.comb += step.position.eq(position)

        log = self._later(m, shift, wait + 1, "log_scores", f"first last {behind}")
        steps = self._steps(m, log, "log_steps", self._config.key_rows - 1, self._config.key_rows)
        m.d.comb += [
            step.log_first.eq(steps.first),
            step.log_last.eq(steps.last),
            step.log_fresh.eq(self._hold(m, log, "first", "log_fresh")),
        ]
        return log

    def _interval(self, m: Module, event: _Event) -> None:
        """The key interval, lane after lane: by the rule, or from the memory."""
        start = event.valid & event.record.first
        low = Signal(signed(18))
        high = Signal(signed(18))
        limit = self._hold(m, event, "limit", "limit")
        low_step = self._hold(m, event, "low_step", "low_step")
        high_step = self._hold(m, event, "high_step", "high_step")
        m.d.sync += [
            low.eq(Mux(start, event.record.low, low + low_step)),
            high.eq(Mux(start, event.record.high, high + high_step)),
        ]
        has_state = self._hold(m, event, "load_state", "has_state")
        widths, parts = Widths(self._config), PART_BITS * (SUM_PARTS - 1)
        m.d.comb += [
            self.initial_maximum.eq(
                Mux(has_state, self.sums[parts:].as_signed(), widths.lowest_maximum)
            ),
            self.initial_total.eq(Mux(has_state, self.sums[:parts], 0)),
        ]
        explicit = self._hold(m, event, "intervals", "explicit")
        explicit_low, explicit_high = (
            self.interval.word_select(i, INTERVAL_BITS).as_signed() for i in range(2)
        )
        m.d.comb += [
            self.low.eq(Mux(explicit, explicit_low, low)),
            self.high.eq(Mux(explicit, explicit_high, Mux(high > limit, limit, high))),
            self.step.load_interval.eq(delayed(m, start, 1, "load_interval")),
        ]

    def _probabilities(self, m: Module, log: _Event) -> _Event:
        timing, step = self._timing, self.step
        ahead = timing.probability - timing.log_score
        kept = f"first last slot base banks {_DRAINED}"
        factor = self._later(m, log, ahead + 1 - FACTOR_READ, "value_factors", kept)
        sums = self._later(m, factor, FACTOR_READ - 1, "row_sums", "first last")
        load = self._later(
            m, factor, timing.weight - timing.probability + FACTOR_READ - 2, "loads", "first"
        )
        count = self._config.key_rows
        steps = self._steps(m, sums, "sum_steps", count - 1, count)
        loads = self._steps(m, load, "load_steps", count - 1, count)
        m.d.comb += [
            self.value_factor_start.eq(factor.valid),
            self.value_slot.eq(factor.record.slot),
            step.value_factor.eq(self.value_factor),
            step.sum_first.eq(steps.first),
            step.sum_last.eq(steps.last),
            step.sum_fresh.eq(self._hold(m, sums, "first", "sum_fresh")),
            step.sum_final.eq(self._hold(m, sums, "last", "sum_final")),
            self.load.eq(loads.active),
            self.load_first.eq(loads.first),
        ]
        return factor

    def _outputs(self, m: Module, factor: _Event, product: _Event) -> None:
        timing, config = self._timing, self._config
        ahead = timing.value - MEMORY_READ - 1 - (timing.probability - FACTOR_READ)
        kept = f"first last base banks {_DRAINED}"
        value = self._later(m, factor, ahead, "values", kept)
        reads = self._steps(
            m, value, "value_steps", value.record.last_value_dim, config.max_head_dim
        )
        m.d.sync += self.value_row.eq(Mux(value.valid, value.record.base, self.value_row + 1))
        banks = self._hold(m, value, "banks", "banks")
        value_last = self._hold(m, value, "last", "value_last")
        m.d.comb += [
            self.swap.eq(delayed(m, reads.first, MEMORY_READ, "swap")),
            self.banks_done.eq(
                Mux(product.valid & product.record.last, product.record.banks, 0)
                | Mux(reads.last & value_last, banks, 0)
            ),
        ]

        ahead = timing.partial - ACCUMULATOR_READ - timing.value + MEMORY_READ
        sums = self._later(m, value, ahead, "sums", f"first last {_DRAINED}")
        self._accumulate(m, sums, product)

    def _accumulate(self, m: Module, sums: _Event, product: _Event) -> None:
        config = self._config
        scores = self._later(
            m, product, self._timing.score, "products", "first last tag last_value_dim"
        )
        products = self._steps(m, scores, "product_steps", config.key_rows - 1, config.key_rows)
        index = Signal(range(config.accumulator_depth))
        with m.If(scores.valid & scores.record.first):
            m.d.sync += index.eq(0)
        with m.Elif(products.active):
            m.d.sync += index.eq(index + 1)
        steps = self._steps(
            m, sums, "accumulate_steps", sums.record.last_value_dim, config.max_head_dim
        )
        bank = Signal(init=1)
        with m.If(sums.valid & sums.record.first | scores.valid & scores.record.first):
            m.d.sync += bank.eq(~bank)
        read = self.read_step
        m.d.comb += [
            read.valid.eq(steps.active),
            read.first.eq(steps.first),
            read.fresh.eq(
                self._hold(m, sums, "first", "first_tile")
                & ~self._hold(m, sums, "load_state", "from_state")
            ),
            read.bank.eq(bank),
            read.index.eq(steps.index),
            self.write_step.eq(
                delayed(m, read.as_value(), WRITE_LAG, "write_step", has_events=True)
            ),
        ]
        # Of its own, beside the accumulators: it changes while the pipeline is empty.
        with m.If(delayed(m, self.is_product, 1, "writes_products")):
            m.d.comb += [
                self.write_step.valid.eq(products.active),
                self.write_step.bank.eq(bank),
                self.write_step.index.eq(index),
            ]

        # The last lane's last accumulator is written `query_lanes - 1` clocks after the first's.
        last = self._hold(m, sums, "last", "sums_last")
        product_last = self._hold(m, scores, "last", "products_last")
        held = {field: self._hold(m, sums, field, f"sums_{field}") for field in _DRAINED.split()}
        product_held = {
            field: self._hold(m, scores, field, f"products_{field}")
            for field in ("tag", "last_value_dim")
        }
        m.submodules.finished = done = EventDelay(
            # Two tiles of different value dimensions may end closer together than they start.
            DrainJob(),
            WRITE_LAG + config.query_lanes,
            self._spacing // 2,
        )
        m.d.comb += [
            done.i_valid.eq(steps.last & last | products.last & product_last),
            self.job.valid.eq(done.o_valid),
            self.job.payload.eq(done.o),
        ]
        m.d.comb += [
            *(done.i[field].eq(held[field]) for field in ("tag", "last_value_dim")),
            done.i.result_fraction.eq(held["result_fraction"]),
            done.i.kind.eq(Mux(held["store_state"], DrainKind.STATE, DrainKind.RESULT)),
        ]
        with m.If(self.is_product):
            m.d.comb += [
                *(done.i[field].eq(value) for field, value in product_held.items()),
                done.i.kind.eq(DrainKind.PRODUCT),
            ]
