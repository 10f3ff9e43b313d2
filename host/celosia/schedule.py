"""From quantized heads to a stream of packets, and from replies to results.

The accelerator executes packets in order. A LOAD waits until earlier ATTENDs that read the same
bank are done, and an ATTEND until one of two query buffers is free; whatever waits holds up the
stream. Heads therefore alternate between banks, and slices of the next head's keys go between
the query tiles of this head: from its second ATTEND on, because by then the head before has left
its bank, and in proportion to the work in hand, so that the last slice is there in time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import Widths
from celosia_hw.config import AcceleratorConfig
from celosia_hw.protocol import (
    APPEND_FIELDS,
    ATTEND_FIELDS,
    COMMAND_BYTES,
    EXTENSION_FIELDS,
    LOAD_FIELDS,
    REPLY_BYTES,
    Opcode,
    encode_header,
    result_tile_words,
)

from .masks import HeadMask
from .quantize import KeyTensor, QueryTensor, ValueTensor, score_shift
from .tiling import QueryTile

__all__ = [
    "HeadGroup",
    "Program",
    "Tile",
    "append_program",
    "check_capacity",
    "load_program",
    "resident_program",
    "schedule",
]


@dataclass(frozen=True)
class HeadGroup:
    """One head of keys and values, and the query heads that attend to it.

    Parameters
    ----------
    heads : (n,) int ndarray
        Where in the result the query heads belong.
    queries : QueryTensor
        Of n heads.
    keys : KeyTensor
    values : ValueTensor
    masks : list of HeadMask
        Of n heads.
    tiles : list of QueryTile
        Of all their rows.
    """

    heads: npt.NDArray[np.int64]
    queries: QueryTensor
    keys: KeyTensor
    values: ValueTensor
    masks: list[HeadMask]
    tiles: list[QueryTile]

    def allowed_pairs(self) -> int:
        """Pairs of a query and a key it attends to, over all heads."""
        return sum(mask.allowed_pairs() for mask in self.masks)

    def result_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Where in the result, (heads * queries, value_dim), rows of the group belong."""
        head, query = np.divmod(rows, self.queries.values.shape[1])
        return self.heads[head] * self.queries.values.shape[1] + query


@dataclass(frozen=True)
class Tile:
    """Where the result of an ATTEND belongs: rows of (heads * queries, value_dim)."""

    tag: int
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Program:
    """Packets of a whole attention.

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
    """

    config: AcceleratorConfig
    commands: list[bytes]
    tiles: list[Tile]
    value_dim: int
    useful_macs: int

    @property
    def reply_bytes(self) -> int:
        """Bytes of each reply, header included."""
        words = self.config.words(REPLY_BYTES) + result_tile_words(self.config, self.value_dim)
        return words * self.config.link_bytes

    def collect(self, replies: Sequence[bytes], result: npt.NDArray[np.int16]) -> None:
        """Write the payloads of the replies into `result`, contiguous (heads, queries, value_dim).

        The replies are in the order of `tiles` and of the right size.
        """
        if not self.tiles:
            return
        config, lanes = self.config, self.config.query_lanes
        flat = result.reshape(-1, self.value_dim)
        rows = np.frombuffer(b"".join(replies), np.uint8).reshape(len(replies), -1)
        rows = rows[:, -result_tile_words(config, self.value_dim) * config.link_bytes :]
        rows = rows.reshape(len(replies), self.value_dim, -1)[..., : 2 * lanes]
        values = np.ascontiguousarray(rows).view("<i2").swapaxes(1, 2)
        for tile, block in zip(self.tiles, values, strict=True):
            flat[tile.rows] = block[: len(tile.rows)]


class _Packets:
    """Packets in the order in which they are sent."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self.commands: list[bytes] = []
        self.tiles: list[Tile] = []

    def send(self, packet: _Packet) -> None:
        tag = len(self.commands) & 0xFF
        header = encode_header(packet.layout, COMMAND_BYTES, tag=tag, **packet.fields)
        self.commands.append(_padded(self._config, header) + packet.payload)
        if isinstance(packet, _Attend):
            self.tiles.append(Tile(tag, packet.rows))

    def program(self, groups: Sequence[HeadGroup]) -> Program:
        """The program of these packets, which compute `groups`."""
        value_dim = groups[0].values.values.shape[-1] if groups else 1
        head_dims = groups[0].queries.values.shape[-1] + value_dim if groups else 0
        useful = sum(group.allowed_pairs() for group in groups) * head_dims
        return Program(self._config, self.commands, self.tiles, value_dim, useful)


def schedule(
    config: AcceleratorConfig, groups: Sequence[HeadGroup], banks: int | None = None
) -> Program:
    """Packets that compute `groups`, whose head dimensions are equal.

    Parameters
    ----------
    config : AcceleratorConfig
    groups : sequence of HeadGroup
    banks : int, optional
        Key banks to use, from the first; all if absent.

    Returns
    -------
    Program

    Raises
    ------
    ValueError
        If a group has more keys than the accelerator holds.
    """
    packets = _Packets(config)
    heads = list(_placed(config, groups, config.key_banks if banks is None else banks))

    def load(head: _Head, start: int, stop: int) -> None:
        for packet in head.loads(start, stop):
            packets.send(packet)

    for index, head in enumerate(heads):
        following = heads[index + 1] if index + 1 < len(heads) else None
        if index == 0:
            load(head, 0, head.tiles)
        work = np.zeros(len(head.attends))
        if following is not None and not head.banks & following.banks:
            work = _pending_work(head.attends)
        sent = 0
        for packet, share in zip(head.attends, work, strict=True):
            packets.send(packet)
            if following is not None:
                due = int(np.ceil(following.tiles * share))
                load(following, sent, due)
                sent = due
        if following is not None:
            load(following, sent, following.tiles)

    return packets.program(groups)


def load_program(
    config: AcceleratorConfig,
    heads: Sequence[tuple[KeyTensor, ValueTensor]],
    slots: Sequence[int],
) -> Program:
    """Packets that load the keys and values of heads, each from its slot on."""
    packets = _Packets(config)
    for (keys, values), slot in zip(heads, slots, strict=True):
        head = _Head(config, slot, _key_tiles(config, keys, values), [], _dims(keys, values))
        for packet in head.loads(0, head.tiles):
            packets.send(packet)
    return packets.program([])


def append_program(
    config: AcceleratorConfig,
    heads: Sequence[tuple[KeyTensor, ValueTensor]],
    slots: Sequence[int],
    start: int,
) -> Program:
    """Packets that write the tokens from `start` on of heads that have been loaded."""
    packets = _Packets(config)
    for (keys, values), slot in zip(heads, slots, strict=True):
        for token in range(start, len(keys.values)):
            tile, key = divmod(token, config.key_rows)
            fields = {"opcode": Opcode.APPEND, "slot": slot + tile, "key": key}
            payload = b"".join(
                _padded(config, part.tobytes())
                for part in (
                    keys.factors[token].astype("<u2"),
                    values.factors[token].astype("<u2"),
                    keys.values[token],
                    values.values[token],
                )
            )
            packets.send(_Packet(APPEND_FIELDS, {**fields, **_dims(keys, values)}, payload, 0))
    return packets.program([])


def resident_program(
    config: AcceleratorConfig, groups: Sequence[HeadGroup], slots: Sequence[int]
) -> Program:
    """Packets that compute groups whose keys and values have been loaded, each to its slot."""
    packets = _Packets(config)
    for group, slot in zip(groups, slots, strict=True):
        for packet in _attends(config, group, slot):
            packets.send(packet)
    return packets.program(groups)


def _dims(keys: KeyTensor, values: ValueTensor) -> dict[str, int]:
    return {
        "last_dim": keys.values.shape[-1] - 1,
        "last_value_dim": values.values.shape[-1] - 1,
    }


def _pending_work(attends: Sequence[_Attend]) -> npt.NDArray[np.float64]:
    """Share of a head's work that is done or under way once each ATTEND is accepted.

    While the ATTEND after it waits in the second buffer, the one before is computed.
    """
    work = np.array([attend.key_tiles for attend in attends], np.float64)
    if len(work) > 1:
        work = np.concatenate([[0], work[:-1]])
    return np.cumsum(work) / work.sum()


@dataclass(frozen=True)
class _Packet:
    """A packet without its tag."""

    layout: dict[str, int]
    fields: dict[str, int]
    payload: bytes
    key_tiles: int


@dataclass(frozen=True)
class _Attend(_Packet):
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Head:
    """A group and where its keys go."""

    config: AcceleratorConfig
    slot: int
    key_tiles: npt.NDArray[np.uint8]
    attends: list[_Attend]
    dims: dict[str, int]

    @property
    def tiles(self) -> int:
        return len(self.key_tiles)

    @property
    def banks(self) -> set[int]:
        per_bank = self.config.slots_per_bank
        return set(range(self.slot // per_bank, (self.slot + self.tiles - 1) // per_bank + 1))

    def loads(self, start: int, stop: int) -> Iterator[_Packet]:
        """LOADs of some key tiles, cut where a bank ends."""
        per_bank = self.config.slots_per_bank
        while start < stop:
            slot = self.slot + start
            end = min(stop, start + per_bank - slot % per_bank)
            fields = {"opcode": Opcode.LOAD, "slot": slot, "tiles": end - start, **self.dims}
            yield _Packet(LOAD_FIELDS, fields, self.key_tiles[start:end].tobytes(), end - start)
            start = end


def check_capacity(config: AcceleratorConfig, keys: int, key_banks: int) -> None:
    """Raise ValueError if so many keys do not fit so many banks."""
    if keys > key_banks * config.max_keys:
        note = "" if key_banks == config.key_banks else ": caches are open in the others"
        raise ValueError(
            f"{keys} keys, but the device holds {key_banks * config.max_keys} "
            f"({key_banks} banks of {config.max_keys}{note})"
        )


def _placed(
    config: AcceleratorConfig, groups: Sequence[HeadGroup], key_banks: int
) -> Iterator[_Head]:
    bank = 0
    for group in groups:
        keys = len(group.keys.values)
        check_capacity(config, keys, key_banks)
        banks = -(-keys // config.max_keys)
        if bank + banks > key_banks:
            bank = 0
        slot = bank * config.slots_per_bank
        tiles = _key_tiles(config, group.keys, group.values)
        dims = _dims(group.keys, group.values)
        yield _Head(config, slot, tiles, _attends(config, group, slot), dims)
        bank = (bank + banks) % key_banks


def _attends(config: AcceleratorConfig, group: HeadGroup, slot: int) -> list[_Attend]:
    common = {
        "opcode": Opcode.ATTEND,
        **_dims(group.keys, group.values),
        "result_fraction": group.values.result_fraction,
    }
    payloads = _query_tiles(config, group)
    shifts = score_shift(Widths(config), group.queries.exponents)
    attends = []
    for tile, payload, shift in zip(group.tiles, payloads, shifts, strict=True):
        first, last = int(tile.key_tiles[0]), int(tile.key_tiles[-1])
        extension, intervals, rest = _extended(config, tile)
        fields = {
            **common,
            **tile.fields,
            "slot": slot + first,
            "tiles": last - first + 1,
            "score_shift": int(shift),
            "extended": bool(extension),
        }
        whole = extension + intervals + payload.tobytes() + rest
        rows = group.result_rows(tile.rows)
        attends.append(_Attend(ATTEND_FIELDS, fields, whole, len(tile.key_tiles), rows))
    return attends


def _extended(config: AcceleratorConfig, tile: QueryTile) -> tuple[bytes, bytes, bytes]:
    """Second half of the header, what comes before the queries and what comes after them."""
    offsets = tile.key_tiles - tile.key_tiles[0]
    is_listed = len(offsets) <= offsets[-1]
    fields = {
        **tile.slope,
        "listed": len(offsets) - 1 if is_listed else 0,
        "bias_shift": tile.bias_shift,
        "intervals": tile.intervals is not None,
        "mask": tile.allowed is not None,
        "bias": tile.bias is not None,
    }
    if not any(fields.values()):
        return b"", b"", b""
    header = _padded(config, encode_header(EXTENSION_FIELDS, COMMAND_BYTES, **fields))
    intervals = rest = b""
    if tile.intervals is not None:
        intervals = _padded(config, _lanes(config, tile.intervals).astype("<i2").tobytes())
    if is_listed:
        rest = _padded(config, offsets[1:].astype("<u2").tobytes())
    masks = [np.zeros((len(offsets), 0), np.uint8)]
    if tile.allowed is not None:
        masks.append(_mask_tiles(config, _lanes(config, tile.allowed)))
    if tile.bias is not None:
        masks.append(_bias_tiles(config, _lanes(config, tile.bias)))
    return header, intervals, rest + np.concatenate(masks, axis=1).tobytes()


def _lanes(config: AcceleratorConfig, rows: npt.NDArray) -> npt.NDArray:
    """Rows of a tile, padded with zeros to all lanes."""
    return np.pad(rows, [(0, config.query_lanes - len(rows)), (0, 0)])


def _mask_tiles(config: AcceleratorConfig, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Mask bits, (lanes, keys), as they cross the link, (tiles, bytes)."""
    bits = _split(allowed.T, config.key_rows)
    tiles, keys, lanes = bits.shape
    bits = np.pad(bits, [(0, 0), (0, -keys % config.mask_keys), (0, 0)])
    words = bits.reshape(tiles, -1, config.mask_keys * lanes)
    words = np.pad(words, [(0, 0), (0, 0), (0, config.link_bits - words.shape[-1])])
    return np.packbits(words, axis=-1, bitorder="little").reshape(tiles, -1)


def _bias_tiles(config: AcceleratorConfig, bias: npt.NDArray[np.int16]) -> npt.NDArray[np.uint8]:
    """Biases, (lanes, keys), as they cross the link, (tiles, bytes)."""
    rows = np.ascontiguousarray(_split(bias.T, config.key_rows).astype("<i2")).view(np.uint8)
    return _pad_words(config, rows).reshape(len(rows), -1)


def _key_tiles(
    config: AcceleratorConfig, keys: KeyTensor, values: ValueTensor
) -> npt.NDArray[np.uint8]:
    """Key tiles as they cross the link, (tiles, bytes)."""
    rows = config.key_rows
    parts = [
        _factor_row(config, _split(keys.factors, rows)),
        _factor_row(config, _split(values.factors, rows)),
        _rows(config, _split(keys.values, rows)),
        _rows(config, _split(values.values, rows)),
    ]
    return np.concatenate(parts, axis=-1)


def _query_tiles(config: AcceleratorConfig, group: HeadGroup) -> npt.NDArray[np.uint8]:
    """Query tiles as they cross the link, (tiles, bytes)."""
    shape, dim = (len(group.tiles), config.query_lanes), group.queries.values.shape[-1]
    factors, values = np.zeros(shape, np.uint16), np.zeros((*shape, dim), np.int8)
    for number, tile in enumerate(group.tiles):
        factors[number, : len(tile.rows)] = group.queries.factors.reshape(-1)[tile.rows]
        values[number, : len(tile.rows)] = group.queries.values.reshape(-1, dim)[tile.rows]
    return np.concatenate([_factor_row(config, factors), _rows(config, values)], axis=-1)


def _split(x: npt.NDArray, rows: int) -> npt.NDArray:
    """Cut (tokens, ...) into tiles (tiles, rows, ...), the last one padded with zeros."""
    padding = [(0, -len(x) % rows)] + [(0, 0)] * (x.ndim - 1)
    return np.pad(x, padding).reshape(-1, rows, *x.shape[1:])


def _factor_row(config: AcceleratorConfig, factors: npt.NDArray) -> npt.NDArray[np.uint8]:
    """(..., tokens) factors as (..., bytes)."""
    return _pad_words(config, np.ascontiguousarray(factors.astype("<u2")).view(np.uint8))


def _rows(config: AcceleratorConfig, values: npt.NDArray) -> npt.NDArray[np.uint8]:
    """(..., tokens, dim) values as (..., bytes): for each of dim, a padded row of tokens."""
    rows = np.ascontiguousarray(values.swapaxes(-1, -2)).view(np.uint8)
    return _pad_words(config, rows).reshape(*values.shape[:-2], -1)


def _pad_words(config: AcceleratorConfig, data: npt.NDArray) -> npt.NDArray:
    """Pad the last axis, in bytes, to whole link words."""
    size = data.shape[-1]
    padding = config.words(size) * config.link_bytes - size
    return np.pad(data, [(0, 0)] * (data.ndim - 1) + [(0, padding)])


def _padded(config: AcceleratorConfig, data: bytes) -> bytes:
    return data.ljust(config.words(len(data)) * config.link_bytes, b"\0")
