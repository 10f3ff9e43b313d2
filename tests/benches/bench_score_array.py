"""ScoreArray against dot products."""

from __future__ import annotations

from typing import Any

import numpy as np

from benches.common import bench, configuration, generator, join, play, split
from celosia_hw.arithmetic import Widths

CONFIG = configuration()
ROWS, LANES = CONFIG.key_rows, CONFIG.query_lanes
LATENCY = CONFIG.multiplier_stages + 3


async def check(dut: Any, tiles: list[tuple[np.ndarray, np.ndarray]], gaps: list[int]) -> None:
    """Run tiles of keys (R, E) and queries (C, E), with so many idle clocks after each."""
    rng = generator("between tiles")  # the inputs are never quiet
    keys, queries, first, last, ends = [], [], [], [], []
    for (key, query), gap in zip(tiles, gaps, strict=True):
        inner = key.shape[1]
        pause = gap + max(inner, ROWS) - inner
        noise_key, noise_query = tile(rng, pause)
        keys += [join(column, 8) for column in (*key.T, *noise_key.T)]
        queries += [join(column, 8) for column in (*query.T, *noise_query.T)]
        first += [1] + [0] * (inner - 1 + pause)
        last += [0] * (inner - 1) + [1] + [0] * pause
        ends.append(len(keys) - 1 - pause)
    clocks = len(keys) + LATENCY + ROWS + LANES
    inputs = {"keys": keys, "queries": queries, "first": first, "last": last}
    scores = (await play(dut, "score_array", inputs, ["scores"], clocks))["scores"]
    lanes = np.array([split(word, Widths(CONFIG).score, LANES, signed=True) for word in scores])
    for (key, query), end in zip(tiles, ends, strict=True):
        expected = key.astype(int) @ query.astype(int).T
        for c in range(LANES):
            begin = end + LATENCY + c
            np.testing.assert_array_equal(lanes[begin : begin + ROWS, c], expected[:, c])


def tile(rng: np.random.Generator, inner: int) -> tuple[np.ndarray, np.ndarray]:
    key = rng.integers(-128, 128, (ROWS, inner)).astype(np.int8)
    return key, rng.integers(-128, 128, (LANES, inner)).astype(np.int8)


@bench()
async def back_to_back(dut: Any) -> None:
    rng = generator("score_array back_to_back")
    tiles = [tile(rng, inner) for inner in range(1, CONFIG.max_head_dim + 1) for _ in range(6)]
    await check(dut, tiles, [0] * len(tiles))


@bench()
async def with_gaps(dut: Any) -> None:
    rng = generator("score_array with_gaps")
    # A shorter inner dimension must not catch up: the sequencer waits for that.
    dims = sorted(int(d) for d in rng.integers(1, CONFIG.max_head_dim + 1, 40))
    tiles = [tile(rng, inner) for inner in dims]
    await check(dut, tiles, [int(gap) for gap in rng.integers(0, 7, 40)])


@bench()
async def extremes(dut: Any) -> None:
    tiles = []
    for a, b in [(-128, -128), (-128, 127), (127, 127), (127, -128), (0, 0), (-128, -128)]:
        for inner in (CONFIG.max_head_dim, CONFIG.inner):
            key = np.full((ROWS, inner), a, np.int8)
            tiles.append((key, np.full((LANES, inner), b, np.int8)))
    await check(dut, tiles, [0] * len(tiles))
