"""Packets in the order in which they are sent, and what becomes of the replies."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from celosia_hw.config import AcceleratorConfig
from celosia_hw.protocol import (
    COMMAND_BYTES,
    REPLY_BYTES,
    Reply,
    encode_header,
    result_tile_words,
    state_words,
)

from .packing import padded

__all__ = ["Packet", "PacketList", "Program", "Tile"]


@dataclass(frozen=True)
class Packet:
    """A command without its tag.

    Parameters
    ----------
    layout, fields : dict
        Of the header.
    payload : bytes
        Whole link words.
    key_tiles : int
        That it loads or reads.
    rows : (n,) int64 ndarray or None
        Rows of the result that its reply belongs to; None if there is no reply.
    state : hashable, optional
        The reply is a state, to be kept under this key.
    column : int
        First column of the result, of a product.
    """

    layout: dict[str, int]
    fields: dict[str, int]
    payload: bytes
    key_tiles: int = 0
    rows: npt.NDArray[np.int64] | None = None
    state: Hashable = None
    column: int = 0


@dataclass(frozen=True)
class Tile:
    """A reply to come, and where it belongs: rows of (heads * queries, value_dim), or a state.

    A product starts at a column and has so many of them.
    """

    tag: int
    rows: npt.NDArray[np.int64]
    state: Hashable = None
    column: int = 0
    columns: int = 0


@dataclass(frozen=True)
class Program:
    """Packets of an attention, or of one part of its keys.

    Parameters
    ----------
    config : AcceleratorConfig
    commands : list of bytes
        Whole link words.
    tiles : list of Tile
        One per reply, in order.
    value_dim : int
    useful_macs : int
        Multiply-accumulates of the allowed pairs of queries and keys.
    states : dict
        Filled with the states that come back.
    """

    config: AcceleratorConfig
    commands: list[bytes]
    tiles: list[Tile]
    value_dim: int
    useful_macs: int
    states: dict[Hashable, bytes] = field(default_factory=dict)

    @property
    def peak_macs(self) -> int:
        """Multiply-accumulates a clock of the arrays that are used."""
        return self.config.multipliers

    def expected(self, tile: Tile) -> tuple[Reply, int]:
        """Kind of the reply for a tile, and its bytes, header included."""
        config = self.config
        if tile.state is None:
            reply, words = Reply.RESULT, result_tile_words(config, self.value_dim)
        else:
            reply, words = Reply.STATE, state_words(config, self.value_dim)
        return reply, (config.words(REPLY_BYTES) + words) * config.link_bytes

    def collect(self, replies: Sequence[bytes], result: npt.NDArray) -> None:
        """Write the payloads of the replies into `result`, contiguous (heads, queries, value_dim).

        The replies are in the order of `tiles` and of the right size; states are kept.
        """
        config, lanes = self.config, self.config.query_lanes
        start = config.words(REPLY_BYTES) * config.link_bytes
        flat = result.reshape(-1, self.value_dim)
        for tile, reply in zip(self.tiles, replies, strict=True):
            if tile.state is not None:
                self.states[tile.state] = reply[start:]
                continue
            rows = np.frombuffer(reply, "<i2", offset=start).reshape(self.value_dim, -1)
            flat[tile.rows] = rows[:, :lanes].T[: len(tile.rows)]


class PacketList:
    """Collects packets and gives them their tags."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self.commands: list[bytes] = []
        self.tiles: list[Tile] = []

    def send(self, packet: Packet) -> None:
        """Add a packet."""
        tag = len(self.commands) & 0xFF
        header = encode_header(packet.layout, COMMAND_BYTES, tag=tag, **packet.fields)
        self.commands.append(padded(self._config, header) + packet.payload)
        if packet.rows is not None:
            columns = packet.fields["last_value_dim"] + 1
            self.tiles.append(Tile(tag, packet.rows, packet.state, packet.column, columns))
