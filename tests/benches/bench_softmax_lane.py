"""SoftmaxLane against the steps of `arithmetic`, at the clocks of `timing.Timing`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from benches.common import bench, configuration, generator, play
from celosia_hw import arithmetic
from celosia_hw.arithmetic import Exp2Table, Widths
from celosia_hw.softmax_lane import LaneStep
from celosia_hw.timing import Timing

CONFIG = configuration()
ROWS = CONFIG.key_rows
WIDTHS, TIMING, TABLE = Widths(CONFIG), Timing(CONFIG), Exp2Table(CONFIG)
STEP = LaneStep(CONFIG)
SPACING = max(ROWS, CONFIG.tile_latency)
FACTOR = 1 << 15
"""Query and key factor whose gain is 2^15."""
UNITY = 15
"""Score shift that makes of this gain 1: z is the score without its dropped bits."""
MAX_FACTOR = 65535
LOWEST, HIGHEST = -CONFIG.max_head_dim * 128 * 127, CONFIG.max_head_dim * 128 * 128
"""Scores, of -128s with 127s and of -128s with themselves."""
Int64 = npt.NDArray[np.int64]


@dataclass
class Query:
    """Whole key tiles of one query."""

    scores: Int64
    key_factors: Int64
    value_factors: Int64
    query_factor: int = FACTOR
    score_shift: int = UNITY
    low: int = 0
    high: int = 1 << 16
    bias: Int64 | int = 0
    mask: npt.NDArray[np.bool_] | bool = True
    state: tuple[int, int] | None = None
    """Maximum and row sum to start from."""

    @property
    def initial(self) -> tuple[int, int]:
        return (WIDTHS.lowest_maximum, 0) if self.state is None else self.state

    @property
    def tiles(self) -> int:
        return len(self.scores) // ROWS


@dataclass
class Expected:
    weights: Int64
    shifts: list[int]
    total: int
    maximum: int


def reference(query: Query) -> Expected:
    """What `arithmetic` says."""
    gain = arithmetic.gain(query.query_factor, query.key_factors)
    z = arithmetic.log_score(WIDTHS, query.scores, gain, query.score_shift)
    z = arithmetic.biased(WIDTHS, z, np.broadcast_to(query.bias, z.shape))
    position = np.arange(len(z))
    allowed = (position >= query.low) & (position < query.high) & query.mask
    maximum, total = query.initial
    weights, shifts = [], []
    for start in range(0, len(z), ROWS):
        span = slice(start, start + ROWS)
        tile_maximum = int(np.where(allowed, z, WIDTHS.lowest_log_score)[span].max())
        new = arithmetic.running_maximum(WIDTHS, maximum, tile_maximum)
        probability = TABLE.probability((new << WIDTHS.fraction) - z[span]) * allowed[span]
        shifts.append(new - maximum)
        total = arithmetic.rescale(total, new - maximum) + int(probability.sum())
        weights.append(arithmetic.weight(probability, query.value_factors[span]))
        maximum = new
    return Expected(np.concatenate(weights), shifts, total, maximum)


def waveforms(tiles: list[tuple[Query, int, int]]) -> dict[str, list[int]]:
    """Waveforms of the lane's inputs; `tiles` are (query, tile, clock of its event)."""
    clocks = tiles[-1][2] + TIMING.weight + ROWS + 8
    members = {name: np.zeros(clocks, np.int64) for name in STEP.members}
    names = (
        *("score", "query_factor", "low", "high", "bias", "allowed"),
        *("initial_maximum", "initial_total"),
    )
    inputs = {name: np.zeros(clocks, np.int64) for name in names}
    for query, tile, event in tiles:
        keys = slice(tile * ROWS, (tile + 1) * ROWS)
        first, final = tile == 0, tile == query.tiles - 1

        def put(wave: Int64, at: int, values: Any, event: int = event, count: int = ROWS) -> None:
            wave[event + at : event + at + count] = values

        if first:
            for name, wave, at in (
                ("load_factor", inputs["query_factor"], TIMING.load_factor),
                ("load_interval", inputs["low"], TIMING.load_interval),
            ):
                put(members[name], at, 1, count=1)
                put(wave, at, query.query_factor if name == "load_factor" else query.low, count=1)
            put(inputs["high"], TIMING.load_interval, query.high, count=1)
            maximum, total = query.initial
            put(inputs["initial_maximum"], TIMING.load_interval, maximum, count=1)
            put(inputs["initial_total"], TIMING.load_interval, total, count=1)
        put(inputs["score"], TIMING.score, query.scores[keys])
        put(members["key_factor"], TIMING.key_factor, query.key_factors[keys])
        put(members["score_shift"], TIMING.score_shift, query.score_shift)
        place = np.arange(keys.start, keys.stop) % CONFIG.key_capacity
        put(members["position"], TIMING.position, place)
        put(inputs["bias"], TIMING.position, np.broadcast_to(query.bias, len(query.scores))[keys])
        put(
            inputs["allowed"], TIMING.position, np.broadcast_to(query.mask, len(query.scores))[keys]
        )
        put(members["log_first"], TIMING.log_score, 1, count=1)
        put(members["log_last"], TIMING.log_score + ROWS - 1, 1, count=1)
        put(members["log_fresh"], TIMING.log_score, int(first))
        put(members["sum_first"], TIMING.probability, 1, count=1)
        put(members["sum_last"], TIMING.probability + ROWS - 1, 1, count=1)
        put(members["sum_fresh"], TIMING.probability, int(first))
        put(members["sum_final"], TIMING.probability, int(final))
        put(members["value_factor"], TIMING.probability, query.value_factors[keys])

    words = np.zeros(len(inputs["score"]), object)
    for name, values in members.items():
        words += values.astype(object) << STEP[name].offset
    return {
        "step": words.tolist(),
        "score": (inputs["score"] & ((1 << WIDTHS.score) - 1)).tolist(),
        "query_factor": inputs["query_factor"].tolist(),
        "bias": (inputs["bias"] & ((1 << WIDTHS.log_score) - 1)).tolist(),
        "allowed": inputs["allowed"].tolist(),
        "initial_maximum": (inputs["initial_maximum"] & ((1 << WIDTHS.maximum) - 1)).tolist(),
        "initial_total": inputs["initial_total"].tolist(),
        "low": (inputs["low"] & ((1 << 18) - 1)).tolist(),
        "high": (inputs["high"] & ((1 << 18) - 1)).tolist(),
    }


async def check(dut: Any, queries: list[Query], rng: np.random.Generator | None = None) -> None:
    """Run queries back to back, or with random gaps between their tiles."""
    tiles, event, ready = [], 0, 0
    had_state = False
    for query in queries:
        if query.state is not None or had_state:
            event = max(event, ready)
        ready, had_state = event + TIMING.state_gap, query.state is not None
        for tile in range(query.tiles):
            tiles.append((query, tile, event))
            event += SPACING + (int(rng.integers(0, 12)) if rng is not None else 0)
    names = ["weight", "rescale_valid", "rescale", "total_valid", "total", "final_maximum"]
    names.append("next_step")
    inputs = waveforms(tiles)
    seen = await play(dut, "softmax_lane", inputs, names)

    results = {id(query): reference(query) for query in queries}
    clocks = len(seen["weight"])
    rescales, totals = {}, {}
    for query, tile, start in tiles:
        expected = results[id(query)]
        weights = seen["weight"][start + TIMING.weight :][:ROWS]
        np.testing.assert_array_equal(weights, expected.weights[tile * ROWS : (tile + 1) * ROWS])
        rescales[start + TIMING.probability] = min(expected.shifts[tile], 63)
        if tile == query.tiles - 1:
            totals[start + TIMING.probability + ROWS - 1 + 4] = expected.total, expected.maximum
    for clock in range(clocks):
        assert seen["rescale_valid"][clock] == (clock in rescales)
        if clock in rescales:
            assert seen["rescale"][clock] == rescales[clock]
        assert seen["total_valid"][clock] == (clock in totals)
        total, maximum = totals.get(clock, (0, 0))
        assert seen["total"][clock] == total
        assert seen["final_maximum"][clock] == maximum & ((1 << WIDTHS.maximum) - 1)
    np.testing.assert_array_equal(seen["next_step"][1:], inputs["step"][: clocks - 1])


def random_query(rng: np.random.Generator, tiles: int) -> Query:
    keys = tiles * ROWS
    spread = 1 << int(rng.integers(1, WIDTHS.score))
    scores = rng.integers(-spread, spread, keys).clip(LOWEST, HIGHEST)
    low, high = (int(x) for x in rng.integers(-5, keys + 5, 2))
    if rng.random() < 0.5:
        low, high = -100, 1000
    largest = 1 << int(rng.integers(0, WIDTHS.log_score))
    return Query(
        scores,
        rng.integers(0, MAX_FACTOR + 1, keys),
        rng.integers(0, MAX_FACTOR + 1, keys),
        int(rng.integers(0, MAX_FACTOR + 1)),
        int(rng.integers(0, 64)) if rng.random() < 0.2 else int(rng.integers(8, 28)),
        low,
        high,
        rng.integers(-largest, largest, keys).clip(WIDTHS.lowest_log_score, None) // 2,
        rng.random(keys) < rng.choice([0.5, 1.0]),
        None
        if rng.random() < 0.7
        else (int(rng.integers(-20, 20)), int(rng.integers(0, 1 << (WIDTHS.total - 1)))),
    )


def of_scores(scores: Any, **fields: Any) -> Query:
    """Scores, padded to whole tiles with the last, whose z is the score itself."""
    scores = np.asarray(scores, np.int64)
    scores = np.pad(scores, (0, -len(scores) % ROWS), mode="edge") << WIDTHS.score_drop
    ones = np.ones(len(scores), np.int64)
    return Query(scores, FACTOR * ones, MAX_FACTOR * ones, **fields)


@bench()
async def random_queries(dut: Any) -> None:
    rng = generator("softmax_lane random_queries")
    capacity = CONFIG.slots
    queries = [random_query(rng, int(rng.integers(1, min(9, capacity)))) for _ in range(150)]
    await check(dut, queries)


@bench()
async def random_queries_with_gaps(dut: Any) -> None:
    rng = generator("softmax_lane random_queries_with_gaps")
    queries = [random_query(rng, int(rng.integers(1, 5))) for _ in range(60)]
    await check(dut, queries, rng)


@bench()
async def special_rows(dut: Any) -> None:
    one = 1 << WIDTHS.fraction
    keys = 4 * ROWS
    one_hot = np.full(keys, -1000)
    one_hot[2 * ROWS + 1] = 30 * one
    ramp = np.arange(keys) * (one // 3) - 2 * one
    extreme = np.where(np.arange(keys) % 3 == 0, HIGHEST, LOWEST)
    full = np.full(keys, MAX_FACTOR)

    def saturating(scores: Any, shift: int) -> Query:
        return Query(np.asarray(scores, np.int64), full, full, MAX_FACTOR, shift)

    queries = [
        of_scores(np.zeros(260)),  # all equal, more than 256 keys
        of_scores(np.full(300, 5 * one)),
        of_scores(np.full(300, 5 * one + 1)),  # a bit above an integer: nearly half
        of_scores(one_hot),
        of_scores(one_hot[::-1]),
        of_scores(ramp),  # the maximum rises in every tile
        of_scores(ramp[::-1]),
        of_scores(ramp, low=5, high=5),  # nothing allowed
        of_scores(ramp, low=2 * ROWS, high=3 * ROWS),  # whole tiles masked before and after
        of_scores(ramp, low=ROWS + 1, high=ROWS + 2),
        of_scores(ramp, low=-(1 << 16), high=-1),
        of_scores(ramp, low=1 << 16, high=(1 << 17) - 1),
        saturating(extreme, 0),
        saturating(extreme[::-1], 0),
        saturating(extreme, 40),
        saturating(extreme, 63),
        saturating(np.full(keys, LOWEST), 0),
        saturating(np.full(keys, HIGHEST), 0),
        # From the lowest to the highest maximum: a rescaling beyond every sum.
        saturating(np.repeat([LOWEST, HIGHEST], 2 * ROWS), 0),
        of_scores(np.zeros(ROWS)),
    ]
    await check(dut, queries)


@bench()
async def every_distance(dut: Any) -> None:
    """The probability of each fraction and each whole distance up to P + 3."""
    count = (CONFIG.probability_bits + 3) << WIDTHS.fraction
    top = 8 << WIDTHS.fraction
    distances = np.arange(count + 1)
    # Two tiles of the maximum first: all that follow refer to it.
    query = of_scores(np.concatenate([np.full(2 * ROWS, top), top - distances]))
    assert (np.abs(query.scores >> WIDTHS.score_drop) < 1 << 17).all()
    expected = reference(query)
    probability = TABLE.probability(distances)
    reached = expected.weights[2 * ROWS :][: count + 1]
    np.testing.assert_array_equal(reached, arithmetic.weight(probability, MAX_FACTOR))
    assert probability[0] == (1 << CONFIG.probability_bits) - 1
    assert probability[-1] == 0
    await check(dut, [query])
