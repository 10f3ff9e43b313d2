"""The integer model against float attention, and exactly against plain Python integers."""

import dataclasses
import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from celosia_hw.config import AcceleratorConfig, preset
from celosia_sim.model import State, attend
from celosia_sim.reference import (
    attention,
    cosine,
    max_abs_error,
    rmse,
    sqnr_db,
)

TINY = preset("tiny")
CONFIGS = {
    "tiny": TINY,
    "default": preset("default"),
    "odd": AcceleratorConfig(
        key_rows=7,
        query_lanes=5,
        max_head_dim=33,
        max_keys=21,
        max_sequence=512,
        probability_bits=8,
        score_fraction_bits=12,
        score_integer_bits=10,
    ),
}


# The slow implementation: one row at a time, in Python's integers and exact fractions. -----------


def nearest(value):
    return math.floor(Fraction(value) + Fraction(1, 2))


def power_of_two(exponent, bits):
    """``2**exponent`` for 0 <= exponent <= 1, rounded to `bits` fraction bits."""
    with localcontext() as context:
        context.prec = 60
        numerator, denominator = Fraction(exponent).as_integer_ratio()
        exact = (Decimal(2).ln() * numerator / denominator).exp() * 2**bits
        return int(exact.to_integral_value())


def slow_probability(config, distance):
    """``2**-distance`` from 32 chords, as an integer of `probability_bits` bits."""
    bits, guard = config.probability_bits, config.probability_bits + 2
    whole = math.ceil(distance)
    part = whole - distance
    segments = min(32, 1 << config.score_fraction_bits)
    segment = math.floor(part * segments)
    start = power_of_two(Fraction(segment, segments), guard)
    stop = power_of_two(Fraction(segment + 1, segments), guard)
    if segment == segments - 1:
        stop -= 1
    mantissa = nearest(start + (stop - start) * (part * segments - segment))
    return min(nearest(Fraction(mantissa, 2 ** (guard - bits + whole))), 2**bits - 1)


def slow_row(config, query, keys, values, factors, low, high, score_shift, fraction):
    """One row; `factors` are the query's and lists of the keys' and values'."""
    query_factor, key_factors, value_factors = factors
    one = 2**config.score_fraction_bits
    limit = 2 ** (config.score_integer_bits + config.score_fraction_bits)
    # A score's magnitude is at most max_head_dim * 2^14; 18 signed bits hold one below 2^17.
    drop = 0
    while config.max_head_dim * 2**14 >= 2 ** (17 + drop):
        drop += 1
    drop = max(drop, 0)
    maximum, total, output = -(2**config.score_integer_bits), 0, [0] * len(values[0])
    for first in range(0, len(keys), config.key_rows):
        logs = {}
        for i in range(max(first, low), min(first + config.key_rows, high, len(keys))):
            score = sum(a * b for a, b in zip(query, keys[i], strict=True))
            gain = nearest(Fraction(query_factor * key_factors[i], 2**15))
            z = nearest(Fraction(nearest(Fraction(score, 2**drop)) * gain, 2**score_shift))
            logs[i] = Fraction(min(max(z, -limit), limit - 1), one)
        if not logs:
            continue
        raised = max(maximum, *(math.ceil(z) for z in logs.values()))
        scale = Fraction(1, 2 ** (raised - maximum))
        maximum = raised
        total = math.floor(total * scale)
        output = [math.floor(o * scale) for o in output]
        for i, z in logs.items():
            probability = slow_probability(config, maximum - z)
            total += probability
            weight = nearest(Fraction(probability * value_factors[i], 2**16))
            output = [o + weight * v for o, v in zip(output, values[i], strict=True)]
    return maximum, total, output, [slow_quotient(o, total, fraction) for o in output]


def slow_quotient(output, total, fraction):
    """``output / total`` by an 18-bit reciprocal of the sum's first 20 bits."""
    if total == 0:
        return 0
    scale = Fraction(2) ** (20 - total.bit_length())
    divisor = math.floor(total * scale)
    mantissa = min(2**37 // divisor, 2**18 - 1)
    aligned = nearest(output * Fraction(2) ** (fraction + 2 - total.bit_length()))
    aligned = min(max(aligned, -(2**17)), 2**17 - 1)
    return min(max(nearest(Fraction(aligned * mantissa, 2**19)), -(2**15)), 2**15 - 1)


def slow_attend(config, query, key, value, query_factor, *rest):
    key_factor, value_factor, low, high, shift, fraction = (
        np.asarray(x).tolist() if np.ndim(x) else [x] * len(query) for x in rest
    )
    rows = [
        slow_row(
            config,
            query[i].tolist(),
            key.tolist(),
            value.tolist(),
            (int(query_factor[i]), key_factor, value_factor),
            low[i],
            high[i],
            shift[i],
            fraction[i],
        )
        for i in range(len(query))
    ]
    maximum, total, output, result = zip(*rows, strict=True)
    return list(maximum), list(total), list(output), list(result)


def operands(rng, config, rows, keys, head_dim, value_dim, **overrides):
    """Random operands whose scores spread over the whole range and beyond."""
    values = {
        "query": rng.integers(-128, 128, (rows, head_dim)).astype(np.int8),
        "key": rng.integers(-128, 128, (keys, head_dim)).astype(np.int8),
        "value": rng.integers(-128, 128, (keys, value_dim)).astype(np.int8),
        "query_factor": rng.integers(0, 65536, rows).astype(np.uint16),
        "key_factor": rng.integers(0, 65536, keys).astype(np.uint16),
        "value_factor": rng.integers(0, 65536, keys).astype(np.uint16),
        "low": rng.integers(-3, keys, rows),
        "high": rng.integers(-3, keys + 5, rows),
        "score_shift": rng.integers(8, 26, rows),
        "result_fraction": rng.integers(0, 16, rows),
    }
    assert set(overrides) <= set(values)
    return {**values, **overrides}


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_equals_plain_integers(name, data):
    config = CONFIGS[name]
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32), "seed"))
    sizes = [
        data.draw(st.integers(1, limit), label)
        for label, limit in (("rows", 4), ("keys", 40), ("head_dim", 10), ("value_dim", 5))
    ]
    values = operands(rng, config, *sizes)
    run = attend(config, **values)
    maximum, total, output, result = slow_attend(config, *values.values())
    assert run.state.maximum.tolist() == maximum
    assert run.state.total.tolist() == total
    assert run.state.output.tolist() == output
    assert run.result.tolist() == result
    assert run.result.dtype == np.int16


def test_equals_plain_integers_across_blocks():
    # More rows and keys than are computed at once, every score shift.
    values = operands(np.random.default_rng(1), TINY, 70, 300, 3, 2, score_shift=np.arange(70) % 64)
    run = attend(TINY, **values)
    maximum, total, output, result = slow_attend(TINY, *values.values())
    assert run.state.maximum.tolist() == maximum
    assert run.state.total.tolist() == total
    assert run.state.output.tolist() == output
    assert run.result.tolist() == result


@pytest.mark.parametrize("name", CONFIGS)
def test_trace_agrees_with_the_run(name):
    config = CONFIGS[name]
    rng = np.random.default_rng(2)
    values = operands(rng, config, 9, 45, 10, 6)
    run, kept = attend(config, **values), attend(config, **values, keep=True)
    assert run.trace is None
    trace = kept.trace
    assert trace is not None
    np.testing.assert_array_equal(kept.result, run.result)
    for field in dataclasses.fields(State):
        np.testing.assert_array_equal(
            getattr(kept.state, field.name), getattr(run.state, field.name)
        )
    tiles = -(-45 // config.key_rows)
    assert trace.score.shape == (9, tiles * config.key_rows)
    assert trace.output.shape == (9, tiles, 6)
    exact = values["query"].astype(int) @ values["key"].astype(int).T
    np.testing.assert_array_equal(trace.score[:, :45], exact)
    position = np.arange(45)
    allowed = (position >= values["low"][:, None]) & (position < values["high"][:, None])
    np.testing.assert_array_equal(trace.allowed[:, :45], allowed)
    assert not trace.allowed[:, 45:].any()
    assert not trace.probability[~trace.allowed].any()
    assert not trace.weight[~trace.allowed].any()
    np.testing.assert_array_equal(trace.total[:, -1], run.state.total)
    np.testing.assert_array_equal(trace.maximum[:, -1], run.state.maximum)


def test_tiles_without_an_allowed_key_change_nothing():
    values = operands(np.random.default_rng(3), TINY, 3, 32, 4, 4, low=8, high=16)
    trace = attend(TINY, **values, keep=True).trace
    assert trace is not None
    lowest = -(2**TINY.score_integer_bits)
    assert (trace.maximum[:, :2] == lowest).all()
    assert not trace.total[:, :2].any()
    for array in (trace.maximum, trace.total, trace.output):
        np.testing.assert_array_equal(array[:, 4:], np.repeat(array[:, 3:4], 4, axis=1))


@pytest.mark.parametrize(("low", "high"), [(0, 0), (5, 5), (9, 3), (24, 99), (-5, -1), (0, -1)])
def test_rows_without_an_allowed_key_are_zero(low, high):
    values = operands(np.random.default_rng(4), TINY, 3, 24, 4, 4, low=low, high=high)
    run = attend(TINY, **values)
    assert not run.result.any()
    initial = State.initial(TINY, 3, 4)
    np.testing.assert_array_equal(run.state.maximum, initial.maximum)
    np.testing.assert_array_equal(run.state.output, initial.output)


@pytest.mark.parametrize("keys", [1, 255, 256, 257, 1024])
def test_equal_scores_give_the_mean_of_the_values(keys):
    rng = np.random.default_rng(keys)
    value = rng.integers(-128, 128, (keys, 8)).astype(np.int8)
    run = attend(
        preset("default"),
        np.zeros((2, 8), np.int8),
        np.zeros((keys, 8), np.int8),
        value,
        np.full(2, 65535, np.uint16),
        np.full(keys, 65535, np.uint16),
        np.full(keys, 65535, np.uint16),
        *(0, keys, 0, 8),
    )
    # A factor of 65535 is one less 2^-16: with the rounding of the result, one unit of 2^-8.
    assert np.abs(run.result - value.mean(axis=0) * 2**8).max() <= 1.5
    assert (run.state.total == keys * 65535).all()


def test_one_hot_rows_give_the_value_of_their_key():
    rng = np.random.default_rng(5)
    keys = 10
    value = rng.integers(-127, 128, (keys, 10)).astype(np.int8)
    factor = np.full(keys, 65535, np.uint16)
    one_hot = (127 * np.eye(keys)).astype(np.int8)
    run = attend(TINY, one_hot, one_hot, value, factor, factor, factor, 0, keys, 10, 8)
    assert np.abs(run.result - value * 2.0**8).max() <= 1
    # One probability of at least a half: what the other keys gave is shifted out.
    assert ((run.state.total >= 2**15) & (run.state.total < 2**16)).all()


@pytest.mark.parametrize("result_fraction", [0, 8, 15])
@pytest.mark.parametrize("name", CONFIGS)
def test_largest_products_everywhere(name, result_fraction):
    config = CONFIGS[name]
    keys, head_dim = config.max_keys, config.max_head_dim
    lowest = np.full((keys, head_dim), -128, np.int8)
    factor = np.full(keys, 65535, np.uint16)
    run = attend(
        config,
        *(lowest[:3], lowest, lowest, factor[:3], factor, factor),
        *(0, keys, 0, result_fraction),
        keep=True,
    )
    trace = run.trace
    assert trace is not None
    top = 2 ** (config.score_integer_bits + config.score_fraction_bits) - 1
    assert (trace.score[:, :keys] == head_dim * 2**14).all()
    assert (trace.log_score[:, :keys] == top).all()
    assert (trace.maximum == 2**config.score_integer_bits).all()
    exact = max(-128 * 2**result_fraction, -(2**15))
    assert np.abs(run.result - exact).max() <= max(1, 128 * 2**result_fraction / 2**16)


def test_a_maximum_that_rises_over_the_whole_range_forgets_the_past():
    # The first tile's scores saturate low, the second's high: a shift of 2^13.
    query = np.full((1, 10), 127, np.int8)
    key = np.repeat(np.array([[-128], [127]], np.int8), 4, axis=0).repeat(10, axis=1)
    value = np.repeat(np.array([[-128], [100]], np.int8), 4, axis=0)
    factor = np.full(8, 65535, np.uint16)
    run = attend(TINY, query, key, value, factor[:1], factor, factor, 0, 8, 0, 8, keep=True)
    assert run.trace is not None
    assert run.trace.shift[0].tolist() == [0, 2**13]
    # The largest z is 2^-10 below the maximum; shifting a negative sum right leaves -1.
    weight = round(2**16 * math.exp(-math.log(2) / 2**10)) - 1
    assert run.state.output[0, 0] == -1 + 4 * weight * 100
    assert abs(run.result[0, 0] - 100 * 2**8) <= 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_chunks_equal_one_run(name, tiles):
    config = CONFIGS[name]
    keys, rows = 10 * config.key_rows - 1, 6
    values = operands(np.random.default_rng(7), config, rows, keys, 8, 5)
    whole = attend(config, **values)
    state, result = None, None
    for start in range(0, keys, tiles * config.key_rows):
        span = slice(start, start + tiles * config.key_rows)
        chunk = dict(values)
        for field in ("key", "value", "key_factor", "value_factor"):
            chunk[field] = values[field][span]
        chunk["low"], chunk["high"] = values["low"] - start, values["high"] - start
        run = attend(config, **chunk, state=state)
        state, result = run.state, run.result
    assert state is not None
    np.testing.assert_array_equal(result, whole.result)
    for field in dataclasses.fields(State):
        np.testing.assert_array_equal(getattr(state, field.name), getattr(whole.state, field.name))


def test_operands_and_state_stay_as_they_were():
    values = operands(np.random.default_rng(8), TINY, 3, 12, 4, 4)
    copies = {name: np.copy(value) for name, value in values.items()}
    state = State.initial(TINY, 3, 4)
    attend(TINY, **values, state=state)
    for name, value in values.items():
        np.testing.assert_array_equal(value, copies[name])
    assert not state.total.any()


def test_no_rows():
    values = operands(np.random.default_rng(9), TINY, 0, 12, 4, 4)
    assert attend(TINY, **values).result.shape == (0, 4)
    assert attend(TINY, **values, keep=True).result.shape == (0, 4)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        ({"query": np.zeros((3, 4))}, TypeError, "query must be int8, not float64"),
        ({"key_factor": np.zeros(12, int)}, TypeError, "key_factor must be uint16, not int64"),
        ({"query": np.zeros(4, np.int8)}, ValueError, "query must have 2 dimensions, not 1"),
        (
            {"key": np.zeros((12, 5), np.int8)},
            ValueError,
            r"key has shape \(12, 5\), expected \(12, 4\)",
        ),
        (
            {"value_factor": np.zeros(11, np.uint16)},
            ValueError,
            r"value_factor has shape \(11,\), expected \(12,\)",
        ),
        (
            {"value": np.zeros((12, 11), np.int8)},
            ValueError,
            "value dimension must be between 1 and 10, not 11",
        ),
        ({"score_shift": 64}, ValueError, "score_shift must be between 0 and 63"),
        ({"result_fraction": 16}, ValueError, "result_fraction must be between 0 and 15"),
    ],
)
def test_bad_operands(overrides, error, message):
    values = operands(np.random.default_rng(10), TINY, 3, 12, 4, 4, **overrides)
    with pytest.raises(error, match=message):
        attend(TINY, **values)


def test_state_of_another_shape():
    values = operands(np.random.default_rng(11), TINY, 3, 12, 4, 4)
    with pytest.raises(ValueError, match=r"state of shape \(2, 4\), expected \(3, 4\)"):
        attend(TINY, **values, state=State.initial(TINY, 2, 4))


# Distance from float attention. ------------------------------------------------------------------


def quantize(tensor):
    """Integers and a scale per token."""
    scale = np.abs(tensor).max(axis=1) / 127
    return np.rint(tensor / scale[:, None]).astype(np.int8), scale


def factors(scale):
    """Fractions of 16 bits in proportion to the scales."""
    return np.rint(scale / scale.max() * 65535).astype(np.uint16)


def distances(config, keys, head_dim, result_fraction, seed):
    """SQNR in dB of the model against attention on the originals and on what was quantized.

    Also that of exact attention on what was quantized against attention on the originals.
    """
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal((keys, head_dim)) for _ in range(3))
    (q, qs), (k, ks), (v, vs) = quantize(query), quantize(key), quantize(value)
    # z = s * qs * ks * log2(e) / sqrt(d), and the gain is 2^-15 of the product of the factors.
    drop = max((config.max_head_dim << 14).bit_length() + 1 - 18, 0)
    unit = 2.0 ** (drop + config.score_fraction_bits - 17)
    scale = qs.max() * ks.max() * math.log2(math.e) / math.sqrt(head_dim) * unit
    shift = math.floor(-math.log2(scale))
    query_factor = np.rint(qs / qs.max() * 65536 * scale * 2**shift).astype(np.uint16)
    run = attend(
        config,
        *(q, k, v, query_factor, factors(ks), factors(vs)),
        *(0, keys, shift, result_fraction),
    )
    result = run.result * (vs.max() / 65535 * 65536) / 2.0**result_fraction
    quantized = attention(q * qs[:, None], k * ks[:, None], v * vs[:, None])
    exact = attention(query, key, value)
    return sqnr_db(exact, result), sqnr_db(quantized, result), sqnr_db(exact, quantized)


@pytest.mark.parametrize(
    ("keys", "result_fraction", "bound"), [(64, 8, 64), (64, 9, 64), (1024, 8, 59), (1024, 10, 63)]
)
def test_loss_against_exact_softmax(keys, result_fraction, bound):
    config = preset("default")
    result, arithmetic, quantization = distances(config, keys, 64, result_fraction, seed=keys)
    assert result > 39
    assert arithmetic > bound
    assert 0 <= quantization - result < 0.05


def test_fewer_probability_bits_cost_more():
    config = dataclasses.replace(preset("default"), probability_bits=12)
    coarse, fine = (distances(c, 512, 64, 10, seed=1)[1] for c in (config, preset("default")))
    assert 50 < coarse < fine - 6


# The float reference itself. ---------------------------------------------------------------------


def test_reference_by_hand():
    query, key = np.array([[1.0, 0.0]]), np.array([[0.0, 3.0], [math.log(3) * 2, 1.0]])
    value = np.array([[4.0], [8.0]])
    np.testing.assert_allclose(attention(query, key, value, scale=0.5), [[7.0]])


def test_reference_masks():
    rng = np.random.default_rng(12)
    query, key, value = (rng.standard_normal((2, 5, 4)) for _ in range(3))
    mask = np.tri(5, dtype=bool)
    causal = attention(query, key, value, mask=mask)
    np.testing.assert_allclose(causal[:, 0], value[:, 0])
    np.testing.assert_allclose(causal, attention(query, key, value, high=np.arange(1, 6)))
    last = attention(query, key, value, low=np.full(5, 4))
    np.testing.assert_allclose(last, np.repeat(value[:, 4:], 5, axis=1))
    assert not attention(query, key, value, high=np.zeros(5)).any()


def test_reference_keeps_its_type():
    ones = np.ones((2, 3))
    assert attention(ones, ones, ones).dtype == np.float64
    assert attention(ones, ones, ones, dtype=np.float32).dtype == np.float32


def test_reference_survives_large_scores():
    large = np.array([[1000.0]])
    np.testing.assert_allclose(attention(large, large, large), large)


def test_measures():
    reference, result = np.array([3.0, 4.0]), np.array([3.0, 3.5])
    assert sqnr_db(reference, result) == pytest.approx(20.0)
    assert rmse(reference, result) == pytest.approx(math.sqrt(0.125))
    assert max_abs_error(reference, result) == 0.5
    assert cosine(reference, 2 * reference) == pytest.approx(1.0)
    assert cosine([1, 0], [0, 1]) == 0
    assert cosine([0, 0], [0, 1]) == 0
    assert sqnr_db(reference, reference) == math.inf
    assert sqnr_db([0, 0], [0, 1]) == -math.inf
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(1,\) differ"):
        rmse([1, 2], [1])
