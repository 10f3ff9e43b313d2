"""From finished accumulators to RESULT packets."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import MAX_RESULT_FRACTION, RECIPROCAL_BITS, RESULT_BITS, Widths
from .config import AcceleratorConfig
from .normalizer import Normalizer
from .packets import PacketWord
from .pipeline import EventDelay, delayed
from .protocol import REPLY_FIELDS, Reply
from .timing import Timing

__all__ = ["Drain", "DrainJob"]

FIFO_WORDS = 64
"""Words of the result FIFO; a bank of accumulators is handed back when its rest fits there."""
SELECT = 3
"""Clocks from an accumulator's index to the values of a group of lanes."""


class DrainJob(data.StructLayout):
    """A finished query tile: its tag, value dimension less one, and result fraction."""

    def __init__(self) -> None:
        super().__init__(
            {"tag": 8, "last_value_dim": 8, "result_fraction": range(MAX_RESULT_FRACTION + 1)}
        )


class Drain(wiring.Component):
    """Reads finished accumulators, divides them by the row sums and makes RESULT packets.

    Throughput: a group of `normalizer_lanes` results a clock. Back-pressure on `result` never
    reaches the arrays: accumulators are read only as far as the result FIFO has room for them.
    A bank is handed back as soon as all that is left of it is sure to be read before the next
    query tile can reach it.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    job : In
        Stream of finished query tiles, always ready: there are at most three.
    reciprocal_valid, mantissa, length : In
        Reciprocals of the row sums, lane by lane, query tile by query tile.
    bank, index : Out
        Accumulator to read in all lanes.
    outputs : In
        It, two clocks later.
    bank_free : Out(1)
        Strobe: a bank of accumulators is handed back.
    tile_done : Out(1)
        Strobe: a query tile has been read out.
    result : Out
        Stream of `PacketWord`.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        widths = Widths(config)
        self._groups = config.query_lanes // config.output_lanes
        # Groups that share a link word.
        self._per_word = config.link_bits // RESULT_BITS // config.output_lanes
        super().__init__(
            {
                "job": In(stream.Signature(DrainJob(), always_ready=True)),
                "reciprocal_valid": In(1),
                "mantissa": In(RECIPROCAL_BITS),
                "length": In(range(widths.total + 1)),
                "bank": Out(1),
                "index": Out(range(config.max_head_dim)),
                "outputs": In(data.ArrayLayout(signed(widths.accumulator), config.query_lanes)),
                "bank_free": Out(1),
                "tile_done": Out(1),
                "result": Out(stream.Signature(PacketWord(config))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.jobs = jobs = fifo.SyncFIFO(width=DrainJob().size, depth=4)
        m.d.comb += [jobs.w_data.eq(self.job.payload), jobs.w_en.eq(self.job.valid)]
        m.submodules.results = results = fifo.SyncFIFOBuffered(
            width=PacketWord(self._config).size, depth=FIFO_WORDS
        )
        m.d.comb += [
            self.result.payload.eq(results.r_data),
            self.result.valid.eq(results.r_rdy),
            results.r_en.eq(self.result.ready),
        ]
        job = data.View(DrainJob(), jobs.r_data)

        # Words for which the FIFO surely has room.
        credit, spend = Signal(range(FIFO_WORDS + 1), init=FIFO_WORDS), Signal()
        m.d.sync += credit.eq(credit - spend + (results.r_rdy & results.r_en))

        stored, reciprocals = self._store_reciprocals(m)
        tiles = Signal(range(4))
        header, step, row_end, end, group = self._read_pass(
            m, job, jobs.r_rdy & (tiles != 0), credit, spend
        )
        m.d.sync += tiles.eq(tiles + stored - end)
        m.d.comb += [jobs.r_en.eq(end), self.tile_done.eq(end)]

        values = self._normalize(m, group, job.result_fraction, reciprocals)
        latency = SELECT + values.latency
        m.submodules.heads = heads = EventDelay(16, latency, spacing=2)
        m.d.comb += [heads.i_valid.eq(header), heads.i.eq(Cat(job.tag, job.last_value_dim))]
        beat = delayed(m, Cat(step, row_end, end), latency, "beat")
        self._pack(m, heads, beat, values.results, results)
        return m

    def _store_reciprocals(self, m: Module) -> tuple[Value, memory.ReadPort]:
        """Keep the reciprocals of two query tiles; strobe when the last lane's is stored."""
        groups, width = self._groups, self._config.output_lanes
        entry = data.ArrayLayout(RECIPROCAL_BITS + len(self.length), width)
        m.submodules.reciprocals = store = memory.Memory(shape=entry, depth=2 * groups, init=[])
        write, read = store.write_port(granularity=1), store.read_port()

        lane, place = Signal(range(width)), Signal(range(2 * groups))
        lane_last = lane == width - 1
        with m.If(self.reciprocal_valid):
            m.d.sync += lane.eq(Mux(lane_last, 0, lane + 1))
            with m.If(lane_last):
                m.d.sync += place.eq(Mux(place == 2 * groups - 1, 0, place + 1))
        m.d.comb += write.addr.eq(place)
        for i in range(width):
            m.d.comb += [
                write.en[i].eq(self.reciprocal_valid & (lane == i)),
                write.data[i].eq(Cat(self.mantissa, self.length)),
            ]
        last = (place == groups - 1) | (place == 2 * groups - 1)
        return delayed(m, self.reciprocal_valid & lane_last & last, 1, "stored"), read

    def _read_pass(self, m: Module, job, ready: Value, credit: Signal, spend: Signal):
        """Walk over indices and groups of lanes, after a clock for the header."""
        config, groups = self._config, self._groups
        row_words = config.words(2 * config.query_lanes)
        busy, header, step = Signal(), Signal(), Signal()
        group = Signal(range(max(groups, 2)))
        words_left = Signal(range(config.max_head_dim * row_words + 1))
        word_start, row_end, end = Signal(), Signal(), Signal()
        m.d.comb += [
            header.eq(~busy & ready & (credit != 0)),
            step.eq(busy & ((credit != 0) | ~word_start)),
            word_start.eq((group & (self._per_word - 1)) == 0),
            row_end.eq(step & (group == groups - 1)),
            end.eq(row_end & (self.index == job.last_value_dim)),
            spend.eq(header | step & word_start),
        ]
        with m.If(header):
            m.d.sync += [busy.eq(1), words_left.eq((job.last_value_dim + 1) * row_words)]
        with m.If(step):
            m.d.sync += [group.eq(group + 1), words_left.eq(words_left - word_start)]
        with m.If(row_end):
            m.d.sync += [group.eq(0), self.index.eq(self.index + 1)]
        with m.If(end):
            m.d.sync += [busy.eq(0), self.index.eq(0), self.bank.eq(~self.bank)]

        # Neither the next tile's reciprocals nor its sums come sooner than this.
        timing = Timing(config)
        words = max((timing.probability + config.key_rows) // self._per_word - 1, 0)
        freed = Signal()
        certain = busy & ~freed & (words_left <= words) & (words_left <= credit)
        m.d.comb += self.bank_free.eq(certain | end & ~freed)
        m.d.sync += freed.eq((freed | certain) & ~end)
        return header, step, row_end, end, group

    def _normalize(self, m: Module, group: Signal, fraction: Value, read) -> Normalizer:
        """Select the group's outputs and reciprocals, `SELECT` clocks after its step."""
        groups, width = self._groups, self._config.output_lanes
        m.submodules.normalizer = normalizer = Normalizer(self._config)
        bank = delayed(m, self.bank, 1, "bank")
        group_1 = delayed(m, group, 1, "group")
        group_2 = delayed(m, group_1, 1, "group_beside_outputs")
        m.d.comb += [
            read.addr.eq(Mux(bank, groups, 0) + group_1),
            normalizer.result_fraction.eq(delayed(m, fraction, SELECT, "fraction")),
        ]
        for i in range(width):
            lanes = Array(self.outputs[g * width + i] for g in range(groups))
            m.d.sync += [
                normalizer.outputs[i].eq(lanes[group_2]),
                normalizer.mantissas[i].eq(read.data[i][:RECIPROCAL_BITS]),
                normalizer.lengths[i].eq(read.data[i][RECIPROCAL_BITS:]),
            ]
        return normalizer

    def _pack(self, m: Module, heads: EventDelay, beat: Value, values, results) -> None:
        """Collect groups to link words behind a header, and write them to the FIFO."""
        link, width = self._config.link_bits, RESULT_BITS * self._config.output_lanes
        step, row_end, end = beat
        place = Signal(range(max(self._per_word, 2)))
        word = Signal(link)
        full = row_end | (place == self._per_word - 1)
        fields = {
            "opcode": Const(Reply.RESULT, REPLY_FIELDS["opcode"]),
            "tag": heads.o[:8],
            "code": Const(0, REPLY_FIELDS["code"]),
            "last_value_dim": heads.o[8:],
        }
        write, last = Signal(), Signal()
        m.d.sync += [write.eq(heads.o_valid | step & full), last.eq(end)]
        with m.If(heads.o_valid):
            m.d.sync += word.eq(Cat(fields[name] for name in REPLY_FIELDS))
        with m.Elif(step):
            m.d.sync += place.eq(Mux(full, 0, place + 1))
            with m.If(place == 0):
                m.d.sync += word.eq(0)
            m.d.sync += word.word_select(place, width).eq(values.as_value())
        m.d.comb += [results.w_data.eq(Cat(word, last)), results.w_en.eq(write)]
