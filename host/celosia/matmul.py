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

from .arrays import array_of, like
from .attention import opened
from .device import Device
from .packing import key_tiles, query_tile
from .parallel import DevicePool
from .program import Packet, Program, Tile
from .quantize import KeyTensor, Operand, Quantized, ValueTensor
from .schedule import Head, interleave
from .transforms import Rounding

__all__ = ["MAX_INNER", "quantize_matrix", "run_matmul"]

MAX_INNER = (1 << 17) - 1
"""Largest inner dimension whose products surely fit int32."""


def run_matmul(a: Any, b: Any, *, device: Device | DevicePool | str | None = None) -> Any:
    """``a @ b`` on an accelerator.

    Parameters
    ----------
    a : array or tensor, (..., M, K)
    b : array or tensor, (..., K, N)
        Both int8, for an exact result; or each floating point, which is rounded to int8 with a
        scale for each row of `a` or each column of `b`, or `Quantized` with scales that broadcast
        to (..., M, 1) or (..., 1, N). Of any library, as for `run_attention`. Leading dimensions
        broadcast.
    device : Device, DevicePool or str, optional
        As of `run_attention`.

    Returns
    -------
    array or tensor, (..., M, N)
        int32, or the dtype of `a`, or float32 for a `Quantized` one; of the kind and device of `a`.

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
        if _is_integer(left):
            return like(a, _products(accelerator, left.values, right.values), np.int32)
        left, right = _rounded(left, -1), _rounded(right, -2)
        products = _products(accelerator, left.values, right.values)
        assert left.scale is not None
        assert right.scale is not None
        with np.errstate(over="ignore"):
            return like(a, products * left.scale * right.scale)


def quantize_matrix(x: npt.NDArray, axis: int) -> Quantized:
    """A floating-point matrix as `run_matmul` rounds it.

    Parameters
    ----------
    x : (..., M, N) ndarray
    axis : int
        The inner one: -1 for a scale per row, -2 for one per column.
    """
    scale = np.abs(x.astype(np.float64)).max(axis=axis, keepdims=True) / Rounding.LEVELS
    ratio = np.divide(x, scale, out=np.zeros(x.shape), where=scale > 0)
    return Quantized(np.rint(ratio).astype(np.int8), scale)


def _matrices(a: Any, b: Any) -> tuple[Operand, Operand]:
    left, right = _operand("a", a, -1), _operand("b", b, -2)
    if _is_integer(left) != _is_integer(right):
        raise TypeError(
            f"a is {left.values.dtype} and b is {right.values.dtype}: both must be int8, or each "
            "floating point or Quantized"
        )
    shapes = left.values.shape, right.values.shape
    if min(map(len, shapes)) < 2 or shapes[0][-1] != shapes[1][-2]:
        raise ValueError(
            f"a of shape {shapes[0]} and b of shape {shapes[1]}: they must be (..., M, K) and "
            "(..., K, N)"
        )
    if 0 in (*shapes[0], *shapes[1]):
        raise ValueError(f"a of shape {shapes[0]} or b of shape {shapes[1]} is empty")
    if shapes[0][-1] > MAX_INNER:
        raise ValueError(f"the inner dimension {shapes[0][-1]} exceeds {MAX_INNER}")
    for name, x in (("a", left), ("b", right)):
        if not (np.isfinite(x.values).all() and (x.scale is None or np.isfinite(x.scale).all())):
            raise ValueError(f"{name} contains NaN or infinity")
    try:
        lead = np.broadcast_shapes(shapes[0][:-2], shapes[1][:-2])
    except ValueError:
        raise ValueError(
            f"leading dimensions of a {shapes[0][:-2]} and b {shapes[1][:-2]} do not fit"
        ) from None
    return _spread(left, lead), _spread(right, lead)


def _operand(name: str, x: Any, axis: int) -> Operand:
    if not isinstance(x, Quantized):
        values = array_of(x)
        if values.dtype not in (np.int8, np.float16, np.float32, np.float64):
            raise TypeError(
                f"{name} is {values.dtype}: it must be int8, floating point or Quantized"
            )
        return Operand(values)
    values, scale = array_of(x.values), array_of(x.scale).astype(np.float64)
    if values.dtype != np.int8:
        raise TypeError(f"{name}.values is {values.dtype}: Quantized holds int8")
    shape = list(values.shape)
    if len(shape) > 1:
        shape[axis] = 1
    try:
        return Operand(values, np.broadcast_to(scale, shape))
    except ValueError:
        raise ValueError(
            f"{name}.scale of shape {scale.shape} does not broadcast to {tuple(shape)}"
        ) from None


def _is_integer(x: Operand) -> bool:
    return x.scale is None and x.values.dtype == np.int8


def _spread(x: Operand, lead: tuple[int, ...]) -> Operand:
    values, scale = (
        None if part is None else np.broadcast_to(part, (*lead, *part.shape[-2:]))
        for part in (x.values, x.scale)
    )
    assert values is not None
    return Operand(values, scale)


def _rounded(x: Operand, axis: int) -> Operand:
    if x.scale is not None:
        return x
    rounded = quantize_matrix(x.values, axis)
    return Operand(rounded.values, rounded.scale)


def _products(
    device: Device | DevicePool, left: npt.NDArray[np.int8], right: npt.NDArray[np.int8]
) -> npt.NDArray[np.int32]:
    """Exact products, (..., M, N)."""
    if not isinstance(device, DevicePool):
        return _run(device, left, right)
    # Many matrices are shared out, few are cut between their rows.
    axis = 0 if left.ndim > 2 and len(left) >= len(device.devices) else -2
    count = min(len(device.devices), left.shape[axis])
    lefts = np.array_split(left, count, axis)
    rights = np.array_split(right, count) if axis == 0 else [right] * count
    results = device.run_parts(_run, zip(lefts, rights, strict=True))
    return np.concatenate(results, axis)


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
