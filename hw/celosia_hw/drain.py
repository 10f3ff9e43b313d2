"""From finished accumulators to RESULT packets."""

from __future__ import annotations

import enum
from typing import NamedTuple

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .arithmetic import (
    MAX_RESULT_FRACTION,
    OUTPUT_PARTS,
    PART_BITS,
    PRODUCT_PARTS,
    RECIPROCAL_BITS,
    RESULT_BITS,
    SUM_PARTS,
    Widths,
)
from .config import AcceleratorConfig
from .normalizer import Normalizer
from .packets import PacketWord
from .pipeline import EventDelay, delayed
from .protocol import REPLY_FIELDS, Reply
from .ram import ram
from .register_slice import RegisterSlice
from .timing import Timing

__all__ = ["Drain", "DrainJob"]

FIFO_WORDS = 64
"""Words of the result FIFO; a bank of accumulators is handed back when its rest fits there."""
SELECT = 5
"""Clocks from an accumulator's index to the values of a group of lanes."""


_REPLIES = (Reply.RESULT, Reply.STATE, Reply.PRODUCT)
"""Of each `DrainKind`."""


class _Place(NamedTuple):
    """Where in a packet the read pass is."""

    group: Value
    part: Value
    in_sums: Value


class _Store(NamedTuple):
    """A memory of one number a lane; `complete`: that of the last lane has been written."""

    complete: Value
    read: memory.ReadPort


def _part(number: Value, part: int) -> Value:
    """16 bits of a number, its sign beyond its width."""
    start = part * PART_BITS
    bits = [number[min(bit, len(number) - 1)] for bit in range(start, start + PART_BITS)]
    return Cat(bits).as_signed()


class DrainKind(enum.IntEnum):
    """What is made of finished accumulators."""

    RESULT = 0
    STATE = 1
    PRODUCT = 2


class DrainJob(data.StructLayout):
    """A finished query tile.

    Members
    -------
    tag, last_value_dim : unsigned(8)
        For the reply's header; the second is the number of rows less one.
    result_fraction : unsigned
    kind : unsigned
        `DrainKind`.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "tag": 8,
                "last_value_dim": 8,
                "result_fraction": range(MAX_RESULT_FRACTION + 1),
                "kind": 2,
            }
        )


class Drain(wiring.Component):
    """Reads finished accumulators and makes RESULT, STATE or PRODUCT packets.

    Results are divided by the row sums; states and products go through the same pipeline in parts
    of 16 bits, as they are. Throughput: a group of `normalizer_lanes` results or parts a clock, and
    two clocks more for each query tile. Back-pressure on `result` never reaches the arrays:
    accumulators are read only as far as the result FIFO has room for them.
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
    total_valid, total, maximum : In
        The row sums themselves and their maxima, in the same order.
    bank, index : Out
        Accumulator to read in all lanes.
    outputs : In
        It, three clocks later.
    bank_free : Out(1)
        Strobe: a bank of accumulators is handed back.
    tile_done : Out(1)
        Strobe: a query tile has been read out.
    sent : Out(1)
        All that has been read out has been sent.
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
                "total_valid": In(1),
                "total": In(widths.total),
                "maximum": In(signed(widths.maximum)),
                "bank": Out(1),
                "index": Out(range(config.accumulator_depth)),
                "outputs": In(data.ArrayLayout(signed(widths.accumulator), config.query_lanes)),
                "bank_free": Out(1),
                "tile_done": Out(1),
                "sent": Out(1),
                "result": Out(stream.Signature(PacketWord(config.link_bytes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.jobs = jobs = fifo.SyncFIFOBuffered(width=DrainJob().size, depth=4)
        m.d.comb += [jobs.w_data.eq(self.job.payload), jobs.w_en.eq(self.job.valid)]
        m.submodules.results = results = fifo.SyncFIFOBuffered(
            width=PacketWord(self._config.link_bytes).size, depth=FIFO_WORDS
        )
        # The way from block RAM to the stream is long enough without what takes the words.
        m.submodules.sender = sender = RegisterSlice(PacketWord(self._config.link_bytes))
        connect(m, sender.o, flipped(self.result))
        m.d.comb += [
            sender.i.payload.eq(results.r_data),
            sender.i.valid.eq(results.r_rdy),
            results.r_en.eq(sender.i.ready),
        ]
        job = data.View(DrainJob(), jobs.r_data)

        # Words for which the FIFO surely has room.
        credit = Signal(range(FIFO_WORDS + 1), init=FIFO_WORDS)
        spend = Signal()
        m.d.sync += credit.eq(credit - spend + (results.r_rdy & results.r_en))
        # A clock late, in which one is spent; the last one may stay unused.
        has_credit = delayed(m, credit > 1, 1, "has_credit")
        m.d.comb += self.sent.eq((credit == FIFO_WORDS) & ~sender.o.valid)

        is_product = job.kind == DrainKind.PRODUCT
        reciprocals = self._store(
            *(m, "reciprocals", self.reciprocal_valid, Cat(self.mantissa, self.length))
        )
        sums = self._store(m, "sums", self.total_valid, Cat(self.total, self.maximum))
        tiles = Signal(range(4))
        # The clock after the end, which is known late.
        has_ended = Signal()
        header, step, word_end, end, place = self._read_pass(
            m, job, jobs.r_rdy & ~has_ended & (is_product | (tiles != 0)), credit, has_credit, spend
        )
        m.d.sync += has_ended.eq(end)
        m.d.sync += tiles.eq(tiles + reciprocals.complete - (end & ~is_product))
        m.d.comb += [jobs.r_en.eq(has_ended), self.tile_done.eq(has_ended)]

        values = self._normalize(m, job, place, end & ~is_product, reciprocals.read, sums.read)
        latency = SELECT + values.latency
        m.submodules.heads = heads = EventDelay(18, latency, spacing=2)
        m.d.comb += [
            heads.i_valid.eq(header),
            heads.i.eq(Cat(job.tag, job.last_value_dim, job.kind)),
        ]
        beat = delayed(m, Cat(step, word_end, end), latency, "beat", has_events=True)
        self._pack(m, heads, beat, values.results, results)
        return m

    def _store(self, m: Module, name: str, valid: Value, number: Value) -> _Store:
        """Keep a number of each lane for two query tiles."""
        groups, width = self._groups, self._config.output_lanes
        entry = data.ArrayLayout(len(number), width)
        m.submodules[name] = store = ram(entry, 2 * groups)
        write, read = store.write_port(granularity=1), store.read_port()

        lane = Signal(range(max(width, 2)), name=f"{name}_lane")
        place = Signal(range(2 * groups), name=f"{name}_place")
        lane_last = lane == width - 1
        with m.If(valid):
            m.d.sync += lane.eq(Mux(lane_last, 0, lane + 1))
            with m.If(lane_last):
                m.d.sync += place.eq(Mux(place == 2 * groups - 1, 0, place + 1))
        m.d.comb += write.addr.eq(place)
        for i in range(width):
            m.d.comb += [write.en[i].eq(valid & (lane == i)), write.data[i].eq(number)]
        last = (place == groups - 1) | (place == 2 * groups - 1)
        return _Store(delayed(m, valid & lane_last & last, 1, f"{name}_stored"), read)

    def _read_pass(self, m: Module, job, ready: Value, credit, has_credit, spend: Signal):
        """Walk over rows, link words, parts and groups of lanes, after a clock for the header."""
        config, groups = self._config, self._groups
        row_words = config.words(2 * config.query_lanes)
        busy = Signal()
        header = Signal()
        step = Signal()
        first_group = Signal(range(max(groups, 2)))
        sub = Signal(range(max(self._per_word, 2)))
        part = Signal(range(SUM_PARTS))
        in_sums = Signal()
        words_left = Signal(range(config.accumulator_depth * row_words + 1))
        word_end = Signal()
        row_end = Signal()
        end = Signal()
        is_last_row = Signal()
        group = Signal.like(first_group)
        # Whether the group is its word's first or last, and that and the part their row's last, is
        # known before they come.
        is_word_first = Signal(init=1)
        is_word_last = Signal(init=groups == 1 or self._per_word == 1)
        is_row_last = Signal(init=groups == 1)
        is_part_last = Signal()
        is_result = job.kind == DrainKind.RESULT
        outputs = Mux(job.kind == DrainKind.STATE, OUTPUT_PARTS - 1, PRODUCT_PARTS - 1)
        last_part = Mux(is_result, 0, Mux(in_sums, SUM_PARTS - 1, outputs))
        m.d.comb += [
            header.eq(~busy & ready & has_credit),
            step.eq(busy & (has_credit | ~is_word_first)),
            word_end.eq(step & is_word_last),
            row_end.eq(word_end & is_part_last & is_row_last),
            end.eq(row_end & is_last_row),
            spend.eq(header | step & is_word_first),
        ]
        with m.If(header):
            m.d.sync += [
                busy.eq(1),
                is_part_last.eq(is_result),
                in_sums.eq(job.kind == DrainKind.STATE),
                is_last_row.eq((job.kind != DrainKind.STATE) & (job.last_value_dim == 0)),
                words_left.eq((job.last_value_dim + 1) * row_words),
            ]
        next_sub = Signal.like(sub)
        next_first = Signal.like(group)
        next_group = Signal.like(group)
        after_word = Mux(is_row_last, 0, first_group + self._per_word)
        m.d.comb += [
            next_sub.eq(Mux(is_word_last, 0, sub + 1)),
            next_first.eq(Mux(is_part_last, after_word, first_group)),
            next_group.eq(Mux(is_word_last, next_first, group + 1)),
        ]
        with m.If(step):
            m.d.sync += [
                sub.eq(next_sub),
                group.eq(next_group),
                is_word_first.eq(next_sub == 0),
                is_word_last.eq((next_sub == self._per_word - 1) | (next_group == groups - 1)),
                is_row_last.eq(next_group == groups - 1),
                words_left.eq(words_left - is_word_first),
            ]
        with m.If(word_end):
            m.d.sync += [
                part.eq(Mux(is_part_last, 0, part + 1)),
                is_part_last.eq(Mux(is_part_last, is_result, part + 1 == last_part)),
                first_group.eq(next_first),
            ]
        with m.If(row_end):
            m.d.sync += [
                in_sums.eq(0),
                self.index.eq(self.index + ~in_sums),
                is_last_row.eq(self.index + ~in_sums == job.last_value_dim),
            ]
        with m.If(end):
            m.d.sync += [busy.eq(0), self.index.eq(0), self.bank.eq(~self.bank)]

        # Neither the next tile's reciprocals nor its sums come sooner than this.
        timing = Timing(config)
        words = max((timing.probability + config.key_rows) // self._per_word - 1, 0)
        freed = Signal()
        certain = busy & is_result & ~freed & (words_left <= words) & (words_left < credit)
        m.d.comb += self.bank_free.eq(certain | end & ~freed)
        m.d.sync += freed.eq((freed | certain) & ~end)
        return header, step, word_end, end, _Place(group, part, in_sums)

    def _normalize(self, m: Module, job, place: _Place, advance: Value, read, sums) -> Normalizer:
        """Select the group's outputs and reciprocals, `SELECT` clocks after its step.

        A part goes through unchanged as a quotient of `PART_BITS` bits by one.
        """
        groups, width, widths = self._groups, self._config.output_lanes, Widths(self._config)
        m.submodules.normalizer = normalizer = Normalizer(self._config)
        # Products have no row sums, so these have banks of their own.
        sum_bank = Signal()
        m.d.sync += sum_bank.eq(sum_bank ^ advance)
        whole = delayed(m, job.kind == DrainKind.RESULT, 4, "is_result")
        in_sums_3 = delayed(m, place.in_sums, 3, "in_sums")
        in_sums_4 = delayed(m, in_sums_3, 1, "in_sums_beside_parts")
        part = delayed(m, place.part, 4, "part")
        group_2 = delayed(m, place.group, 2, "group")
        group_3 = delayed(m, group_2, 1, "group_beside_outputs")
        address = Mux(delayed(m, sum_bank, 2, "sum_bank"), groups, 0) + group_2
        fraction = Mux(job.kind == DrainKind.RESULT, job.result_fraction, 0)
        m.d.comb += [
            read.addr.eq(delayed(m, address, 1, "reciprocal_address")),
            sums.addr.eq(address),
            normalizer.result_fraction.eq(delayed(m, fraction, SELECT, "fraction")),
        ]
        one = Const(1 << (RECIPROCAL_BITS - 1), RECIPROCAL_BITS)
        for i in range(width):
            lanes = Array(self.outputs[g * width + i] for g in range(groups))
            output = lanes[group_3]
            total, maximum = sums.data[i][: widths.total], sums.data[i][widths.total :]
            chosen = Mux(in_sums_3, Cat(total, Const(0, 1)).as_signed(), output.as_signed())
            wide = delayed(m, chosen, 1, f"wide_{i}")
            last = delayed(m, maximum.as_signed(), 1, f"maximum_{i}")
            parts = Array(_part(wide, p) for p in range(SUM_PARTS - 1))
            shown = Mux(in_sums_4 & (part == SUM_PARTS - 1), last, parts[part])
            m.d.sync += [
                normalizer.outputs[i].eq(Mux(whole, wide, shown)),
                normalizer.mantissas[i].eq(Mux(whole, read.data[i][:RECIPROCAL_BITS], one)),
                normalizer.lengths[i].eq(Mux(whole, read.data[i][RECIPROCAL_BITS:], 0)),
            ]
        return normalizer

    def _pack(self, m: Module, heads: EventDelay, beat: Value, values, results) -> None:
        """Collect groups to link words behind a header, and write them to the FIFO."""
        link, width = self._config.link_bits, RESULT_BITS * self._config.output_lanes
        step, full, end = beat
        place = Signal(range(max(self._per_word, 2)))
        word = Signal(link)
        fields = {
            "opcode": Array(Const(reply, REPLY_FIELDS["opcode"]) for reply in _REPLIES)[
                heads.o[16:]
            ],
            "tag": heads.o[:8],
            "code": Const(0, REPLY_FIELDS["code"]),
            "last_value_dim": heads.o[8:16],
        }
        write = Signal()
        last = Signal()
        m.d.sync += [write.eq(heads.o_valid | step & full), last.eq(end)]
        with m.If(heads.o_valid):
            m.d.sync += word.eq(Cat(fields[name] for name in REPLY_FIELDS))
        with m.Elif(step):
            m.d.sync += place.eq(Mux(full, 0, place + 1))
            with m.If(place == 0):
                m.d.sync += word.eq(0)
            m.d.sync += word.word_select(place, width).eq(values.as_value())
        m.d.comb += [results.w_data.eq(Cat(word, last)), results.w_en.eq(write)]
