"""Where the words of a payload go."""

from __future__ import annotations

import enum

from amaranth.hdl import Array, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from .config import AcceleratorConfig

__all__ = ["QUERY_BUFFERS", "MemoryWrite", "PayloadWriter", "Target"]

QUERY_BUFFERS = 2


class Target(enum.IntEnum):
    """The memories, in the order in which payloads fill them."""

    KEY_FACTORS = 0
    VALUE_FACTORS = 1
    KEYS = 2
    VALUES = 3
    QUERY_FACTORS = 4
    QUERIES = 5


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
        Row of a key, value or query memory.
    group : unsigned
        Group of a factor memory: the slot or the query buffer.
    word : unsigned
        Word of the row or group.
    data : unsigned
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        widest = max(config.key_rows, config.query_lanes)
        super().__init__(
            {
                "target": range(len(Target)),
                "row": range(max(config.slots, QUERY_BUFFERS) * config.max_head_dim),
                "group": range(max(config.slots, QUERY_BUFFERS)),
                "word": range(max(config.words(2 * widest), 2)),
                "data": config.link_bits,
            }
        )


class PayloadWriter(wiring.Component):
    """Walks over the memories as the words of a LOAD's or an ATTEND's payload come in.

    A word every clock; its write is one clock later.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    start : In(1)
        Strobe: a payload begins; the following four are beside it.
    queries : In(1)
        The payload is a query tile, and not key tiles.
    group, base : In
        First slot or query buffer, and the row where it starts.
    last_tile, last_dim, last_value_dim : In
        Tiles and head dimensions, each less one; they hold during the payload.
    take, data : In
        Strobe: a word; and the word.
    end : Out(1)
        The word at hand is the payload's last.
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
                "queries": In(1),
                "group": In(layout["group"].shape),
                "base": In(layout["row"].shape),
                "last_tile": In(range(config.slots)),
                "last_dim": In(dims),
                "last_value_dim": In(dims),
                "take": In(1),
                "data": In(config.link_bits),
                "end": Out(1),
                "write_valid": Out(1),
                "write": Out(layout),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self._config
        rows, lanes = config.key_rows, config.query_lanes
        target, row = Signal(Target), Signal(range(config.max_head_dim))
        word, group = Signal.like(self.write.word), Signal.like(self.group)
        base, tiles_left = Signal.like(self.base), Signal.like(self.last_tile)

        key_words, lane_words = config.words(rows) - 1, config.words(lanes) - 1
        last_words = Array(
            Const(words, len(word))
            for words in (
                config.words(2 * rows) - 1,
                config.words(2 * rows) - 1,
                key_words,
                key_words,
                config.words(2 * lanes) - 1,
                lane_words,
            )
        )
        no_rows = Const(0, len(row))
        dim, value_dim = self.last_dim, self.last_value_dim
        last_rows = Array([no_rows, no_rows, dim, value_dim, no_rows, dim])

        row_end, target_end, tile_end = Signal(), Signal(), Signal()
        tile_last = Mux(self.queries, Target.QUERIES, Target.VALUES)
        m.d.comb += [
            row_end.eq(word == last_words[target]),
            target_end.eq(row_end & (row == last_rows[target])),
            tile_end.eq(target_end & (target == tile_last)),
            self.end.eq(tile_end & (tiles_left == 0)),
        ]
        with m.If(self.take):
            m.d.sync += word.eq(Mux(row_end, 0, word + 1))
            with m.If(row_end):
                m.d.sync += row.eq(Mux(target_end, 0, row + 1))
            with m.If(target_end):
                m.d.sync += target.eq(target + 1)
            with m.If(tile_end):
                m.d.sync += [
                    target.eq(Target.KEY_FACTORS),
                    group.eq(group + 1),
                    base.eq(base + config.max_head_dim),
                    tiles_left.eq(tiles_left - 1),
                ]
        with m.If(self.start):
            m.d.sync += [
                target.eq(Mux(self.queries, Target.QUERY_FACTORS, Target.KEY_FACTORS)),
                row.eq(0),
                word.eq(0),
                group.eq(self.group),
                base.eq(self.base),
                tiles_left.eq(Mux(self.queries, 0, self.last_tile)),
            ]

        m.d.sync += [
            self.write_valid.eq(self.take),
            self.write.target.eq(target),
            self.write.row.eq(base + row),
            self.write.group.eq(group),
            self.write.word.eq(word),
            self.write.data.eq(self.data),
        ]
        return m
