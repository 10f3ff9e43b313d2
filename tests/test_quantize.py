"""Factors and int8 values against the real numbers that they stand for."""

import dataclasses
import math

import numpy as np
import pytest

from celosia.options import AttentionOptions
from celosia.quantize import (
    Operand,
    logit_transform,
    quantize_keys,
    quantize_queries,
    quantize_values,
    score_shift,
)
from celosia_hw.arithmetic import MAX_SCORE_SHIFT, Widths, gain, log_score
from celosia_hw.config import AcceleratorConfig, preset

WIDTHS = Widths(preset("default"))
PLAIN = AttentionOptions(
    smooth_keys=False,
    rotate_keys=False,
    balance_keys=False,
    rotate_values=False,
    balance_values=False,
    error_feedback=False,
    search_scales=False,
)
UNIT = 2.0**-16


def random(*shape, seed=0, spread=0.0):
    """N(0, 1), with token magnitudes spread over a factor of 10**spread."""
    rng = np.random.default_rng(seed)
    tokens = 10.0 ** rng.uniform(-spread, 0, (*shape[:-1], 1))
    return rng.normal(size=shape) * tokens


def in_lanes(queries, keys, scale, widths, lanes, options):
    """The queries of one head, so many to a tile."""
    count = queries.values.shape[1]
    tiles = np.array_split(np.arange(count), range(lanes, count, lanes))
    return quantize_queries(queries, keys, scale, widths, tiles, options)


def key_scales(keys):
    return np.ldexp(keys.factors * UNIT, keys.exponent)[:, None]


def query_scales(queries, lanes):
    """Scales of the queries' share of the base-2 logits, times the base of the keys."""
    exponents = np.repeat(queries.exponents, lanes)[: queries.factors.shape[1]]
    return np.ldexp(queries.factors * UNIT, exponents)[..., None]


def z_of(queries, keys, lanes, widths=WIDTHS):
    """What the accelerator makes of one head, in units of 2**-fraction."""
    score = queries.values[0].astype(np.int64) @ keys.values.astype(np.int64).T
    factor = gain(queries.factors[0, :, None].astype(np.int64), keys.factors.astype(np.int64))
    shifts = np.repeat(score_shift(widths, queries.exponents), lanes)[: len(score), None]
    assert shifts.min() >= 0
    assert shifts.max() <= MAX_SCORE_SHIFT
    return log_score(widths, score, factor, shifts)


@pytest.mark.parametrize("spread", [0, 3, 8])
@pytest.mark.parametrize("magnitude", [1.0, 1e-30, 1e30, 1e-310])
def test_keys_are_rounded_with_the_stored_scale(spread, magnitude):
    x = random(50, 20, spread=spread) * magnitude
    keys = quantize_keys(Operand(x), PLAIN)
    scales = key_scales(keys)
    # Half a step, and for denormal inputs the rounding of this very comparison.
    assert np.all(np.abs(keys.values * scales - x) <= scales * (0.5 + 1e-9) + 5e-324)
    assert np.abs(keys.values.astype(int)).max() == 127
    assert keys.factors.max() >= 32768


def test_a_factor_never_takes_more_range_than_its_rounding():
    x = random(200, 16, spread=2)
    keys = quantize_keys(Operand(x), PLAIN)
    exact = np.abs(x).max(axis=1) / 127
    step = 2.0 ** (keys.exponent - 16)
    excess = key_scales(keys)[:, 0] - exact
    assert np.all(excess >= 0)
    assert np.all(excess < step)


def test_the_base_is_the_smallest():
    # 65535 / 65536 just fits, the next number does not.
    fits = np.array([[127 * 65535 / 65536]])
    keys = quantize_keys(Operand(fits), PLAIN)
    assert (keys.factors[0], keys.exponent) == (65535, 0)
    keys = quantize_keys(Operand(np.nextafter(fits, 200)), PLAIN)
    assert (keys.factors[0], keys.exponent) == (32768, 1)


def test_zero_rows_have_zero_factors():
    x = random(6, 5)
    x[[1, 4]] = 0
    for tensor in (quantize_keys(Operand(x), PLAIN), quantize_values(Operand(x), PLAIN)):
        assert list(np.flatnonzero(tensor.factors == 0)) == [1, 4]
        assert not tensor.values[[1, 4]].any()
    assert not quantize_keys(Operand(np.zeros((3, 4))), PLAIN).factors.any()
    assert not quantize_values(Operand(np.zeros((3, 4))), PLAIN).values.any()


def test_smoothing_takes_the_mean_out_of_keys():
    x = random(40, 8)
    options = dataclasses.replace(PLAIN, smooth_keys=True)
    shifted = Operand(x + 100 * np.arange(8))
    transform = logit_transform(Operand(x[None]), shifted, 1.0, options)
    smooth = quantize_keys(shifted, options, transform)
    plain = quantize_keys(Operand(x - x.mean(axis=0)), PLAIN)
    np.testing.assert_array_equal(smooth.values, plain.values)


def test_one_scale_per_head():
    options = dataclasses.replace(
        PLAIN, per_token_query=False, per_token_key=False, per_token_value=False
    )
    x = random(30, 8, spread=2)
    keys = quantize_keys(Operand(x), options)
    assert len(set(keys.factors)) == 1
    assert len(set(quantize_values(Operand(x), options).factors)) == 1
    queries = in_lanes(Operand(x[None]), keys, 1.0, WIDTHS, 16, options)
    assert len(set(queries.factors[0])) == 1


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("magnitude", [1.0, 1e-30, 1e30, 1e300])
def test_values(smooth, magnitude):
    x = (random(60, 12, spread=4) + 0.3) * magnitude
    values = quantize_values(Operand(x), dataclasses.replace(PLAIN, smooth_values=smooth))
    scales = (values.factors * UNIT * values.scale)[:, None]
    assert np.all(np.abs(values.values * scales + values.offset - x) <= scales * (0.5 + 1e-9))
    assert values.factors.max() == 65535
    assert values.offset.any() == smooth


@pytest.mark.parametrize("name", ["tiny", "small", "default"])
@pytest.mark.parametrize("scale", [1.0, -0.3, 0.0, 1e-6, 20.0])
@pytest.mark.parametrize("spread", [0, 3])
def test_z_is_the_logit(name, scale, spread):
    config = preset(name)
    widths, lanes = Widths(config), config.query_lanes
    q, k = random(1, 37, 10, spread=spread), random(29, 10, seed=1, spread=spread)
    keys = quantize_keys(Operand(k), PLAIN)
    queries = in_lanes(Operand(q), keys, scale, widths, lanes, PLAIN)
    z = z_of(queries, keys, lanes, widths) * 2.0**-widths.fraction

    # The quantized tensors stand for logits * log2(e)...
    q_scales, k_scales = query_scales(queries, lanes)[0], keys.factors * UNIT
    exact = queries.values[0] * q_scales @ (keys.values * k_scales[:, None]).T
    q_error = np.abs(
        queries.values[0] * q_scales - q[0] * scale * math.log2(math.e) * 2.0**keys.exponent
    )
    assert np.all(q_error <= q_scales * (0.5 + 1e-9))

    # ... and z is that, but for the three roundings: of the score, of the gain, and its own.
    score = np.abs(queries.values[0].astype(float) @ keys.values.T.astype(float))
    of_score = 2.0**widths.score_drop / 2 * q_scales * k_scales
    gain_step = np.ldexp(1.0, queries.exponents - 17).repeat(lanes)[:37, None]
    of_gain = (score + 2.0**widths.score_drop / 2) * gain_step / 2
    own = 2.0**-widths.fraction / 2
    assert np.all(np.abs(z - exact) <= (of_score + of_gain + own) * (1 + 1e-9))
    assert queries.factors.any() == (scale != 0)


@pytest.mark.parametrize("magnitude", [1e2, 1e4, 1e30, 1e300])
@pytest.mark.parametrize("head_dim", [1, 2, 64])
def test_large_logits_keep_their_order(magnitude, head_dim):
    q = random(1, 20, head_dim) * magnitude
    k = random(40, head_dim, seed=1) * magnitude
    keys = quantize_keys(Operand(k), PLAIN)
    queries = in_lanes(Operand(q), keys, 1.0, WIDTHS, 16, PLAIN)
    z = z_of(queries, keys, 16)
    top = 1 << (WIDTHS.log_score - 1)
    assert np.abs(z).max() < top - 1, "saturated"
    if magnitude >= 1e4 and head_dim == 1:
        # In one dimension the Cauchy-Schwarz bound is met, so the limit is too, but for the
        # rounding of the score.
        assert np.abs(z).max() > top * (1 - 1 / 500)
    score = queries.values[0].astype(int) @ keys.values.T.astype(int)
    exact = score * keys.factors.astype(float)
    order = np.argsort(exact, axis=1)
    # Scores are rounded to a multiple of 32, each by up to 16, where the largest is 127 * 127.
    ranked = np.take_along_axis(z, order, axis=1)
    assert np.all(ranked[:, 1:] - ranked[:, :-1] >= -top * 32 / 127**2)


def test_rows_within_the_range_are_left_alone_beside_a_large_one():
    q = np.ones((1, 16, 4))
    q[0, 3] = 1e6
    keys = quantize_keys(Operand(np.eye(4)), PLAIN)
    queries = in_lanes(Operand(q), keys, 1.0, WIDTHS, 16, PLAIN)
    z = z_of(queries, keys, 16) * 2.0**-WIDTHS.fraction
    # The factor of a row is at most rounded up by a 65536th of the largest one of the tile.
    others = np.delete(z, 3, axis=0)
    np.testing.assert_allclose(others, math.log2(math.e), atol=4096 / 65536 / 2 + 2**-10)


@pytest.mark.parametrize("magnitude", [1e-3, 1e-9, 1e-30, 1e-300])
def test_small_logits_do_not_overflow_the_shift(magnitude):
    q, k = random(1, 20, 8) * magnitude, random(9, 8, seed=1) * magnitude
    keys = quantize_keys(Operand(k), PLAIN)
    queries = in_lanes(Operand(q), keys, 1.0, WIDTHS, 16, PLAIN)
    assert np.abs(z_of(queries, keys, 16)).max() <= 1


def test_extreme_configuration_has_no_negative_shift():
    config = AcceleratorConfig(max_head_dim=256, score_fraction_bits=12, score_integer_bits=13)
    widths = Widths(config)
    q = Operand(np.full((1, 5, 1), 1, np.int8), np.full((1, 5, 1), 1000.0))
    keys = quantize_keys(Operand(np.ones((3, 1), np.int8), np.ones((3, 1))), PLAIN)
    queries = in_lanes(q, keys, 1.0, widths, 16, PLAIN)
    assert score_shift(widths, queries.exponents).min() >= 0
    # A score of 64 * 64 with 6 bits dropped times a gain of 16 bits is the most there is.
    z = z_of(queries, keys, 16, widths)
    assert np.unique(z) == [64 * 65535]


def test_quantized_values_are_kept():
    rng = np.random.default_rng(0)
    values = rng.integers(-128, 128, (30, 7), dtype=np.int8)
    values[:, 0] = -128
    scale = rng.uniform(0.1, 1, (30, 1))
    keys = quantize_keys(Operand(values, scale), AttentionOptions())
    np.testing.assert_array_equal(keys.values, values)
    assert np.all(key_scales(keys) >= scale)
    assert np.all(key_scales(keys) - scale < 2.0 ** (keys.exponent - 16))
    v = quantize_values(Operand(values, scale), AttentionOptions(smooth_values=True))
    np.testing.assert_array_equal(v.values, values)
    np.testing.assert_allclose(v.factors * UNIT * v.scale, scale[:, 0], atol=v.scale * UNIT)
    assert not v.offset.any()


def test_quantized_values_of_small_range_are_shifted_exactly():
    values = np.array([[1, -1], [63, 5], [64, 1], [0, 0]], np.int8)
    keys = quantize_keys(Operand(values, np.ones((4, 1))), PLAIN)
    np.testing.assert_array_equal(keys.values, [[64, -64], [126, 10], [64, 1], [0, 0]])
    np.testing.assert_array_equal(keys.values * key_scales(keys), values)


def test_negative_scale_of_quantized_queries():
    values = np.array([[[-128, 127, 3]]], np.int8)
    keys = quantize_keys(Operand(random(4, 3)), PLAIN)
    queries = in_lanes(Operand(values, np.ones((1, 1, 1))), keys, -1.0, WIDTHS, 16, PLAIN)
    np.testing.assert_array_equal(queries.values, [[[127, -127, -3]]])


def test_option_errors():
    with pytest.raises(ValueError, match="result_fraction must be between 0 and 15, not 16"):
        AttentionOptions(result_fraction=16)
    with pytest.raises(TypeError, match="result_fraction must be an int, not 8"):
        AttentionOptions(result_fraction=8.0)  # pyright: ignore[reportArgumentType]
