"""ValueArray against products of weights and values."""

from __future__ import annotations

from typing import Any

import numpy as np

from benches.common import bench, configuration, generator, join, play, split
from celosia_hw.arithmetic import Widths

CONFIG = configuration()
ROWS, LANES = CONFIG.key_rows, CONFIG.query_lanes
WIDTHS = Widths(CONFIG)
MAX_WEIGHT = (1 << CONFIG.probability_bits) - 1
LATENCY = ROWS + CONFIG.multiplier_stages + 1


async def check(
    dut: Any, tiles: list[tuple[np.ndarray, np.ndarray]], rng: np.random.Generator, slack: int
) -> None:
    """Run tiles of weights (R, C) and values (R, Ev).

    With `slack`, tiles come up to so many clocks late, and values as late as they may.
    """
    weight_start, value_start = [], []
    clock, free = 2, 0
    for number, (_, values) in enumerate(tiles):
        weight_start.append(clock)
        clock += max(ROWS, values.shape[1], CONFIG.tile_latency)
        clock += int(rng.integers(0, slack + 1))
        if number and slack:
            # The values of the tile before are still entering.
            clock = max(clock, free)
        begin = max(weight_start[-1] + ROWS, free)
        if slack:
            begin = int(rng.integers(begin, max(begin, clock) + 1))
        assert weight_start[-1] + ROWS <= begin <= clock
        value_start.append(begin)
        free = begin + values.shape[1]

    clocks = free + LATENCY + LANES + 2
    weights = rng.integers(0, MAX_WEIGHT + 1, (clocks, LANES))  # the inputs are never quiet
    values = rng.integers(-128, 128, (clocks, ROWS))
    load, load_first, swap = (np.zeros(clocks, int) for _ in range(3))
    for (weight, value), start, begin in zip(tiles, weight_start, value_start, strict=True):
        load[start - 1 : start - 1 + ROWS] = 1
        load_first[start - 1] = 1
        swap[begin] = 1
        values[begin : begin + value.shape[1]] = value.T
        for c in range(LANES):
            weights[start + c : start + c + ROWS, c] = weight[:, c]
    inputs = {
        "weights": [join(row, WIDTHS.probability) for row in weights],
        "values": [join(row, 8) for row in values],
        "load": list(load),
        "load_first": list(load_first),
        "swap": list(swap),
    }
    seen = (await play(dut, "value_array", inputs, ["partials"]))["partials"]
    lanes = np.array([split(word, WIDTHS.partial, LANES, signed=True) for word in seen])
    for (weight, value), begin in zip(tiles, value_start, strict=True):
        expected = value.astype(int).T @ weight.astype(int)
        for c in range(LANES):
            start = begin + LATENCY + c
            np.testing.assert_array_equal(lanes[start : start + len(expected), c], expected[:, c])


def tile(rng: np.random.Generator, dim: int) -> tuple[np.ndarray, np.ndarray]:
    weights = rng.integers(0, MAX_WEIGHT + 1, (ROWS, LANES))
    return weights, rng.integers(-128, 128, (ROWS, dim))


@bench()
async def back_to_back(dut: Any) -> None:
    rng = generator("value_array back_to_back")
    dims = [dim for dim in range(1, CONFIG.max_head_dim + 1) for _ in range(6)]
    await check(dut, [tile(rng, dim) for dim in dims], rng, 0)


@bench()
async def with_gaps(dut: Any) -> None:
    rng = generator("value_array with_gaps")
    dims = rng.integers(1, CONFIG.max_head_dim + 1, 60)
    await check(dut, [tile(rng, int(dim)) for dim in dims], rng, 9)


@bench()
async def extremes(dut: Any) -> None:
    rng = generator("value_array extremes")
    dim = CONFIG.max_head_dim
    tiles = [
        (np.full((ROWS, LANES), weight), np.full((ROWS, dim), value))
        for weight in (MAX_WEIGHT, 0, 1, MAX_WEIGHT)
        for value in (-128, 127, 0)
    ]
    await check(dut, tiles, rng, 0)
