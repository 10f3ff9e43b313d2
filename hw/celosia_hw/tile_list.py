"""Lists of key tiles."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .config import AcceleratorConfig
from .payload import QUERY_BUFFERS
from .pipeline import delayed
from .ram import ram

__all__ = ["TileList"]

ENTRY_BITS = 16


class TileList(wiring.Component):
    """The key tiles of query tiles: offsets from the first tile, read one after the other.

    Latency four clocks from `start` or `advance` to the entry. There is no back-pressure.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    write, write_group, write_word, write_data : In
        Write strobe, the query buffer, the word of its list, and the link word.
    start, group : In
        Strobe: go to the first entry of this query buffer's list.
    advance : In(1)
        Strobe: go to the next entry.
    offset : Out
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._words = config.words(ENTRY_BITS // 8 * config.slots)
        super().__init__(
            {
                "write": In(1),
                "write_group": In(range(QUERY_BUFFERS)),
                "write_word": In(range(max(self._words, 2))),
                "write_data": In(config.link_bits),
                "start": In(1),
                "group": In(range(QUERY_BUFFERS)),
                "advance": In(1),
                "offset": Out(range(config.slots)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        per_word = self._config.link_bits // ENTRY_BITS
        bits = (per_word - 1).bit_length()
        storage = ram(self._config.link_bits, QUERY_BUFFERS * self._words)
        m.submodules.storage = storage
        write, read = storage.write_port(), storage.read_port()
        entry = Signal(range(self._words * per_word))
        group = Signal.like(self.group)
        m.d.sync += entry.eq(Mux(self.start, 0, entry + self.advance))
        with m.If(self.start):
            m.d.sync += group.eq(self.group)
        m.d.comb += [
            write.addr.eq(Mux(self.write_group, self._words, 0) + self.write_word),
            write.data.eq(self.write_data),
            write.en.eq(self.write),
            read.addr.eq(Mux(group, self._words, 0) + (entry >> bits)),
        ]
        place = delayed(m, entry[:bits], 2, "place")
        word = delayed(m, read.data, 1, "word")
        entries = Array(word.word_select(i, ENTRY_BITS) for i in range(per_word))
        m.d.sync += self.offset.eq(entries[place])
        return m
