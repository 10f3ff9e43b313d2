"""From quantized heads to a stream of packets.

The accelerator executes packets in order. A LOAD waits until earlier ATTENDs that read the same
bank are done, and an ATTEND until one of two query buffers is free; whatever waits holds up the
stream. Heads therefore alternate between banks, and slices of the next head's keys go between
the query tiles of this head: from its second ATTEND on, because by then the head before has left
its bank, and in proportion to the work in hand, so that the last slice is there in time.

Heads with more keys than there is room for go in chunks of a bank: first all heads with their first
chunk, then all with their second. In between, the state of each query tile waits in the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import Widths
from celosia_hw.config import AcceleratorConfig
from celosia_hw.protocol import APPEND_FIELDS, ATTEND_FIELDS, LOAD_FIELDS, Opcode

from .masks import HeadMask
from .packing import appended_key, extended, key_tiles, query_tile
from .program import Packet, PacketList, Program
from .quantize import KeyTensor, QueryTensor, ValueTensor, score_shift
from .tiling import QueryTile

__all__ = [
    "Head",
    "HeadGroup",
    "append_program",
    "check_capacity",
    "interleave",
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

    def useful_macs(self) -> int:
        """Multiply-accumulates of these pairs."""
        dims = self.queries.values.shape[-1] + self.values.values.shape[-1]
        return self.allowed_pairs() * dims


@dataclass(frozen=True)
class Head:
    """Key tiles, where they go, and the packets that read them.

    Parameters
    ----------
    config : AcceleratorConfig
    slot : int
    key_tiles : (tiles, bytes) uint8
        As they cross the link.
    packets : list of Packet
    dims : dict of int
        Head dimensions for LOADs.
    """

    config: AcceleratorConfig
    slot: int
    key_tiles: npt.NDArray[np.uint8]
    packets: list[Packet]
    dims: dict[str, int]

    @property
    def tiles(self) -> int:
        """Number of key tiles."""
        return len(self.key_tiles)

    @property
    def banks(self) -> set[int]:
        """The banks that they lie in."""
        per_bank = self.config.slots_per_bank
        return set(range(self.slot // per_bank, (self.slot + self.tiles - 1) // per_bank + 1))

    def loads(self, start: int, stop: int) -> Iterator[Packet]:
        """LOADs of some key tiles, cut where a bank ends."""
        per_bank = self.config.slots_per_bank
        while start < stop:
            slot = self.slot + start
            end = min(stop, start + per_bank - slot % per_bank)
            fields = {"opcode": Opcode.LOAD, "slot": slot, "tiles": end - start, **self.dims}
            yield Packet(LOAD_FIELDS, fields, self.key_tiles[start:end].tobytes(), end - start)
            start = end


def schedule(
    config: AcceleratorConfig, groups: Sequence[HeadGroup], banks: int | None = None
) -> Iterator[Program]:
    """Packets that compute `groups`, whose head dimensions are equal.

    Parameters
    ----------
    config : AcceleratorConfig
    groups : sequence of HeadGroup
    banks : int, optional
        Key banks to use, from the first; all if absent.

    Yields
    ------
    Program
        To be run before the next one is asked for. One, if all keys fit.

    Raises
    ------
    ValueError
        If a group has more keys than `max_sequence`, or there is no bank.
    """
    key_banks = config.key_banks if banks is None else banks
    longest = max((len(group.keys.values) for group in groups), default=0)
    check_capacity(config, longest, key_banks)
    useful = sum(group.useful_macs() for group in groups)
    if longest <= key_banks * config.max_keys:
        yield _program(
            config, interleave(config, _whole(config, groups, key_banks)), groups, useful
        )
        return
    states: dict[Hashable, bytes] = {}
    for chunk in range(-(-longest // config.max_keys)):
        heads = list(_chunk(config, groups, key_banks, chunk, states))
        program = _program(config, interleave(config, heads), groups, 0 if chunk else useful)
        yield program
        states.update(program.states)


def check_capacity(config: AcceleratorConfig, keys: int, key_banks: int) -> None:
    """Raise ValueError if so many keys cannot be attended to with so many banks."""
    if keys > config.max_sequence:
        raise ValueError(
            f"{keys} keys, but the device attends to at most {config.max_sequence} (max_sequence)"
        )
    if keys and not key_banks:
        raise ValueError(
            f"caches are open in all {config.key_banks} key banks of the device: close one"
        )


def _program(
    config: AcceleratorConfig,
    packets: PacketList,
    groups: Sequence[HeadGroup],
    useful_macs: int,
) -> Program:
    value_dim = groups[0].values.values.shape[-1] if groups else 1
    return Program(config, packets.commands, packets.tiles, value_dim, useful_macs)


def interleave(config: AcceleratorConfig, heads: Sequence[Head]) -> PacketList:
    """The packets of heads, with slices of the next one's keys between those of the one before."""
    packets = PacketList(config)

    def load(head: Head, start: int, stop: int) -> None:
        for packet in head.loads(start, stop):
            packets.send(packet)

    for index, head in enumerate(heads):
        following = heads[index + 1] if index + 1 < len(heads) else None
        if index == 0:
            load(head, 0, head.tiles)
        work = np.zeros(len(head.packets))
        if following is not None and not head.banks & following.banks:
            work = _pending_work(head.packets)
        sent = 0
        for packet, share in zip(head.packets, work, strict=True):
            packets.send(packet)
            if following is not None:
                due = int(np.ceil(following.tiles * share))
                load(following, sent, due)
                sent = due
        if following is not None:
            load(following, sent, following.tiles)
    return packets


def _pending_work(packets: Sequence[Packet]) -> npt.NDArray[np.float64]:
    """Share of a head's work that is done or under way once each packet is accepted.

    While the one after it waits in the second buffer, the one before is computed.
    """
    work = np.array([packet.key_tiles for packet in packets], np.float64)
    if len(work) > 1:
        work = np.concatenate([[0], work[:-1]])
    return np.cumsum(work) / work.sum()


def _whole(config: AcceleratorConfig, groups: Sequence[HeadGroup], key_banks: int) -> list[Head]:
    """All keys of the groups, each in as few banks as it needs."""
    heads, bank = [], 0
    for group in groups:
        banks = -(-len(group.keys.values) // config.max_keys)
        if bank + banks > key_banks:
            bank = 0
        slot = bank * config.slots_per_bank
        attends = [
            _attend(config, group, index, tile, slot) for index, tile in enumerate(group.tiles)
        ]
        heads.append(_head(config, group.keys, group.values, slot, attends))
        bank = (bank + banks) % key_banks
    return heads


def _chunk(
    config: AcceleratorConfig,
    groups: Sequence[HeadGroup],
    key_banks: int,
    chunk: int,
    states: dict[Hashable, bytes],
) -> Iterator[Head]:
    """One bank of keys of each group that still attends to any of them."""
    size, bank = config.slots_per_bank, 0
    first, end = chunk * size, (chunk + 1) * size
    for number, group in enumerate(groups):
        attends = []
        for index, tile in enumerate(group.tiles):
            part = tile.part(config, first, end)
            if part is None:
                continue
            key = (number, index)
            attend = _attend(
                *(config, group, index, part, bank * size - first),
                state=states.pop(key, b""),
                store=None if tile.key_tiles[-1] < end else key,
            )
            attends.append(attend)
        if attends:
            span = slice(first * config.key_rows, end * config.key_rows)
            keys, values = group.keys, group.values
            yield _head(
                config,
                dataclasses.replace(keys, values=keys.values[span], factors=keys.factors[span]),
                dataclasses.replace(
                    values, values=values.values[span], factors=values.factors[span]
                ),
                bank * size,
                attends,
            )
            bank = (bank + 1) % key_banks


def _head(
    config: AcceleratorConfig,
    keys: KeyTensor,
    values: ValueTensor,
    slot: int,
    packets: list[Packet],
) -> Head:
    return Head(config, slot, key_tiles(config, keys, values), packets, _dims(keys, values))


def _dims(keys: KeyTensor, values: ValueTensor) -> dict[str, int]:
    return {
        "last_dim": keys.values.shape[-1] - 1,
        "last_value_dim": values.values.shape[-1] - 1,
    }


def _attend(
    config: AcceleratorConfig,
    group: HeadGroup,
    index: int,
    tile: QueryTile,
    slot: int,
    *,
    state: bytes = b"",
    store: Hashable = None,
) -> Packet:
    """An ATTEND of the group's query tile of this number; key tile 0 would be at `slot`.

    Parameters
    ----------
    state : bytes
        To start from.
    store : hashable, optional
        Ask for the state, to be kept under this key, in place of the result.
    """
    dim = group.queries.values.shape[-1]
    first, last = int(tile.key_tiles[0]), int(tile.key_tiles[-1])
    extension, intervals, listed, masks = extended(config, tile)
    fields = {
        "opcode": Opcode.ATTEND,
        **_dims(group.keys, group.values),
        "result_fraction": group.values.result_fraction,
        **tile.fields,
        "slot": slot + first,
        "tiles": last - first + 1,
        "score_shift": int(score_shift(Widths(config), group.queries.exponents[index])),
        "extended": bool(extension),
        "load_state": bool(state),
        "store_state": store is not None,
    }
    queries = query_tile(
        config,
        group.queries.factors.reshape(-1)[tile.rows],
        group.queries.values.reshape(-1, dim)[tile.rows],
    )
    payload = extension + intervals + queries + listed + state + masks
    rows = group.result_rows(tile.rows)
    return Packet(ATTEND_FIELDS, fields, payload, len(tile.key_tiles), rows, store)


def load_program(
    config: AcceleratorConfig,
    heads: Sequence[tuple[KeyTensor, ValueTensor]],
    slots: Sequence[int],
) -> Program:
    """Packets that load the keys and values of heads, each from its slot on."""
    packets = PacketList(config)
    for (keys, values), slot in zip(heads, slots, strict=True):
        head = _head(config, keys, values, slot, [])
        for packet in head.loads(0, head.tiles):
            packets.send(packet)
    return _program(config, packets, [], 0)


def append_program(
    config: AcceleratorConfig,
    heads: Sequence[tuple[KeyTensor, ValueTensor]],
    slots: Sequence[int],
    start: int,
) -> Program:
    """Packets that write the tokens from `start` on of heads that have been loaded."""
    packets = PacketList(config)
    for (keys, values), slot in zip(heads, slots, strict=True):
        for token in range(start, len(keys.values)):
            tile, key = divmod(token, config.key_rows)
            fields = {"opcode": Opcode.APPEND, "slot": slot + tile, "key": key}
            payload = appended_key(config, keys, values, token)
            packets.send(Packet(APPEND_FIELDS, {**fields, **_dims(keys, values)}, payload))
    return _program(config, packets, [], 0)


def resident_program(
    config: AcceleratorConfig, groups: Sequence[HeadGroup], slots: Sequence[int]
) -> Program:
    """Packets that compute groups whose keys and values have been loaded, each to its slot."""
    packets = PacketList(config)
    for group, slot in zip(groups, slots, strict=True):
        for index, tile in enumerate(group.tiles):
            packets.send(_attend(config, group, index, tile, slot))
    return _program(config, packets, groups, sum(group.useful_macs() for group in groups))
