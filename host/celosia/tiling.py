"""From the masks of the heads that share keys to query tiles that the accelerator can be asked for.

Where one rule gives the keys of all lanes of a tile (both ends of the interval constant, or growing
by one a lane), the accelerator makes the intervals itself; else they are sent. What no interval can
say is sent as mask bits, and biases as numbers, for each key tile that some lane attends to; the
others are not read. See `celosia_hw.protocol`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import BIAS_BITS, MAX_BIAS_SHIFT, MAX_SLOPE_SHIFT, SLOPE_BITS, Widths
from celosia_hw.config import AcceleratorConfig

from .masks import HeadMask

__all__ = ["QueryTile", "query_tiles"]

Int64 = npt.NDArray[np.int64]
_LARGEST_BIAS = (1 << (BIAS_BITS - 1)) - 1
_SPARE_BITS = 24  # a weight of 2^-24 of the largest is 0


@dataclass(frozen=True)
class QueryTile:
    """Rows that are attended with together.

    Parameters
    ----------
    rows : (n,) int64 ndarray
        Numbers of the rows, the queries of one head after those of the other.
    key_tiles : (m,) int64 ndarray
        Key tiles to read.
    fields : dict of int
        ``low``, ``low_step``, ``high``, ``high_step`` and ``limit``, from the first key of the
        first key tile.
    slope : dict of int
        ``slope``, ``slope_shift`` and ``anchor``, if there is a linear bias.
    intervals : (n, 2) int64 ndarray or None
        Ends of the rows' intervals, where no rule gives them.
    allowed : (n, m * key_rows) bool ndarray or None
    bias : (n, m * key_rows) int16 ndarray or None
        In units of ``2**bias_shift`` of a log score's.
    bias_shift : int
    """

    rows: Int64
    key_tiles: Int64
    fields: dict[str, int]
    slope: dict[str, int] = field(default_factory=dict)
    intervals: Int64 | None = None
    allowed: npt.NDArray[np.bool_] | None = None
    bias: npt.NDArray[np.int16] | None = None
    bias_shift: int = 0

    def part(self, config: AcceleratorConfig, first: int, end: int) -> QueryTile | None:
        """What is left of the tile with the key tiles from `first` up to `end` only."""
        inside = (self.key_tiles >= first) & (self.key_tiles < end)
        if not inside.any():
            return None
        size, key_tiles = config.key_rows, self.key_tiles[inside]
        moved = int(key_tiles[0] - self.key_tiles[0]) * size
        keys = int(key_tiles[-1] - key_tiles[0] + 1) * size
        # Ends beyond these mean the same as these in every lane.
        ends = {
            name: min(max(self.fields[name] - moved, -config.query_lanes), keys)
            for name in ("low", "high")
        }
        limit = min(max(self.fields["limit"] - moved, 0), keys)
        slope = dict(self.slope)
        if slope:
            slope["anchor"] -= moved
        intervals = self.intervals
        if intervals is not None:
            intervals = np.clip(intervals - moved, 0, keys)
        columns = np.repeat(inside, size)
        return dataclasses.replace(
            self,
            key_tiles=key_tiles,
            fields={**self.fields, **ends, "limit": limit},
            slope=slope,
            intervals=intervals,
            allowed=None if self.allowed is None else self.allowed[:, columns],
            bias=None if self.bias is None else self.bias[:, columns],
        )


def query_tiles(
    config: AcceleratorConfig, masks: Sequence[HeadMask], logit_range: float
) -> list[QueryTile]:
    """Tiles of all rows that attend to any key.

    Parameters
    ----------
    config : AcceleratorConfig
    masks : sequence of HeadMask
        One per head.
    logit_range : float
        No logit, without bias and in base 2, has a larger magnitude.
    """
    queries, lanes = len(masks[0].low), config.query_lanes
    rows = np.arange(len(masks) * queries).reshape(len(masks), queries)
    one = masks[0]
    if any(mask.slope is not None for mask in masks):
        shares = list(rows)  # a slope for each tile
    elif queries % lanes == 0 or not (one.low.any() or np.ptp(one.high)):
        shares = [rows.ravel()]
    else:
        shares = [rows.T.ravel()]  # rows beside each other attend to similar keys
    attends = np.concatenate([~mask.is_empty for mask in masks])
    tiles = []
    for share in shares:
        used = share[attends[share]]
        tiles += [
            _tile(config, masks, used[start : start + lanes], logit_range)
            for start in range(0, len(used), lanes)
        ]
    return tiles


def _tile(
    config: AcceleratorConfig, masks: Sequence[HeadMask], rows: Int64, logit_range: float
) -> QueryTile:
    size = config.key_rows
    where = [(masks[row // len(masks[0].low)], row % len(masks[0].low)) for row in rows.tolist()]
    low = np.array([mask.low[row] for mask, row in where])
    high = np.array([mask.high[row] for mask, row in where])
    key_tiles = np.arange(int(low.min()) // size, -(-int(high.max()) // size))
    allowed = bias = None
    shift = 0
    if any(mask.allowed is not None or mask.bias is not None for mask, _ in where):
        allowed = _rows_of(
            where, lambda mask: mask.matrix(), len(key_tiles) * size, key_tiles[0] * size
        )
        used = allowed.reshape(len(rows), -1, size).any(axis=(0, 2))
        if any(mask.bias is not None for mask, _ in where):
            zeros = np.zeros((1, 1))
            floats = _rows_of(
                where,
                lambda mask: zeros if mask.bias is None else mask.bias,
                len(key_tiles) * size,
                key_tiles[0] * size,
            )
            bias, shift = _quantize_bias(Widths(config), floats, allowed, logit_range)
            bias = bias.reshape(len(rows), -1, size)[:, used].reshape(len(rows), -1)
        key_tiles = key_tiles[used]
        allowed = allowed.reshape(len(rows), -1, size)[:, used].reshape(len(rows), -1)
        if all(mask.allowed is None for mask, _ in where):
            allowed = None
    origin, end = int(key_tiles[0]) * size, int(high.max())
    fields, intervals = _interval_fields(low - origin, high - origin, end - origin)
    if allowed is not None:  # it is the whole mask
        everything = {"low": 0, "low_step": 0, "high": end - origin, "high_step": 0}
        fields, intervals = {**everything, "limit": end - origin}, None
    first, row = where[0]
    slope = {}
    if first.slope is not None:
        slope = _slope_fields(Widths(config), first.slope)
        slope["anchor"] = row + first.offset - origin
    return QueryTile(rows, key_tiles, fields, slope, intervals, allowed, bias, shift)


def _rows_of(where, matrix, count: int, start: int) -> npt.NDArray:
    """Rows of matrices of the masks, `count` columns from `start`, padded with zeros."""
    rows = np.stack([np.broadcast_to(matrix(m), (len(m.low), m.keys))[row] for m, row in where])
    rows = rows[:, start : start + count]
    return np.pad(rows, ((0, 0), (0, count - rows.shape[1])))


def _interval_fields(low: Int64, high: Int64, end: int) -> tuple[dict[str, int], Int64 | None]:
    """The rule that gives these intervals; if there is none, the intervals as well."""
    lower = _rule(low, lambda line: np.maximum(line, 0), np.max)
    upper = _rule(high, lambda line: np.minimum(line, end), np.min)
    if lower is None or upper is None:
        fields = {"low": 0, "low_step": 0, "high": end, "high_step": 0, "limit": end}
        return fields, np.stack([low, high], axis=1)
    return {
        "low": lower[0],
        "low_step": lower[1],
        "high": upper[0],
        "high_step": upper[1],
        "limit": end,
    }, None


def _rule(ends: Int64, clip, extreme) -> tuple[int, int] | None:
    """Start and step of the line that, clipped, gives these ends; None if there is none."""
    lane = np.arange(len(ends))
    for step in (0, 1):
        start = extreme(ends - step * lane)
        if np.array_equal(clip(start + step * lane), ends):
            return int(start), step
    return None


def _slope_fields(widths: Widths, slope: float) -> dict[str, int]:
    """A slope, of natural logarithms a key, in the accelerator's format."""
    units = math.ldexp(slope * math.log2(math.e), widths.fraction)
    shift = min(max(SLOPE_BITS - math.frexp(units)[1], 0), MAX_SLOPE_SHIFT)
    return {
        "slope": min(round(math.ldexp(units, shift)), (1 << SLOPE_BITS) - 1),
        "slope_shift": shift,
    }


def _quantize_bias(
    widths: Widths,
    bias: npt.NDArray[np.float64],
    allowed: npt.NDArray[np.bool_],
    logit_range: float,
) -> tuple[npt.NDArray[np.int16], int]:
    """Biases as int16, and their shift.

    Softmax does not see what a whole row has in common, so the largest bias becomes 0. Biases so
    low that the weight is 0 whatever the logits are cut off, as they would cost the others bits.
    """
    largest = np.where(allowed, bias, -np.inf).max(axis=1, keepdims=True)
    units = np.where(allowed, bias - largest, 0) * math.log2(math.e)
    units = np.maximum(units, -(2 * logit_range + _SPARE_BITS)) * (1 << widths.fraction)
    ratio = -float(units.min()) / _LARGEST_BIAS
    shift = min(max(math.ceil(math.log2(ratio)), 0), MAX_BIAS_SHIFT) if ratio > 0 else 0
    numbers = np.rint(units / (1 << shift)).clip(-_LARGEST_BIAS, _LARGEST_BIAS)
    return numbers.astype(np.int16), shift
