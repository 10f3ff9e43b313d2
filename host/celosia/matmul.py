"""`run_matmul`: matrix products on the score array."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import PRODUCT_PARTS
from celosia_hw.config import AcceleratorConfig
from celosia_hw.protocol import ATTEND_FIELDS, REPLY_BYTES, Opcode, Reply, product_words

from .attention import array_of, like, opened
from .device import Device
from .packing import key_tiles, query_tile
from .program import Packet, Program, Tile
from .quantize import KeyTensor, ValueTensor
from .schedule import Head, interleave

__all__ = ["MAX_INNER", "run_matmul"]

MAX_INNER = (1 << 17) - 1
"""Largest inner dimension whose products surely fit int32."""
_LEVELS = 127


def run_matmul(a: Any, b: Any, *, device: Device | str | None = None) -> Any:
    """``a @ b`` on an accelerator.

    Parameters
    ----------
    a : array or tensor, (..., M, K)
    b : array or tensor, (..., K, N)
        Both int8, for an exact result; or both floating point, which are rounded to int8 with a
        scale for each row of `a` and each column of `b`. Leading dimensions broadcast.
    device : Device or str, optional
        As of `run_attention`.

    Returns
    -------
    array or tensor, (..., M, N)
        int32, or the dtype of `a`; of the kind and torch device of `a`.

    Raises
    ------
    TypeError
        If the tensors are of another or of different kinds.
    ValueError
        If shapes do not fit, a dimension is empty, K is more than `MAX_INNER`, or a tensor contains
        NaN or infinity. Nothing has been sent then.
    DeviceError
        If there is no device, or it fails.

    Notes
    -----
    Inner dimensions beyond the device's `max_head_dim` go in parts whose int32 products the host
    adds up. The report's utilization is that of the score array alone.
    """
    left, right = _matrices(a, b)
    with opened(device) as accelerator:
        if not accelerator.free_banks:
            raise ValueError("caches are open in all key banks of the device: close one")
        is_integer = left.dtype == np.int8
        if is_integer:
            integers = left, right
        else:
            row_scale, column_scale = _scales(left, -1), _scales(right, -2)
            integers = _to_int8(left, row_scale), _to_int8(right, column_scale)
        products = _run(accelerator, *integers)
        if is_integer:
            return like(a, products, np.int32)
        with np.errstate(over="ignore"):
            return like(a, products * row_scale * column_scale)


def _matrices(a: Any, b: Any) -> tuple[npt.NDArray, npt.NDArray]:
    left, right = array_of(a), array_of(b)
    floats = (np.float16, np.float32, np.float64)
    kinds = [x.dtype == np.int8 or x.dtype in floats for x in (left, right)]
    if not all(kinds) or (left.dtype == np.int8) != (right.dtype == np.int8):
        raise TypeError(
            f"a is {left.dtype} and b is {right.dtype}: both must be int8, or both floating point"
        )
    if left.ndim < 2 or right.ndim < 2 or left.shape[-1] != right.shape[-2]:
        raise ValueError(
            f"a of shape {left.shape} and b of shape {right.shape}: they must be (..., M, K) and "
            "(..., K, N)"
        )
    if 0 in (*left.shape, *right.shape):
        raise ValueError(f"a of shape {left.shape} or b of shape {right.shape} is empty")
    if left.shape[-1] > MAX_INNER:
        raise ValueError(f"the inner dimension {left.shape[-1]} exceeds {MAX_INNER}")
    for name, x in (("a", left), ("b", right)):
        if not np.isfinite(x).all():
            raise ValueError(f"{name} contains NaN or infinity")
    try:
        lead = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    except ValueError:
        raise ValueError(
            f"leading dimensions of a {left.shape[:-2]} and b {right.shape[:-2]} do not fit"
        ) from None
    left = np.broadcast_to(left, (*lead, *left.shape[-2:]))
    return left, np.broadcast_to(right, (*lead, *right.shape[-2:]))


def _scales(x: npt.NDArray, axis: int) -> npt.NDArray[np.float64]:
    return np.abs(x.astype(np.float64)).max(axis=axis, keepdims=True) / _LEVELS


def _to_int8(x: npt.NDArray, scale: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    zeros = np.zeros(x.shape)
    return np.rint(np.divide(x, scale, out=zeros, where=scale > 0)).astype(np.int8)


def _run(
    device: Device, left: npt.NDArray[np.int8], right: npt.NDArray[np.int8]
) -> npt.NDArray[np.int32]:
    """Exact products, (..., M, N)."""
    config = device.config
    (*lead, rows, inner), columns = left.shape, right.shape[-1]
    count = math.prod(lead)
    banks = itertools.cycle(range(device.free_banks))
    heads = []
    for batch in range(count):
        a, b = left.reshape(count, rows, inner)[batch], right.reshape(count, inner, columns)[batch]
        heads += _heads(config, a, b, batch * rows, banks)
    packets = interleave(config, heads)
    useful = count * rows * inner * columns
    program = _ProductProgram(config, packets.commands, packets.tiles, columns, useful)
    result = np.zeros((count * rows, columns), np.int32)
    device.run(program, result)
    return result.reshape(*lead, rows, columns)


def _heads(
    config: AcceleratorConfig,
    a: npt.NDArray[np.int8],
    b: npt.NDArray[np.int8],
    first_row: int,
    banks: Iterator[int],
) -> Iterator[Head]:
    """Parts of the inner dimension and banks of columns, each in the next of the key banks."""
    inner, columns = b.shape
    for start in range(0, inner, config.max_head_dim):
        part = slice(start, min(start + config.max_head_dim, inner))
        payloads = _row_tiles(config, a[:, part], first_row)
        for first in range(0, columns, config.max_keys):
            keys = b[part, first : first + config.max_keys].T
            zeros = np.zeros(len(keys), np.uint16)
            tiles = key_tiles(
                config,
                KeyTensor(keys, zeros, 0),
                ValueTensor(np.zeros((len(keys), 1), np.int8), zeros, 0.0, np.zeros(1)),
            )
            dims = {"last_dim": keys.shape[1] - 1, "last_value_dim": 0}
            slot = next(banks) * config.slots_per_bank
            packets = []
            for payload, rows in payloads:
                for tile in range(0, len(tiles), config.product_tiles):
                    count = min(config.product_tiles, len(tiles) - tile)
                    fields = {
                        "opcode": Opcode.MULTIPLY,
                        "slot": slot + tile,
                        "tiles": count,
                        "last_dim": dims["last_dim"],
                        "last_value_dim": count * config.key_rows - 1,
                    }
                    column = first + tile * config.key_rows
                    packet = Packet(ATTEND_FIELDS, fields, payload, count, rows, column=column)
                    packets.append(packet)
            yield Head(config, slot, tiles, packets, dims)


def _row_tiles(
    config: AcceleratorConfig, a: npt.NDArray[np.int8], first_row: int
) -> list[tuple[bytes, npt.NDArray[np.int64]]]:
    """Tiles of rows as they cross the link, and where they belong."""
    lanes = config.query_lanes
    return [
        (query_tile(config, None, some), first_row + start + np.arange(len(some)))
        for start in range(0, len(a), lanes)
        for some in [a[start : start + lanes]]
    ]


class _ProductProgram(Program):
    """Packets of matrix products; `value_dim` is the number of columns."""

    @property
    def peak_macs(self) -> int:
        return self.config.multipliers // 2

    def expected(self, tile: Tile) -> tuple[Reply, int]:
        words = self.config.words(REPLY_BYTES) + product_words(self.config, tile.columns)
        return Reply.PRODUCT, words * self.config.link_bytes

    def collect(self, replies: Sequence[bytes], result: npt.NDArray) -> None:
        """Add the products to `result`, (rows, columns) int32."""
        config = self.config
        start = config.words(REPLY_BYTES) * config.link_bytes
        for tile, reply in zip(self.tiles, replies, strict=True):
            parts = np.frombuffer(reply, "<u2", offset=start)
            parts = parts.reshape(tile.columns, -1, PRODUCT_PARTS, config.link_bytes // 2)
            low, high = parts[:, :, 0].astype(np.int32), parts[:, :, 1].view("<i2")
            numbers = (low | high.astype(np.int32) << 16).reshape(tile.columns, -1)
            count = min(tile.columns, self.value_dim - tile.column)
            block = numbers[:count, : len(tile.rows)].T
            result[tile.rows, tile.column : tile.column + count] += block
