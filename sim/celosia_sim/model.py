"""The integer model: bit for bit what the hardware computes, on whole arrays.

`attend` runs one row of lanes or a million through the steps of `celosia_hw.arithmetic`, tile by
tile of ``key_rows`` keys. With ``keep=True`` every intermediate value is returned as a `Trace`;
the `State` it ends in continues a run over more keys.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import (
    ELEMENT_BITS,
    MAX_RESULT_FRACTION,
    MAX_SCORE_SHIFT,
    Exp2Table,
    Widths,
    biased,
    gain,
    log_score,
    normalize,
    reciprocal,
    rescale,
    running_maximum,
    weight,
)
from celosia_hw.config import AcceleratorConfig

__all__ = ["Attention", "State", "Trace", "attend"]

Int64 = npt.NDArray[np.int64]

_BLOCK_ROWS = 64
_BLOCK_KEYS = 256
"""Rows and keys computed at once: their int64 intermediates stay in a core's cache."""


@dataclass(frozen=True)
class State:
    """What a row carries from one key tile to the next.

    Parameters
    ----------
    maximum : (rows,) int64
        Running maximum M, an integer in the base-2 domain.
    total : (rows,) int64
        Row sum L of the unnormalised probabilities.
    output : (rows, value_dim) int64
        Accumulators O.
    """

    maximum: Int64
    total: Int64
    output: Int64

    @classmethod
    def initial(cls, config: AcceleratorConfig, rows: int, value_dim: int) -> State:
        """The state before the first key."""
        return cls(
            np.full(rows, Widths(config).lowest_maximum, np.int64),
            np.zeros(rows, np.int64),
            np.zeros((rows, value_dim), np.int64),
        )


@dataclass(frozen=True)
class Trace:
    """Every intermediate value of a run; keys are padded to whole tiles.

    Parameters
    ----------
    score : (rows, keys) int64
        Exact dot products.
    log_score : (rows, keys) int64
        z, in units of ``2**-score_fraction_bits``, of allowed and other keys alike.
    allowed : (rows, keys) bool
        Keys that the row attends to.
    tile_maximum : (rows, tiles) int64
        Largest allowed z of each tile; the lowest z where none is allowed.
    maximum : (rows, tiles) int64
        Running maximum M' that the tile's probabilities refer to.
    shift : (rows, tiles) int64
        M' - M, by which the sums are rescaled before the tile is added.
    probability, weight : (rows, keys) int64
        p and w; zero where not allowed.
    total : (rows, tiles) int64
        Row sum after each tile.
    output : (rows, tiles, value_dim) int64
        Accumulators after each tile.
    """

    score: Int64
    log_score: Int64
    allowed: npt.NDArray[np.bool_]
    tile_maximum: Int64
    maximum: Int64
    shift: Int64
    probability: Int64
    weight: Int64
    total: Int64
    output: Int64


@dataclass(frozen=True)
class Attention:
    """What `attend` returns.

    Parameters
    ----------
    result : (rows, value_dim) int16
        In units of ``2**-result_fraction``.
    state : State
        State after the last key, to continue from.
    trace : Trace or None
        Intermediate values, if they were asked for.
    """

    result: npt.NDArray[np.int16]
    state: State
    trace: Trace | None = None


def attend(
    config: AcceleratorConfig,
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    query_factor: npt.ArrayLike,
    key_factor: npt.ArrayLike,
    value_factor: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    score_shift: npt.ArrayLike,
    result_fraction: npt.ArrayLike = 8,
    *,
    mask: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    position: npt.ArrayLike | None = None,
    state: State | None = None,
    keep: bool = False,
) -> Attention:
    """Attention of rows of queries to one set of keys, bit-exact.

    Parameters
    ----------
    config : AcceleratorConfig
    query : (rows, head_dim) int8
    key : (keys, head_dim) int8
    value : (keys, value_dim) int8
    query_factor : (rows,) uint16
    key_factor, value_factor : (keys,) uint16
    low, high : int or (rows,) int
        A row attends to the keys from `low` up to, not including, `high`. Limits beyond the keys
        are clipped; an empty interval leaves the state as it is.
    score_shift : int or (rows,) int
        0 to 63.
    result_fraction : int or (rows,) int
        0 to 15.
    mask : (rows, keys) bool, optional
        Keys that a row may attend to, beside the interval.
    bias : (rows, keys) int, optional
        Added to the log scores, in units of ``2**-score_fraction_bits``.
    position : (keys,) int, optional
        Numbers of the keys, which `low` and `high` refer to; 0, 1, ... if absent.
    state : State, optional
        State to start from, of a run over earlier keys, whose number was a multiple of
        ``key_rows``. `low` and `high` count from the first key of this call.
    keep : bool
        Whether to return a `Trace`.

    Raises
    ------
    TypeError
        If a tensor or its factors have another data type.
    ValueError
        If shapes disagree or a number is out of its range.
    """
    queries, keys = _operands(
        config,
        *(query, key, value, query_factor, key_factor, value_factor),
        *(low, high, score_shift, mask, bias, position),
    )
    rows, value_dim = len(queries.query), keys.value.shape[1]
    fraction = _per_row("result_fraction", result_fraction, rows, 0, MAX_RESULT_FRACTION)
    if state is None:
        state = State.initial(config, rows, value_dim)
    elif state.output.shape != (rows, value_dim):
        raise ValueError(f"state of shape {state.output.shape}, expected {(rows, value_dim)}")

    state, trace = _run(config, queries, keys, state, keep)
    mantissa, length = reciprocal(state.total)
    result = normalize(state.output, mantissa[:, None], length[:, None], fraction[:, None])
    return Attention(result.astype(np.int16), state, trace)


class _Queries(NamedTuple):
    """One entry a row, in the data types in which products are exact."""

    query: npt.NDArray[np.float32]
    factor: Int64
    low: Int64
    high: Int64
    score_shift: Int64
    mask: npt.NDArray[np.bool_]
    bias: Int64


class _Keys(NamedTuple):
    """One entry a key, padded to whole tiles."""

    position: Int64
    key: npt.NDArray[np.float32]
    value: npt.NDArray[np.float64]
    key_factor: Int64
    value_factor: Int64


def _array(name: str, value: npt.ArrayLike, dtype: type, ndim: int) -> npt.NDArray[Any]:
    array = np.asarray(value)
    if array.dtype != dtype:
        raise TypeError(f"{name} must be {np.dtype(dtype)}, not {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} dimensions, not {array.ndim}")
    return array


def _per_row(name: str, value: npt.ArrayLike, rows: int, least: int, most: int) -> Int64:
    array = np.broadcast_to(np.asarray(value, np.int64), rows)
    if rows and not least <= array.min() <= array.max() <= most:
        raise ValueError(f"{name} must be between {least} and {most}")
    return array


def _operands(
    config: AcceleratorConfig,
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    query_factor: npt.ArrayLike,
    key_factor: npt.ArrayLike,
    value_factor: npt.ArrayLike,
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    score_shift: npt.ArrayLike,
    mask: npt.ArrayLike | None,
    bias: npt.ArrayLike | None,
    position: npt.ArrayLike | None,
) -> tuple[_Queries, _Keys]:
    query, key = _array("query", query, np.int8, 2), _array("key", key, np.int8, 2)
    value = _array("value", value, np.int8, 2)
    query_factor = _array("query_factor", query_factor, np.uint16, 1)
    key_factor = _array("key_factor", key_factor, np.uint16, 1)
    value_factor = _array("value_factor", value_factor, np.uint16, 1)
    rows, count = len(query), len(key)
    for name, array, shape in (
        ("key", key, (count, query.shape[1])),
        ("value", value, (count, value.shape[1])),
        ("query_factor", query_factor, (rows,)),
        ("key_factor", key_factor, (count,)),
        ("value_factor", value_factor, (count,)),
    ):
        if array.shape != shape:
            raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
    for name, number, limit in (
        ("head dimension", query.shape[1], config.max_head_dim),
        ("value dimension", value.shape[1], config.max_head_dim),
        ("number of keys", count, config.max_sequence),
    ):
        if not 1 <= number <= limit:
            raise ValueError(f"{name} must be between 1 and {limit}, not {number}")

    # Scores are sums of at most max_head_dim products of 2^14: float32 is exact up to 2^24.
    assert config.max_head_dim << (2 * ELEMENT_BITS - 2) <= 1 << 24
    # Sums of w * v fit the signed accumulator: float64 is exact up to 2^53.
    assert Widths(config).accumulator <= 54
    pad = -count % config.key_rows
    integer = np.iinfo(np.int64)
    low = _per_row("low", low, rows, integer.min, integer.max)
    high = _per_row("high", high, rows, integer.min, integer.max)
    numbers = np.arange(count) if position is None else _array("position", position, np.int64, 1)
    end = int(numbers.max()) + 1
    queries = _Queries(
        query.astype(np.float32),
        query_factor.astype(np.int64),
        np.maximum(low, 0),
        np.minimum(high, end),
        _per_row("score_shift", score_shift, rows, 0, MAX_SCORE_SHIFT),
        _matrix(mask, True, (rows, count), pad),
        _matrix(bias, np.int64(0), (rows, count), pad),
    )
    keys = _Keys(
        np.concatenate([numbers, end + np.arange(pad)]),
        np.pad(key, ((0, pad), (0, 0))).astype(np.float32),
        np.pad(value, ((0, pad), (0, 0))).astype(np.float64),
        np.pad(key_factor, (0, pad)).astype(np.int64),
        np.pad(value_factor, (0, pad)).astype(np.int64),
    )
    return queries, keys


def _matrix(value: Any, default: Any, shape: tuple[int, int], pad: int) -> npt.NDArray[Any]:
    """One entry a row and key, padded to whole tiles."""
    if value is None:
        return np.broadcast_to(default, (shape[0], shape[1] + pad))
    array = np.asarray(value, type(default))
    return np.pad(np.broadcast_to(array, shape), ((0, 0), (0, pad)))


def _run(
    config: AcceleratorConfig, queries: _Queries, keys: _Keys, state: State, keep: bool
) -> tuple[State, Trace | None]:
    """Run block by block; unless a trace is kept, over the tiles that hold an allowed key."""
    tile, count = config.key_rows, len(keys.key)
    step = count if keep else max(_BLOCK_KEYS // tile, 1) * tile
    states, traces = [], []
    for row in range(0, max(len(queries.query), 1), _BLOCK_ROWS):
        rows = slice(row, row + _BLOCK_ROWS)
        block = _Queries._make(array[rows] for array in queries)
        part = State(state.maximum[rows], state.total[rows], state.output[rows])
        begin, end = int(block.low.min(initial=count)), int(block.high.max(initial=0))
        begin, end = np.searchsorted(keys.position, (begin, end))
        begin, end = (0, count) if keep else (begin // tile * tile, -(-end // tile) * tile)
        for start in range(begin, end, step):
            columns = slice(start, min(start + step, end))
            some = _Keys._make(array[columns] for array in keys)
            there = block._replace(mask=block.mask[:, columns], bias=block.bias[:, columns])
            part, trace = _advance(config, there, some, part, keep)
            traces.append(trace)
        states.append(part)
    return _join(states), _join(traces) if keep else None


def _join(parts: list[Any]) -> Any:
    """The rows of all parts, dataclasses of arrays, in one."""
    names = [field.name for field in dataclasses.fields(parts[0])]
    return type(parts[0])(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in names)
    )


def _product(left: npt.NDArray, right: npt.NDArray) -> npt.NDArray:
    """``left @ right``, in pieces of at most 2^18 multiplications.

    OpenBLAS spreads larger ones over threads, which costs more than it gains at these sizes, and
    a multiple of the time when the cores are busy.
    """
    result = np.empty((len(left), right.shape[1]), left.dtype)
    step = max((1 << 18) // max(left.size, 1), 1)
    for start in range(0, right.shape[1], step):
        columns = slice(start, start + step)
        np.matmul(left, right[:, columns], out=result[:, columns])
    return result


def _advance(
    config: AcceleratorConfig, queries: _Queries, keys: _Keys, state: State, keep: bool
) -> tuple[State, Trace | None]:
    """Run all rows over whole tiles of keys."""
    widths = Widths(config)
    score = _product(queries.query, keys.key.T).astype(np.int64)
    factor = gain(queries.factor[:, None], keys.key_factor)
    z = log_score(widths, score, factor, queries.score_shift[:, None])
    z = biased(widths, z, queries.bias)
    allowed = (keys.position >= queries.low[:, None]) & (keys.position < queries.high[:, None])
    allowed &= queries.mask

    tiles = (len(z), len(keys.key) // config.key_rows, config.key_rows)
    masked = np.where(allowed, z, widths.lowest_log_score).reshape(tiles)
    before = state.maximum[:, None]
    tile_maximum = masked.max(axis=2)
    maximum = np.maximum.accumulate(running_maximum(widths, before, tile_maximum), axis=1)
    shift = np.diff(maximum, axis=1, prepend=before)

    distance = (maximum[:, :, None] << widths.fraction) - masked
    probability = Exp2Table(config).probability(distance).reshape(z.shape) * allowed
    tile_total = probability.reshape(tiles).sum(axis=2)
    weights = weight(probability, keys.value_factor)

    count = shift.shape[1]
    total, totals = state.total, []
    for tile in range(count):
        total = rescale(total, shift[:, tile]) + tile_total[:, tile]
        totals.append(total)

    # Tiles from one change of any row's maximum to the next are a single product.
    starts = range(count) if keep else [0, *(np.flatnonzero(shift[:, 1:].any(axis=0)) + 1)]
    output, outputs = state.output, []
    for start, stop in zip(starts, [*starts[1:], count], strict=True):
        span = slice(start * config.key_rows, stop * config.key_rows)
        partial = _product(weights[:, span].astype(np.float64), keys.value[span])
        output = rescale(output, shift[:, start, None]) + partial.astype(np.int64)
        outputs.append(output)

    state = State(maximum[:, -1], total, output)
    if not keep:
        return state, None
    trace = Trace(
        *(score, z, allowed, tile_maximum, maximum, shift, probability, weights),
        total=np.stack(totals, axis=1),
        output=np.stack(outputs, axis=1),
    )
    return state, trace
