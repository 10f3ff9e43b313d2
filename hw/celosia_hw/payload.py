"""Where the words of a payload go."""

from __future__ import annotations

import enum

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import ELEMENT_BITS, FACTOR_BITS, MASK_TILES, OUTPUT_PARTS, SUM_PARTS
from .config import AcceleratorConfig
from .protocol import interval_words, mask_tile_words

__all__ = ["INTERVAL_BITS", "QUERY_BUFFERS", "MemoryWrite", "PayloadWriter", "Target"]

QUERY_BUFFERS = 2
INTERVAL_BITS = 16
"""Bits of each end of an explicit key interval, two's complement."""


class Target(enum.IntEnum):
    """The memories, in the order in which payloads fill them."""

    KEY_FACTORS = 0
    VALUE_FACTORS = 1
    KEYS = 2
    VALUES = 3
    INTERVALS = 4
    QUERY_FACTORS = 5
    QUERIES = 6
    TILE_LIST = 7
    STATE_SUMS = 8
    STATE_OUTPUTS = 9
    MASK = 10
    BIAS = 11


class MemoryWrite(data.StructLayout):
    """A link word on its way into one of the memories.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    target : unsigned
        `Target`.
    row : unsigned
        Row of a key, value or query memory, of the outputs of a state, or of a bias tile.
    group : unsigned
        Group of a factor memory or list: the slot or the query buffer; place of a mask tile.
    word, part : unsigned
        Word of the row or group, and its part.
    single : 1
        Only one element or factor is written; `data` repeats it.
    element : unsigned
        Which.
    data : unsigned
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        super().__init__(
            {
                "target": range(len(Target)),
                "row": range(max(config.slots, QUERY_BUFFERS) * config.max_head_dim),
                "group": range(max(config.slots, QUERY_BUFFERS, MASK_TILES)),
                "word": range(max(*_words(config), 2)),
                "part": range(SUM_PARTS),
                "single": 1,
                "element": range(config.key_rows),
                "data": config.link_bits,
            }
        )


def _words(config: AcceleratorConfig) -> list[int]:
    """Link words of a row of each target; of the longest list of tiles."""
    rows, lanes = config.key_rows, config.query_lanes
    return [
        config.words(2 * rows),
        config.words(2 * rows),
        config.words(rows),
        config.words(rows),
        interval_words(config),
        config.words(2 * lanes),
        config.words(lanes),
        config.words(2 * config.slots),
        config.words(2 * lanes),
        config.words(2 * lanes),
        mask_tile_words(config),
        config.words(2 * lanes),
    ]


def _counter(
    m: Module, name: str, last: Value, step: Value, reload: Value
) -> tuple[Signal, Signal]:
    """Count from 0 to the value that `last` had at `reload`, over and over.

    Returns
    -------
    count, is_last : Signal
        Both registers.
    """
    count = Signal(len(last), name=name)
    held = Signal(len(last), name=f"last_{name}", reset_less=True)
    is_last = Signal(name=f"is_last_{name}")
    with m.If(reload):
        m.d.sync += [count.eq(0), held.eq(last), is_last.eq(last == 0)]
    with m.Elif(step):
        m.d.sync += [
            count.eq(Mux(is_last, 0, count + 1)),
            is_last.eq(Mux(is_last, held == 0, count + 1 == held)),
        ]
    return count, is_last


class PayloadWriter(wiring.Component):
    """Walks over the memories as the words of a payload come in.

    A word every clock, of a single key a byte; its write is one clock later.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    start : In(1)
        Strobe: a payload may begin two clocks later. `present` comes beside it, the following a
        clock later; those from `present` on hold during the payload.
    group, base : In
        First slot or query buffer, and the row where it starts.
    last_tile : In
        Tiles of keys, or of masks, less one.
    present : In
        The targets of this payload, one bit each.
    single, element : In
        The payload is a single key, and its place in the tile.
    last_dim, last_value_dim : In
        Head dimensions, each less one.
    last_list_word : In
        Words of the tile list, less one.
    mask_place : In
        Where the mask tile at hand goes.
    is_mask, is_state : Out(1)
        The word at hand belongs to a mask tile, to a state.
    step, data : In
        Strobe: a word is at hand; and the word.
    take : Out(1)
        The step is the word's last.
    mask_end, job_end, end : Out(1)
        The word at hand is the last of a mask tile, of all but mask tiles, of the payload.
    write_valid, write : Out
        Strobe and `MemoryWrite`.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        layout = MemoryWrite(config)
        dims = range(config.max_head_dim)
        super().__init__(
            {
                "start": In(1),
                "group": In(layout["group"].shape),
                "base": In(layout["row"].shape),
                "last_tile": In(range(config.slots)),
                "present": In(len(Target)),
                "single": In(1),
                "element": In(range(config.key_rows)),
                "last_dim": In(dims),
                "last_value_dim": In(dims),
                "last_list_word": In(layout["word"].shape),
                "mask_place": In(range(MASK_TILES)),
                "is_mask": Out(1),
                "is_state": Out(1),
                "step": In(1),
                "data": In(config.link_bits),
                "take": Out(1),
                "mask_end": Out(1),
                "job_end": Out(1),
                "end": Out(1),
                "write_valid": Out(1),
                "write": Out(layout),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self._config
        # What is still to come in this tile or, after its last, in a further one.
        pending = Signal(len(Target))
        is_last = Signal()
        again = Signal(len(Target))
        masks = 1 << Target.MASK | 1 << Target.BIAS
        m.d.comb += again.eq(Mux(self.present[Target.KEYS], self.present, self.present & masks))
        next_target = self._first(m, pending)
        remaining = Signal(len(Target))
        m.d.comb += remaining.eq(pending & (pending - 1))

        # What is known of a target, and whether the place at hand is a last one, are registers, as
        # the acceptance of a word depends on them.
        target = Signal(Target)
        by_element = Signal()
        ends_job = Signal()
        target_end = Signal()
        start = Signal()
        m.d.sync += start.eq(self.start)
        reload = start | self.step & target_end
        with m.If(self.start):
            m.d.sync += pending.eq(self.present)
        with m.Elif(reload):
            m.d.sync += [
                target.eq(next_target),
                pending.eq(Mux(remaining == 0, again, remaining)),
                is_last.eq(remaining == 0),
                by_element.eq(
                    self.single & ((next_target == Target.KEYS) | (next_target == Target.VALUES))
                ),
                ends_job.eq((next_target < Target.MASK) & ~remaining[: Target.MASK].any()),
                self.is_mask.eq(next_target >= Target.MASK),
                self.is_state.eq(
                    (next_target == Target.STATE_SUMS) | (next_target == Target.STATE_OUTPUTS)
                ),
            ]
        words, rows, parts = self._geometry(next_target)
        part, part_end = _counter(m, "part", parts, self.step, reload)
        # A single element or factor is in one word.
        words = Mux(self.single, 0, words)
        word, word_end = _counter(m, "word", words, self.step & part_end, reload)
        row, row_end = _counter(m, "row", rows, self.step & part_end & word_end, reload)

        elements_per_word = config.link_bits // ELEMENT_BITS
        in_word = row[: (elements_per_word - 1).bit_length()]
        group = Signal.like(self.group)
        base = Signal.like(self.base)
        tiles_left = Signal.like(self.last_tile)
        is_last_tile = Signal()
        tile_end = Signal()
        m.d.comb += [
            target_end.eq(part_end & word_end & row_end),
            tile_end.eq(target_end & is_last),
            self.take.eq(~by_element | target_end | (in_word == elements_per_word - 1)),
            self.mask_end.eq(tile_end & self.is_mask),
            self.job_end.eq(target_end & ends_job),
            self.end.eq(tile_end & is_last_tile),
        ]
        with m.If(start):
            m.d.sync += [
                group.eq(self.group),
                base.eq(self.base),
                tiles_left.eq(self.last_tile),
                is_last_tile.eq(self.last_tile == 0),
            ]
        with m.Elif(self.step & tile_end):
            m.d.sync += [
                group.eq(group + 1),
                base.eq(base + config.max_head_dim),
                tiles_left.eq(tiles_left - 1),
                is_last_tile.eq(tiles_left == 1),
            ]

        m.d.sync += [
            self.write_valid.eq(self.step),
            self.write.target.eq(target),
            # Biases and outputs of a state are not rows of a slot or buffer.
            self.write.row.eq(Mux(target >= Target.STATE_SUMS, 0, base) + row),
            self.write.group.eq(Mux(self.is_mask, self.mask_place, group)),
            self.write.word.eq(Mux(self.single, self._single_word(by_element), word)),
            self.write.part.eq(part),
            self.write.single.eq(self.single),
            self.write.element.eq(self.element),
            self.write.data.eq(self._data(by_element, in_word)),
        ]
        return m

    def _first(self, m: Module, present: Value) -> Signal:
        """The lowest of some targets."""
        first = Signal(Target)
        for candidate in reversed(Target):
            with m.If(present[candidate]):
                m.d.comb += first.eq(candidate)
        return first

    def _geometry(self, target: Value) -> tuple[Value, Value, Value]:
        """Words of a row, rows and parts of a target, each less one."""
        config = self._config
        words: list = [Const(count - 1) for count in _words(config)]
        words[Target.TILE_LIST] = self.last_list_word
        rows: list = [Const(0)] * len(Target)
        rows[Target.KEYS] = rows[Target.QUERIES] = self.last_dim
        rows[Target.VALUES] = rows[Target.STATE_OUTPUTS] = self.last_value_dim
        rows[Target.BIAS] = Const(config.key_rows - 1)
        parts = [Const(0)] * len(Target)
        parts[Target.STATE_SUMS] = Const(SUM_PARTS - 1)
        parts[Target.STATE_OUTPUTS] = Const(OUTPUT_PARTS - 1)
        return Array(words)[target], Array(rows)[target], Array(parts)[target]

    def _single_word(self, by_element: Value) -> Value:
        """The word of a single element or factor."""
        bits = self._config.link_bits
        element_shift = (bits // ELEMENT_BITS - 1).bit_length()
        factor_shift = (bits // FACTOR_BITS - 1).bit_length()
        return Mux(by_element, self.element >> element_shift, self.element >> factor_shift)

    def _data(self, by_element: Value, in_word: Value) -> Value:
        """The word, or copies of the one element or factor of it."""
        bits = self._config.link_bits
        count = bits // ELEMENT_BITS
        elements = Array(self.data.word_select(i, ELEMENT_BITS) for i in range(count))
        factor = self.data[:FACTOR_BITS].replicate(bits // FACTOR_BITS)
        element = Cat(elements[in_word]).replicate(count)
        return Mux(self.single, Mux(by_element, element, factor), self.data)
