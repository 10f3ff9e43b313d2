"""Memories of the link's words: rows of elements and the factors beside them."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import ELEMENT_BITS, FACTOR_BITS
from .config import AcceleratorConfig
from .pipeline import delayed
from .ram import ram
from .timing import FACTOR_READ

__all__ = ["FactorMemory", "RowMemory"]


class RowMemory(wiring.Component):
    """Block RAM of rows of int8 elements, written a link word at a time.

    Read latency two clocks, a row every clock; what is written can be read two clocks later. A row
    that is wider than the link is kept in several memories, one per word of the row. A single
    element of a row can be written.

    Parameters
    ----------
    config : AcceleratorConfig
    elements : int
        Elements of a row.
    depth : int
        Rows.

    Members
    -------
    write, write_row, write_word, write_data : In
        Write strobe, the row, the word of the row, and the link word.
    write_single, write_element : In
        Write only this element of the row, from its place in the word.
    read_row : In
    row : Out
    """

    def __init__(self, config: AcceleratorConfig, elements: int, depth: int) -> None:
        self._config = config
        self._elements = elements
        self._depth = depth
        super().__init__(
            {
                "write": In(1),
                "write_row": In(range(depth)),
                "write_word": In(range(max(config.words(elements), 2))),
                "write_data": In(config.link_bits),
                "write_single": In(1),
                "write_element": In(range(elements)),
                "read_row": In(range(depth)),
                "row": Out(data.ArrayLayout(signed(ELEMENT_BITS), elements)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        width, link = self._elements * ELEMENT_BITS, self._config.link_bits
        # Block RAM is all over the chip. Registers that change for this memory alone are not merged
        # with those of others, which would lead everywhere.
        row = Signal.like(self.write_row, name="row_1", reset_less=True)
        written = Signal.like(self.write_data, name="written", reset_less=True)
        with m.If(self.write):
            m.d.sync += [row.eq(self.write_row), written.eq(self.write_data)]
        for word, start in enumerate(range(0, width, link)):
            bits = min(link, width - start)
            storage = ram(bits, self._depth)
            m.submodules[f"word_{word}"] = storage
            write = storage.write_port(granularity=ELEMENT_BITS)
            read = storage.read_port()
            first = start // ELEMENT_BITS
            chosen = Cat(
                ~self.write_single | (self.write_element == first + element)
                for element in range(bits // ELEMENT_BITS)
            )
            here = self.write & (self.write_word == word)
            m.d.comb += [
                write.addr.eq(row),
                write.data.eq(written),
                write.en.eq(delayed(m, Mux(here, chosen, 0), 1, f"enable_{word}", has_events=True)),
                read.addr.eq(self.read_row),
            ]
            part = self.row.as_value()[start : start + bits]
            m.d.comb += part.eq(delayed(m, read.data, 1, f"read_{word}"))
        return m


class FactorMemory(wiring.Component):
    """Groups of numbers, kept as words and read one number a clock.

    Latency `FACTOR_READ` clocks from `start` to the first number of the group; throughput one a
    clock, also from group to group. There is no back-pressure. What is written can be read two
    clocks later. A single number of a group can be written.

    Parameters
    ----------
    config : AcceleratorConfig
    factors : int
        Numbers of a group.
    groups : int
    bits : int
        Of a number: a power of two.
    word_bits : int, optional
        Bits of a word: a multiple of `bits`. A link word if absent.

    Members
    -------
    write, write_group, write_word, write_data : In
        Write strobe, the group, the word of the group, and the word.
    write_single, write_element : In
        Write only this number of the group, from its place in the word.
    start, group : In
        Read a group; no sooner than `factors` clocks after the last.
    factor : Out
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        factors: int,
        groups: int,
        bits: int = FACTOR_BITS,
        word_bits: int | None = None,
    ) -> None:
        self._bits = bits
        self._word_bits = config.link_bits if word_bits is None else word_bits
        self._groups = groups
        self._words = -(-factors * bits // self._word_bits)
        super().__init__(
            {
                "write": In(1),
                "write_group": In(range(groups)),
                "write_word": In(range(max(self._words, 2))),
                "write_data": In(self._word_bits),
                "write_single": In(1),
                "write_element": In(range(factors)),
                "start": In(1),
                "group": In(range(groups)),
                "factor": Out(bits),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        words, bits, per_word = self._words, self._bits, self._word_bits // self._bits
        storage = ram(self._word_bits, self._groups * words)
        m.submodules.storage = storage
        write, read = storage.write_port(granularity=bits), storage.read_port()
        number = self.write_element % per_word
        chosen = Cat(~self.write_single | (number == i) for i in range(per_word))
        # As in `RowMemory`.
        place = Signal.like(write.addr, name="place", reset_less=True)
        written = Signal.like(self.write_data, name="written", reset_less=True)
        with m.If(self.write):
            m.d.sync += [
                place.eq(self.write_group * words + self.write_word),
                written.eq(self.write_data),
            ]
        enables = Mux(self.write, chosen, 0)
        m.d.comb += [
            write.addr.eq(place),
            write.data.eq(written),
            write.en.eq(delayed(m, enables, 1, "write_enable", has_events=True)),
        ]

        # The event reads the first word at once; afterwards the address runs one factor ahead.
        lane = Signal(range(max(per_word, 2)))
        address = Signal.like(read.addr)
        m.d.comb += read.addr.eq(Mux(self.start, self.group * words, address))
        with m.If(self.start):
            next_lane = 1 % per_word
            m.d.sync += [lane.eq(next_lane), address.eq(read.addr + (next_lane == 0))]
        with m.Else():
            wrap = lane == per_word - 1
            m.d.sync += [lane.eq(Mux(wrap, 0, lane + 1)), address.eq(address + wrap)]
        select = delayed(m, Mux(self.start, 0, lane), FACTOR_READ - 1, "select")
        word = delayed(m, read.data, FACTOR_READ - 2, "word")
        values = Array(word.word_select(i, bits) for i in range(per_word))
        m.d.sync += self.factor.eq(values[select])
        return m
