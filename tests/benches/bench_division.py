"""Reciprocal and Normalizer against `arithmetic`, a new value every clock."""

from __future__ import annotations

from typing import Any

import numpy as np

from benches.common import bench, configuration, generator, join, play, split
from celosia_hw import arithmetic
from celosia_hw.arithmetic import RECIPROCAL_BITS, Widths
from celosia_hw.reciprocal import Reciprocal

CONFIG = configuration()
WIDTHS = Widths(CONFIG)
LANES = CONFIG.output_lanes
MAX_TOTAL = CONFIG.max_sequence * ((1 << CONFIG.probability_bits) - 1)
NORMALIZER_LATENCY = CONFIG.multiplier_stages + 6


def special_totals() -> list[int]:
    around = {(1 << bit) + d for bit in range(WIDTHS.total) for d in (-1, 0, 1)}
    return sorted(t for t in around | {MAX_TOTAL, MAX_TOTAL - 1} if 0 <= t <= MAX_TOTAL)


def random_totals(rng: np.random.Generator, count: int) -> list[int]:
    return [int(rng.integers(0, MAX_TOTAL + 1)) >> int(rng.integers(0, 31)) for _ in range(count)]


@bench()
async def reciprocals(dut: Any) -> None:
    rng = generator("division reciprocals")
    totals = [*special_totals(), *random_totals(rng, 3000)]
    valid = [1] * len(totals)
    totals += random_totals(rng, 300)  # and with gaps
    valid += [int(v) for v in rng.integers(0, 2, 300)]
    names = ["o_valid", "mantissa", "length"]
    latency = Reciprocal.LATENCY
    clocks = len(totals) + latency
    inputs = {"total": totals, "i_valid": valid}
    seen = await play(dut, "reciprocal", inputs, names, clocks)
    np.testing.assert_array_equal(seen["o_valid"], [0] * latency + valid)
    expected = np.array([arithmetic.reciprocal(total) for total in totals])
    here = np.flatnonzero(valid)
    for column, name in enumerate(names[1:]):
        np.testing.assert_array_equal(seen[name][latency:][here], expected[here, column])


@bench()
async def results(dut: Any) -> None:
    rng = generator("division results")
    highest = MAX_TOTAL * 127
    rows: list[tuple[int, int, int]] = []  # output, total, result fraction
    for total in special_totals():
        # The largest output that a row sum allows, of either sign, and beyond: saturated.
        largest = total << 7
        for output in (0, 1, -1, largest - total, -largest, highest, -(highest + MAX_TOTAL)):
            rows.append((output, total, int(rng.integers(0, 16))))
    for total in random_totals(rng, 3000):
        output = int(rng.integers(-128 * total, 127 * total + 1))
        rows.append((output, total, int(rng.integers(0, 16))))
    rows = [rows[i] for i in rng.permutation(len(rows))]
    inputs: dict[str, list[int]] = {}
    expected = []
    outputs, mantissas, lengths, fractions = [], [], [], []
    length_bits = range(WIDTHS.total + 1).stop.bit_length()
    for start in range(0, len(rows) - LANES + 1, LANES):
        group = rows[start : start + LANES]
        fraction = group[0][2]
        pairs = [arithmetic.reciprocal(total) for _, total, _ in group]
        outputs.append(join([output for output, _, _ in group], WIDTHS.accumulator))
        mantissas.append(join([mantissa for mantissa, _ in pairs], RECIPROCAL_BITS))
        lengths.append(join([length for _, length in pairs], length_bits))
        fractions.append(fraction)
        expected.append(
            [
                arithmetic.normalize(output, *pair, fraction)
                for (output, _, _), pair in zip(group, pairs, strict=True)
            ]
        )
    inputs = {
        **{"outputs": outputs, "mantissas": mantissas, "lengths": lengths},
        "result_fraction": fractions,
    }
    clocks = len(expected) + NORMALIZER_LATENCY
    seen = (await play(dut, "normalizer", inputs, ["results"], clocks))["results"]
    lanes = [split(word, 16, LANES, signed=True) for word in seen[NORMALIZER_LATENCY:]]
    np.testing.assert_array_equal(lanes, expected)
    assert {-32768, 32767, 0} <= {value for row in expected for value in row}
