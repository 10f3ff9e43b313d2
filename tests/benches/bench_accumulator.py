"""AccumulatorLane against sums of rescaled partials."""

from __future__ import annotations

from typing import Any

import numpy as np

from benches.common import bench, configuration, generator, play, split
from celosia_hw import arithmetic
from celosia_hw.accumulator import WRITE_LAG, AccumulatorStep
from celosia_hw.arithmetic import Widths
from celosia_hw.timing import ACCUMULATOR_READ, Timing

CONFIG = configuration()
WIDTHS, TIMING = Widths(CONFIG), Timing(CONFIG)
STEP = AccumulatorStep(CONFIG)
AHEAD = TIMING.partial - ACCUMULATOR_READ - TIMING.probability
"""Clocks from a tile's rescaling to its first read step."""
LARGEST = CONFIG.key_rows * ((1 << CONFIG.probability_bits) - 1) * 128
Tiles = list[tuple[int, np.ndarray]]
"""Of a query tile: rescaling and partials of each key tile."""


async def check(dut: Any, queries: list[Tiles], rng: np.random.Generator, slack: int) -> None:
    """Sum query tiles up in alternating banks, and read each bank out beside the next one."""
    clock = AHEAD + 1
    steps, rescales, partials, drains = {}, {}, {}, {}
    states: dict[int, tuple[int, int, int]] = {}
    before: tuple[int, int, list[int]] | None = None
    for number, tiles in enumerate(queries):
        bank, dim = number % 2, len(tiles[0][1])
        sums = [0] * dim
        from_state = number > 1 and rng.random() < 0.4
        if from_state:  # written while the other bank may still add up
            top = 1 << (WIDTHS.accumulator - 2)
            sums = [int(s) for s in rng.integers(-top, top, dim)]
            for index in range(dim):
                states[clock + index] = (bank, index, sums[index])
            clock += dim
        if before is not None:  # read the other bank out while this one adds up
            for index in rng.permutation(len(before[2])):
                at = clock + WRITE_LAG + len(drains) - before[1]
                drains[at] = (1 - bank, int(index), before[2][index])
        for tile, (shift, partial) in enumerate(tiles):
            rescales[clock - AHEAD] = shift
            for index in range(dim):
                is_fresh = tile == 0 and not from_state
                old = 0 if is_fresh else arithmetic.rescale(sums[index], shift)
                sums[index] = old + int(partial[index])
                fields = {
                    **{"valid": 1, "first": index == 0, "fresh": is_fresh},
                    **{"bank": bank, "index": index},
                }
                steps[clock + index] = sum(int(v) << STEP[n].offset for n, v in fields.items())
                partials[clock + index + ACCUMULATOR_READ] = int(partial[index])
            clock += max(dim, CONFIG.key_rows, CONFIG.tile_latency) + int(rng.integers(slack + 1))
        before = (bank, len(drains), sums)
        # The other bank is only then used again when all of it has been read.
        clock = max(clock, *drains, 0)
    clocks = clock + WRITE_LAG + 4

    def wave(values: dict[int, int], bits: int) -> list[int]:
        return [values.get(c, 0) & ((1 << bits) - 1) for c in range(clocks)]

    inputs = {
        "partial": wave(partials, WIDTHS.partial),
        "read_step": wave(steps, STEP.size),
        "write_step": wave({c + WRITE_LAG: v for c, v in steps.items()}, STEP.size),
        "rescale_valid": wave(dict.fromkeys(rescales, 1), 1),
        "rescale": wave(rescales, 6),
        "state_write": wave(dict.fromkeys(states, 1), 1),
        "state_bank": wave({c: bank for c, (bank, _, _) in states.items()}, 1),
        "state_index": wave({c: index for c, (_, index, _) in states.items()}, 16),
        "state": wave({c: value for c, (_, _, value) in states.items()}, WIDTHS.accumulator),
        "score": [0] * clocks,
        "is_product": [0] * clocks,
        "drain_bank": wave({c: bank for c, (bank, _, _) in drains.items()}, 1),
        "drain_index": wave({c: index for c, (_, index, _) in drains.items()}, 16),
    }
    names = ["drained", "next_read_step", "next_write_step"]
    seen = await play(dut, "accumulator", inputs, names)
    assert drains
    for at, (_, _, expected) in drains.items():
        value = split(seen["drained"][at + 3], WIDTHS.accumulator, 1, signed=True)
        assert value == [expected], at
    for name in ("read_step", "write_step"):
        np.testing.assert_array_equal(seen[f"next_{name}"][1:], inputs[name][: clocks - 1])


def query(rng: np.random.Generator, dim: int, tiles: int) -> Tiles:
    # Shifts that keep something, and now and then one that shifts everything out.
    shifts = rng.choice([0, 0, 0, 1, 2, 5, 8, 13, 31, 40, 63], tiles)
    return [(int(s), rng.integers(-LARGEST, LARGEST + 1, dim)) for s in shifts]


@bench()
async def back_to_back(dut: Any) -> None:
    rng = generator("accumulator back_to_back")
    dim = CONFIG.max_head_dim
    queries = [query(rng, dim, int(rng.integers(2, 6))) for _ in range(30)]
    await check(dut, queries, rng, 0)


@bench()
async def odd_dimensions_with_gaps(dut: Any) -> None:
    rng = generator("accumulator odd_dimensions_with_gaps")
    queries = []
    for _ in range(60):
        dim = int(rng.integers(1, CONFIG.max_head_dim + 1))
        queries.append(query(rng, dim, int(rng.integers(3, 6))))
    await check(dut, queries, rng, 5)


@bench()
async def largest_sums(dut: Any) -> None:
    """Up to as many keys as a sum is made for, all at their extremes."""
    rng = generator("accumulator largest_sums")
    tiles = min(CONFIG.max_sequence // CONFIG.key_rows, 400)
    dim = CONFIG.max_head_dim
    lowest = [(0, np.full(dim, -LARGEST))] * tiles
    highest = [(0, np.full(dim, LARGEST // 128 * 127))] * tiles
    small = [(0, np.full(dim, -1)), (63, np.full(dim, 0)), (1, np.full(dim, 0))]
    await check(dut, [lowest, highest, small, small], rng, 0)


@bench()
async def products(dut: Any) -> None:
    """Scores are written as they are, and read out while the other bank takes the next ones."""
    rng = generator("accumulator products")
    depth, top = CONFIG.accumulator_depth, 1 << (WIDTHS.score - 1)
    scores = rng.integers(-top, top, (4, depth))
    clocks = 5 * depth + 8
    names = (
        *("partial", "read_step", "write_step", "rescale_valid", "rescale", "score"),
        *("state_write", "state_bank", "state_index", "state", "drain_bank", "drain_index"),
    )
    inputs: dict[str, list[int]] = {name: [0] * clocks for name in names}
    inputs["is_product"] = [1] * clocks
    for number, row in enumerate(scores):
        for index, score in enumerate(row):
            at = number * depth + index
            inputs["score"][at] = int(score) & ((1 << WIDTHS.score) - 1)
            fields = {"valid": 1, "bank": number % 2, "index": index}
            step = sum(value << STEP[name].offset for name, value in fields.items())
            inputs["write_step"][at + 1] = step
            inputs["drain_bank"][at + depth + 2] = number % 2
            inputs["drain_index"][at + depth + 2] = index
    seen = await play(dut, "accumulator", inputs, ["drained"])
    for number, row in enumerate(scores):
        for index, score in enumerate(row):
            at = (number + 1) * depth + index + 2 + 3
            assert split(seen["drained"][at], WIDTHS.accumulator, 1, signed=True) == [score]
