"""The accelerator: everything between the command and the result stream."""

from __future__ import annotations

from functools import reduce
from operator import or_

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .accumulator import AccumulatorLane
from .arithmetic import OUTPUT_PARTS, PART_BITS, SUM_PARTS
from .conductor import Conductor
from .config import AcceleratorConfig
from .drain import Drain
from .front_end import FrontEnd
from .mask_memory import MaskMemory
from .packets import CommandWord, PacketWord
from .payload import INTERVAL_BITS, QUERY_BUFFERS, Target
from .pipeline import delayed
from .protocol import COUNTER_NAMES
from .reciprocal import Reciprocal
from .register_slice import RegisterSlice
from .responder import COUNTER_BITS
from .row_memory import FactorMemory, RowMemory
from .score_array import ScoreArray
from .sequencer import QueryJob, Sequencer
from .softmax_lane import SoftmaxLane
from .tile_list import TileList
from .timing import MEMORY_READ
from .value_array import ValueArray

__all__ = ["Accelerator", "PacketMerge"]


class PacketMerge(wiring.Component):
    """Joins two packet streams, a whole packet at a time; the first goes first.

    Latency: none. Back-pressure passes through to the stream whose packet is under way.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    first, second : In
        Streams of `PacketWord`.
    joined : Out
        Stream of `PacketWord`.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        signature = stream.Signature(PacketWord(config.link_bytes))
        super().__init__(
            {"first": In(signature), "second": In(signature), "joined": Out(signature)}
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        locked = Signal()
        held = Signal()
        choice = Mux(locked, held, ~self.first.valid)
        with m.If(self.joined.valid):
            # A packet that has been offered stays, also while it is not accepted.
            m.d.sync += [
                locked.eq(~(self.joined.ready & self.joined.payload.last)),
                held.eq(choice),
            ]
        with m.If(choice):
            connect(m, flipped(self.second), flipped(self.joined))
        with m.Else():
            connect(m, flipped(self.first), flipped(self.joined))
        return m


class Accelerator(wiring.Component):
    """An attention accelerator behind two packet streams.

    Commands are executed in order, see `protocol`. Between the sequencer and the accumulators
    nothing stalls: a key tile takes `AcceleratorConfig.pitch` clocks, and results leave
    `normalizer_lanes` values a clock. Back-pressure on `result` holds back the next query tile,
    and, once both query buffers are full, `command`.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    command : In
        Stream of `CommandWord`.
    result : Out
        Stream of `PacketWord`.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(
            {
                "command": In(stream.Signature(CommandWord(config))),
                "result": Out(stream.Signature(PacketWord(config.link_bytes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self.config
        m.submodules.front_end = front_end = FrontEnd(config)
        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.conductor = conductor = Conductor(config)
        m.submodules.score_array = scores = ScoreArray(config)
        m.submodules.value_array = values = ValueArray(config)
        m.submodules.reciprocal = reciprocal = Reciprocal(config)
        m.submodules.drain = drain = Drain(config)
        m.submodules.merge = merge = PacketMerge(config)

        connect(m, flipped(self.command), front_end.command)
        connect(m, front_end.reply, merge.first)
        connect(m, drain.result, merge.second)
        connect(m, merge.joined, flipped(self.result))

        # As many jobs as query buffers.
        m.submodules.jobs = jobs = RegisterSlice(QueryJob(config))
        connect(m, front_end.job, jobs.i)
        connect(m, jobs.o, sequencer.job)
        m.d.comb += [
            sequencer.bank_free.eq(drain.bank_free),
            sequencer.mask_arrived.eq(front_end.mask_arrived),
            sequencer.summed_up.eq(conductor.job.valid),
            front_end.tile_done.eq(drain.tile_done),
            front_end.results_sent.eq(drain.sent),
            front_end.mask_done.eq(conductor.mask_done),
            conductor.tile_valid.eq(sequencer.tile_valid),
            conductor.tile.eq(sequencer.tile),
            front_end.buffer_done.eq(conductor.buffer_done),
            front_end.banks_done.eq(conductor.banks_done),
        ]
        connect(m, conductor.job, drain.job)

        self._masks(m, front_end, sequencer, conductor)
        self._states(m, front_end.write_valid, front_end.write, conductor)
        self._memories(m, front_end, sequencer, conductor, scores, values)
        self._lanes(m, conductor, scores, values, reciprocal, drain)
        self._counters(m, front_end, sequencer, drain)
        return m

    def _masks(self, m: Module, front_end, sequencer, conductor) -> None:
        """Key intervals, lists of key tiles, mask bits and biases."""
        config, write = self.config, front_end.write
        m.submodules.intervals = intervals = FactorMemory(
            config, config.query_lanes, QUERY_BUFFERS, 2 * INTERVAL_BITS
        )
        m.submodules.tile_list = tile_list = TileList(config)
        m.submodules.masks = self._mask_memory = masks = MaskMemory(config)
        for store, strobe, target in (
            (intervals, intervals.write, Target.INTERVALS),
            (tile_list, tile_list.write, Target.TILE_LIST),
            (masks, masks.write_mask, Target.MASK),
            (masks, masks.write_bias, Target.BIAS),
        ):
            m.d.comb += strobe.eq(front_end.write_valid & (write.target == target))
            if target != Target.BIAS:
                m.d.comb += [
                    store.write_word.eq(write.word),
                    store.write_data.eq(write.data),
                ]
        m.d.comb += [
            intervals.write_group.eq(write.group),
            tile_list.write_group.eq(write.group),
            masks.write_place.eq(write.group),
            masks.write_row.eq(write.row),
            masks.step.eq(conductor.mask_step),
            intervals.start.eq(conductor.interval_start),
            intervals.group.eq(conductor.interval_buffer),
            conductor.interval.eq(intervals.factor),
            tile_list.start.eq(sequencer.list_start),
            tile_list.group.eq(sequencer.list_group),
            tile_list.advance.eq(sequencer.list_advance),
            sequencer.list_offset.eq(tile_list.offset),
        ]

    def _states(self, m: Module, valid: Value, write, conductor) -> None:
        """Puts the parts of a state together: row sums go to a memory, outputs to the lanes."""
        config = self.config
        parts = [Signal(config.link_bits, name=f"part_{i}") for i in range(SUM_PARTS - 1)]
        for number, part in enumerate(parts):
            with m.If(valid & (write.part == number)):
                m.d.sync += part.eq(write.data)

        def numbers(*words: Value) -> list[Value]:
            count = config.link_bits // PART_BITS
            return [Cat(word.word_select(i, PART_BITS) for word in words) for i in range(count)]

        m.submodules.sums = sums = FactorMemory(
            config,
            config.query_lanes,
            QUERY_BUFFERS,
            SUM_PARTS * PART_BITS,
            SUM_PARTS * config.link_bits,
        )
        m.d.comb += [
            sums.write.eq(
                valid & (write.target == Target.STATE_SUMS) & (write.part == SUM_PARTS - 1)
            ),
            sums.write_group.eq(write.group),
            sums.write_word.eq(write.word),
            sums.write_data.eq(Cat(numbers(*parts, write.data))),
            sums.start.eq(conductor.interval_start),
            sums.group.eq(conductor.interval_buffer),
            conductor.sums.eq(sums.factor),
        ]
        # Outputs a clock later, from registers, as the accumulators are all over the chip. Query
        # buffers and banks of accumulators both alternate with every query tile.
        is_output = valid & (write.target == Target.STATE_OUTPUTS)
        is_complete = is_output & (write.part == OUTPUT_PARTS - 1)
        words = range(config.words(2 * config.query_lanes))
        writes = Cat(is_complete & (write.word == word) for word in words)
        self._state_writes = delayed(m, writes, 1, "state_writes", has_events=True)
        self._state_bank = delayed(m, write.group[0], 1, "state_bank")
        self._state_row = delayed(m, write.row, 1, "state_row")
        self._state_outputs = numbers(*parts[:OUTPUT_PARTS])

    def _memories(self, m: Module, front_end, sequencer, conductor, scores, values) -> None:
        config = self.config
        rows, lanes = config.key_rows, config.query_lanes
        depth = config.slots * config.max_head_dim
        m.submodules.keys = keys = RowMemory(config, rows, depth)
        m.submodules.values = value_rows = RowMemory(config, rows, depth)
        m.submodules.queries = queries = RowMemory(
            config, lanes, QUERY_BUFFERS * config.max_head_dim
        )
        m.submodules.key_factors = key_factors = FactorMemory(config, rows, config.slots)
        m.submodules.value_factors = value_factors = FactorMemory(config, rows, config.slots)
        m.submodules.query_factors = self._query_factors = query_factors = FactorMemory(
            config, lanes, QUERY_BUFFERS
        )

        write = front_end.write
        for target, store in (
            (Target.KEY_FACTORS, key_factors),
            (Target.VALUE_FACTORS, value_factors),
            (Target.KEYS, keys),
            (Target.VALUES, value_rows),
            (Target.QUERY_FACTORS, query_factors),
            (Target.QUERIES, queries),
        ):
            m.d.comb += [
                store.write.eq(front_end.write_valid & (write.target == target)),
                store.write_word.eq(write.word),
                store.write_data.eq(write.data),
                store.write_single.eq(write.single),
                store.write_element.eq(write.element),
            ]
            if isinstance(store, RowMemory):
                m.d.comb += store.write_row.eq(write.row)
            else:
                m.d.comb += store.write_group.eq(write.group)

        m.d.comb += [
            keys.read_row.eq(sequencer.key_row),
            queries.read_row.eq(sequencer.query_row),
            scores.keys.eq(keys.row),
            scores.queries.eq(queries.row),
            scores.first.eq(delayed(m, sequencer.row_first, MEMORY_READ, "row_first")),
            scores.last.eq(delayed(m, sequencer.row_last, MEMORY_READ, "row_last")),
            value_rows.read_row.eq(conductor.value_row),
            values.values.eq(value_rows.row),
            values.swap.eq(conductor.swap),
            values.load.eq(conductor.load),
            values.load_first.eq(conductor.load_first),
            query_factors.start.eq(conductor.query_factor_start),
            query_factors.group.eq(conductor.query_buffer),
            key_factors.start.eq(conductor.key_factor_start),
            key_factors.group.eq(conductor.key_slot),
            value_factors.start.eq(conductor.value_factor_start),
            value_factors.group.eq(conductor.value_slot),
            conductor.key_factor.eq(key_factors.factor),
            conductor.value_factor.eq(value_factors.factor),
        ]

    def _lanes(self, m: Module, conductor, scores, values, reciprocal, drain) -> None:
        config = self.config
        step, read_step, write_step = conductor.step, conductor.read_step, conductor.write_step
        totals, maxima, valids = [], [], []
        per_word = config.link_bits // PART_BITS
        for c in range(config.query_lanes):
            m.submodules[f"softmax_{c}"] = softmax = SoftmaxLane(config)
            m.submodules[f"accumulator_{c}"] = accumulator = AccumulatorLane(config)
            m.d.comb += [
                softmax.score.eq(scores.scores[c]),
                softmax.step.eq(step),
                softmax.query_factor.eq(self._query_factors.factor),
                softmax.allowed.eq(self._mask_memory.allowed[c]),
                softmax.bias.eq(self._mask_memory.biases[c]),
                softmax.low.eq(conductor.low),
                softmax.high.eq(conductor.high),
                softmax.initial_maximum.eq(conductor.initial_maximum),
                softmax.initial_total.eq(conductor.initial_total),
                accumulator.score.eq(scores.scores[c]),
                accumulator.is_product.eq(conductor.is_product),
                accumulator.state_write.eq(self._state_writes[c // per_word]),
                accumulator.state_bank.eq(self._state_bank),
                accumulator.state_index.eq(self._state_row),
                accumulator.state.eq(self._state_outputs[c % per_word].as_signed()),
                values.weights[c].eq(softmax.weight),
                accumulator.partial.eq(values.partials[c]),
                accumulator.read_step.eq(read_step),
                accumulator.write_step.eq(write_step),
                accumulator.rescale_valid.eq(softmax.rescale_valid),
                accumulator.rescale.eq(softmax.rescale),
                accumulator.drain_bank.eq(drain.bank),
                accumulator.drain_index.eq(drain.index),
                drain.outputs[c].eq(accumulator.drained),
            ]
            step = softmax.next_step
            read_step, write_step = accumulator.next_read_step, accumulator.next_write_step
            totals.append(softmax.total)
            maxima.append(softmax.final_maximum)
            valids.append(softmax.total_valid)

        # At most one lane has a row sum in any clock; the others give zeros.
        maximum = Signal.like(drain.maximum)
        m.d.sync += [
            maximum.eq(reduce(or_, maxima)),
            reciprocal.i_valid.eq(Cat(valids).any()),
            reciprocal.total.eq(reduce(or_, totals)),
        ]
        m.d.comb += [
            drain.total_valid.eq(reciprocal.i_valid),
            drain.total.eq(reciprocal.total),
            drain.maximum.eq(maximum),
            drain.reciprocal_valid.eq(reciprocal.o_valid),
            drain.mantissa.eq(reciprocal.mantissa),
            drain.length.eq(reciprocal.length),
        ]

    def _counters(self, m: Module, front_end, sequencer, drain) -> None:
        """`protocol.COUNTER_NAMES`."""
        active = Signal(range(2 * QUERY_BUFFERS))
        m.d.sync += active.eq(active + sequencer.started - drain.tile_done)
        busy = active != 0
        increments = {
            "busy": busy,
            "stalled_input": busy & sequencer.lacks_input,
            "stalled_output": sequencer.lacks_output,
            "array_steps": Mux(sequencer.tile_valid, sequencer.steps, 0),
        }
        clear = delayed(m, front_end.clear_counters, 1, "clear")
        for index, name in enumerate(COUNTER_NAMES):
            counter = Signal(COUNTER_BITS, name=f"count_{name}")
            increment = delayed(m, Value.cast(increments[name]), 1, f"increment_{name}")
            m.d.sync += counter.eq(Mux(clear, 0, counter + increment))
            m.d.comb += front_end.counters[index].eq(counter)
