"""Memories of the link's words: rows of elements and the factors beside them."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from .arithmetic import ELEMENT_BITS, FACTOR_BITS
from .config import AcceleratorConfig
from .pipeline import delayed

__all__ = ["FactorMemory", "RowMemory"]


class RowMemory(wiring.Component):
    """Block RAM of rows of int8 elements, written a link word at a time.

    Read latency two clocks, a row every clock. A row that is wider than the link is kept in
    several memories, one per word of the row.

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
                "read_row": In(range(depth)),
                "row": Out(data.ArrayLayout(signed(ELEMENT_BITS), elements)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        width, link = self._elements * ELEMENT_BITS, self._config.link_bits
        for word, start in enumerate(range(0, width, link)):
            bits = min(link, width - start)
            storage = memory.Memory(shape=bits, depth=self._depth, init=[])
            m.submodules[f"word_{word}"] = storage
            write, read = storage.write_port(), storage.read_port()
            m.d.comb += [
                write.addr.eq(self.write_row),
                write.data.eq(self.write_data),
                write.en.eq(self.write & (self.write_word == word)),
                read.addr.eq(self.read_row),
            ]
            m.d.sync += self.row.as_value()[start : start + bits].eq(read.data)
        return m


class FactorMemory(wiring.Component):
    """Groups of factors, kept as link words and read one factor a clock.

    Latency two clocks from `start` to the first factor of the group; throughput one factor a
    clock, also from group to group. There is no back-pressure.

    Parameters
    ----------
    config : AcceleratorConfig
    factors : int
        Factors of a group.
    groups : int

    Members
    -------
    write, write_group, write_word, write_data : In
        Write strobe, the group, the word of the group, and the link word.
    start, group : In
        Read a group; no sooner than `factors` clocks after the last.
    factor : Out
    """

    def __init__(self, config: AcceleratorConfig, factors: int, groups: int) -> None:
        self._config = config
        self._factors = factors
        self._groups = groups
        self._words = config.words(factors * FACTOR_BITS // 8)
        super().__init__(
            {
                "write": In(1),
                "write_group": In(range(groups)),
                "write_word": In(range(max(self._words, 2))),
                "write_data": In(config.link_bits),
                "start": In(1),
                "group": In(range(groups)),
                "factor": Out(FACTOR_BITS),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        words, per_word = self._words, self._config.link_bits // FACTOR_BITS
        storage = memory.Memory(shape=self._config.link_bits, depth=self._groups * words, init=[])
        m.submodules.storage = storage
        write, read = storage.write_port(), storage.read_port()
        m.d.comb += [
            write.addr.eq(self.write_group * words + self.write_word),
            write.data.eq(self.write_data),
            write.en.eq(self.write),
        ]

        # The event reads the first word at once; afterwards the address runs one factor ahead.
        lane = Signal(range(per_word))
        address = Signal.like(read.addr)
        m.d.comb += read.addr.eq(Mux(self.start, self.group * words, address))
        with m.If(self.start):
            next_lane = 1 % per_word
            m.d.sync += [lane.eq(next_lane), address.eq(read.addr + (next_lane == 0))]
        with m.Else():
            m.d.sync += lane.eq(lane + 1)
            with m.If(lane == per_word - 1):
                m.d.sync += address.eq(address + 1)
        select = delayed(m, Mux(self.start, 0, lane), 1, "select")
        values = Array(read.data.word_select(i, FACTOR_BITS) for i in range(per_word))
        m.d.sync += self.factor.eq(values[select])
        return m
