"""The elements of both arrays against sums of products."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Mux, Signal

from celosia_hw.config import AcceleratorConfig
from celosia_hw.score_array import ScoreArray
from celosia_hw.value_array import ValueArray
from formal.prover import Proof, mutant, prove

CONFIG = AcceleratorConfig(
    key_rows=2,
    query_lanes=2,
    max_head_dim=2,
    max_keys=2,
    key_banks=1,
    max_sequence=2,
    link_bytes=4,
    probability_bits=8,
    multiplier_stages=1,
)
ROWS, LANES, STAGES = CONFIG.key_rows, CONFIG.query_lanes, CONFIG.multiplier_stages
NARROW = {"ELEMENT_BITS": 3}
"""Bits of K, Q and V: products are only as hard to compare as they are wide."""


@prove(
    ScoreArray,
    {
        "tag comes a clock early": lambda: mutant(
            ScoreArray, ("delayed(m, self.first, 1 + stages", "delayed(m, self.first, stages")
        ),
        "tag does not travel to the next row": lambda: mutant(
            ScoreArray,
            ("tags.append(delayed(m, tags[-1], 1,", "tags.append(delayed(m, tags[-1], 0,"),
        ),
        "keys are not skewed": lambda: mutant(
            ScoreArray, ("delayed(m, self.keys[r], r, ", "delayed(m, self.keys[r], 0, ")
        ),
        "sum starts from the last one": lambda: mutant(
            ScoreArray, ("Mux(tags[r], 0, total)", "total")
        ),
        "score leaves a clock late": lambda: mutant(
            ScoreArray,
            (
                'delayed(m, self.last, 1 + stages, "last")',
                'delayed(m, self.last, 2 + stages, "last")',
            ),
        ),
    },
    depth=9,
)
def score_array(p: Proof, component: Any) -> None:
    """Element (r, c) adds up ``K[r] * Q[c]`` from a tag `first` on: the score after `last`."""
    array = mutant(component, **NARROW)(CONFIG)
    m, inside = p.m, p.add(array)
    p.never_reset()
    # Tiles end no closer together than their scores leave.
    for clocks in range(1, ROWS):
        p.assume(~array.last | ~p.past(array.last, clocks))
    for r in range(ROWS):
        for c in range(LANES):
            total = Signal(array.scores[c].shape(), name=f"total_{r}_{c}", reset_less=True)
            m.d.sync += total.eq(Mux(array.first, 0, total) + array.keys[r] * array.queries[c])
            latency = STAGES + 2 + r + c
            element = inside["sums"][r][c]
            p.claim(element == p.past(total, latency - 1, reset_less=True))
            is_score = p.past(array.last, latency + 1)
            p.claim(~is_score | (array.scores[c] == p.past(total, latency, reset_less=True)))


@prove(
    ValueArray,
    {
        "takes the weight over a clock late": lambda: mutant(
            ValueArray, ("tags = [self.swap]", 'tags = [delayed(m, self.swap, 1, "late")]')
        ),
        "second row takes the first weight of the next tile": lambda: mutant(
            ValueArray, ("load & ~load_first & enable_above", "load")
        ),
        "rows are not added up": lambda: mutant(
            ValueArray, ("product if partial is None else partial + product", "product")
        ),
        "values are not reversed": lambda: mutant(
            ValueArray, ("self.values[rows - 1 - r], r,", "self.values[r], r,")
        ),
        "weight is not kept": lambda: mutant(ValueArray, ("with m.If(tags[r]):", "with m.If(1):")),
    },
    depth=8,
    trace=12,
)
def value_array(p: Proof, component: Any) -> None:
    """Lane c gives ``sum(weight * value)`` over the keys of the tile whose values come in."""
    array = mutant(component, **NARROW)(CONFIG)
    assert ROWS == 2
    m, inside = p.m, p.add(array)
    p.never_reset()
    keep_tiles_in_order(p, array)
    for c in range(LANES):
        load, load_first, swap = (
            p.past(one, c) for one in (array.load, array.load_first, array.swap)
        )
        # A clock after its load the weight is there; `swap` makes the tile's weights current.
        is_weight, is_first = p.past(load), p.past(load_first)
        place = Signal(range(ROWS), name=f"place_{c}")
        number = Mux(is_first, 0, place)
        coming = [Signal.like(array.weights[c], name=f"coming_{c}_{k}") for k in range(ROWS)]
        current = [Signal.like(array.weights[c], name=f"current_{c}_{k}") for k in range(ROWS)]
        with m.If(is_weight):
            m.d.sync += place.eq(number + 1)
            for k in range(ROWS):
                with m.If(number == k):
                    m.d.sync += coming[k].eq(array.weights[c])
        with m.If(swap):
            m.d.sync += [one.eq(other) for one, other in zip(current, coming, strict=True)]
        expected = sum(
            Mux(swap, coming[k], current[k]) * p.past(array.values[k], c) for k in range(ROWS)
        )
        p.claim(array.partials[c] == p.past(expected, ROWS + STAGES + 1))

        # Key k sinks to row ROWS - 1 - k, whose shadow it reaches with the tile's last weight.
        shadows, weights = inside.named(f"shadow_(.)_{c}"), inside.named(f"weight_(.)_{c}")
        is_half = p.past(array.load_first, c + 2)
        old = Signal.like(coming[0], name=f"old_{c}")
        with m.If(is_first):
            m.d.sync += old.eq(coming[0])
        p.lemma(place == is_half)
        p.lemma(shadows["0"] == Mux(is_half, coming[0], coming[1]))
        p.lemma(shadows["1"] == Mux(is_half, old, coming[0]))
        p.lemma((weights["0"] == current[1]) & (weights["1"] == p.past(current[0])))


def keep_tiles_in_order(p: Proof, array: ValueArray) -> None:
    """What `ValueArray` says of `load`, `load_first` and `swap`."""
    m, load, load_first, swap = p.m, array.load, array.load_first, array.swap
    left = Signal(range(ROWS))
    with m.If(load):
        m.d.sync += left.eq(Mux(load_first, ROWS - 1, left - 1))
    p.assume(load == (load_first | (left != 0)))
    p.assume(~load_first | (left == 0))

    age = Signal(range(ROWS + 2), init=ROWS + 1)
    with m.If(load_first):
        m.d.sync += age.eq(1)
    with m.Elif(age != ROWS + 1):
        m.d.sync += age.eq(age + 1)
    owed = p.count(load_first, swap, 2, "owed")
    p.lemma((left != 0) == (age == 1))
    p.lemma((owed <= 1) | (owed == 2) & (age == 1))
    # The last value row may begin beside the first weight of the next tile, and not later.
    p.assume(Mux(owed == 2, swap & ~load_first, ~swap | (owed == 1) & (age == ROWS + 1)))
