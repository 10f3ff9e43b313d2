"""From the masks of the heads that share keys to query tiles that the accelerator can be asked for.

The accelerator knows a rule for the keys of each lane, not a list: both ends of the interval are
constant or grow by one a lane (`celosia_hw.protocol.ATTEND_FIELDS`). Rows are taken in order, as
many to a tile as one rule describes; rows of several heads share the lanes where it describes them
all. Key tiles before the first and after the last allowed key are not read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from celosia_hw.config import AcceleratorConfig

from .masks import HeadMask

__all__ = ["QueryTile", "query_tiles"]

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class QueryTile:
    """Rows that are attended with together.

    Parameters
    ----------
    rows : (n,) int64 ndarray
        Numbers of the rows, the queries of one head after those of the other.
    first_tile, tiles : int
        Key tiles to read.
    fields : dict of int
        ``low``, ``low_step``, ``high``, ``high_step`` and ``limit``, from the first key of
        `first_tile`.
    """

    rows: Int64
    first_tile: int
    tiles: int
    fields: dict[str, int]


def query_tiles(config: AcceleratorConfig, masks: Sequence[HeadMask]) -> list[QueryTile]:
    """Tiles of all rows that attend to any key.

    Parameters
    ----------
    config : AcceleratorConfig
    masks : sequence of HeadMask
        One per head, without `allowed` and `bias`.
    """
    low = np.concatenate([mask.low for mask in masks])
    high = np.concatenate([mask.high for mask in masks])
    rows = np.flatnonzero(low < high)
    tiles, start = [], 0
    while start < len(rows):
        count = min(config.query_lanes, len(rows) - start)
        while True:  # a single row always has a rule
            some = rows[start : start + count]
            tile = _tile(config, some, low[some], high[some])
            if tile is not None:
                break
            count -= 1
        tiles.append(tile)
        start += count
    return tiles


def _tile(config: AcceleratorConfig, rows: Int64, low: Int64, high: Int64) -> QueryTile | None:
    """The tile of rows with these intervals, if one rule describes them."""
    first_tile, end = int(low.min()) // config.key_rows, int(high.max())
    origin = first_tile * config.key_rows
    lower = _rule(low, lambda line: np.maximum(line, origin), np.max)
    upper = _rule(high, lambda line: np.minimum(line, end), np.min)
    if lower is None or upper is None:
        return None
    fields = {
        "low": lower[0] - origin,
        "low_step": lower[1],
        "high": upper[0] - origin,
        "high_step": upper[1],
        "limit": end - origin,
    }
    return QueryTile(rows, first_tile, -(-end // config.key_rows) - first_tile, fields)


def _rule(ends: Int64, clip, extreme) -> tuple[int, int] | None:
    """Start and step of the line that, clipped, gives these ends; None if there is none."""
    lane = np.arange(len(ends))
    for step in (0, 1):
        start = extreme(ends - step * lane)
        if np.array_equal(clip(start + step * lane), ends):
            return int(start), step
    return None
