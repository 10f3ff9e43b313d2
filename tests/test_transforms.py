"""Transforms before the quantization: identities in floating point, and what they are worth."""

import dataclasses

import numpy as np
import pytest

from celosia import AttentionOptions, Quantized, run_attention_raw
from celosia.attention import plan_attention
from celosia.device import open_device
from celosia.evaluate import ideal_attention
from celosia.quantize import (
    SAFE_FRACTION,
    Operand,
    logit_transform,
    quantize_keys,
    quantize_queries,
    quantize_values,
)
from celosia.transforms import (
    Rounding,
    balance,
    balance_values,
    covariance,
    mass,
    rotation,
    sample_attention,
)
from celosia_hw.arithmetic import Widths
from celosia_hw.config import preset
from celosia_sim.reference import attention, sqnr_db

WIDTHS = Widths(preset("default"))
TRANSFORMS = ("smooth_keys", "rotate_keys", "balance_keys", "rotate_values", "balance_values")
OFF = AttentionOptions(
    **dict.fromkeys(TRANSFORMS, False), error_feedback=False, search_scales=False
)
ON = AttentionOptions()


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def qkv(queries=20, keys=30, dim=16, value_dim=8):
    q, k = random(2, queries, dim, seed=1), random(keys, dim, seed=2)
    return q, k, random(keys, value_dim, seed=3)


def extreme(kind):
    """Tensors at the ends of what may come."""
    q, k, v = qkv()
    if kind == "zeros":
        return q * 0, k * 0, v * 0
    if kind == "constant":
        return q * 0 + 3, k * 0 - 2, v * 0 + 0.7
    if kind == "dim 1":
        return q[..., :1], k[:, :1], v[:, :1]
    if kind == "one token":
        return q[:1, :1], k[:1], v[:1]
    if kind == "outlier tokens":
        k[0], v[3], q[0, 5] = 1e6 * k[0], 1e6 * v[3], 1e6 * q[0, 5]
    if kind == "outlier channels":
        k[:, 2], v[:, 3] = 1e4 + 1e3 * k[:, 2], 1e4 * v[:, 3]
    if kind == "low rank":
        return (x[..., :1] * np.arange(1.0, x.shape[-1] + 1) for x in (q, k, v))
    magnitude = {"huge": 1e300, "small": 1e-300, "subnormal": 1e-320}.get(kind, 1.0)
    return q * magnitude, k * magnitude, v * magnitude


EXTREMES = (
    *("normal", "zeros", "constant", "dim 1", "one token", "outlier tokens", "outlier channels"),
    *("low rank", "huge", "small", "subnormal"),
)


@pytest.mark.parametrize("dim", [1, 2, 3, 16, 20, 48, 64, 80, 128, 256])
def test_rotations_are_orthogonal_and_fixed(dim):
    matrix = rotation(dim)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(dim), atol=1e-12)
    assert rotation(dim) is matrix
    np.testing.assert_array_equal(rotation.__wrapped__(dim), matrix)
    with pytest.raises(ValueError, match="read-only"):
        matrix[0, 0] = 2


@pytest.mark.parametrize("dim", [16, 64])
def test_a_power_of_two_gets_hadamard(dim):
    np.testing.assert_allclose(np.abs(rotation(dim)), dim**-0.5, rtol=1e-12)
    # No constant channel: the signs come before the Hadamard matrix.
    assert np.ptp(np.sign(rotation(dim)), axis=0).all()


def test_balance_makes_covariances_equal_and_their_product_least():
    query = covariance(random(100, 8) * 2.0 ** np.arange(-2, 2, 0.5))
    key = covariance(random(100, 8, seed=1) * np.arange(8, 0, -1))
    matrix = balance(query, key)
    inverse = np.linalg.inv(matrix)
    balanced = matrix.T @ query @ matrix
    np.testing.assert_allclose(balanced, inverse @ key @ inverse.T, rtol=1e-6, atol=1e-6)
    least = np.trace(balanced) ** 2
    assert least < 0.9 * np.trace(query) * np.trace(key)
    diagonal = np.diag(np.sqrt(np.diag(key) / np.diag(query)) ** 0.5)
    other = np.linalg.inv(diagonal)
    assert least <= np.trace(diagonal @ query @ diagonal) * np.trace(other @ key @ other)


def test_balance_of_values_is_least():
    value = covariance(random(100, 8) * np.arange(1, 9))

    def error(matrix):
        inverse = np.linalg.inv(matrix)
        return np.trace(matrix.T @ value @ matrix) * np.trace(inverse.T @ inverse)

    best = balance_values(value)
    assert error(best) < 0.9 * error(np.eye(8))
    for seed in range(5):
        assert error(best) < error(best + 0.1 * random(8, 8, seed=seed))


def test_degenerate_covariances():
    zero, one = np.zeros((4, 4)), np.diag([1.0, 0, 0, 0])
    for query, key in ((zero, zero), (zero, one), (one, zero), (one, one), (one, one[::-1, ::-1])):
        assert np.linalg.cond(balance(query, key)) < 1e5
    for value in (zero, one):
        assert np.linalg.cond(balance_values(value)) < 100


@pytest.mark.parametrize(
    "options", [ON, *(dataclasses.replace(OFF, **{n: True}) for n in TRANSFORMS)]
)
@pytest.mark.parametrize("dim", [1, 16, 20])
def test_transforms_are_identities(options, dim):
    q, k, v = qkv(dim=dim, value_dim=dim)
    k[:, 0], v[:, 0] = 5 + 3 * k[:, 0], 5 + 3 * v[:, 0]
    exact = attention(q, k, v)
    logits = logit_transform(Operand(q), Operand(k), dim**-0.5, options)
    keys = (k - logits.offset) @ logits.key_matrix
    values = quantize_values(Operand(v), options, logits)
    undo = np.eye(dim) if values.transform is None else values.transform
    transformed = (v - values.offset) @ np.linalg.inv(undo)
    result = attention(q @ logits.query_matrix, keys, transformed)
    np.testing.assert_allclose(values.restore(result), exact, atol=1e-9)


def test_options_switch_each_transform():
    q, k, v = (Operand(x) for x in qkv())
    off = logit_transform(q, k, 1.0, OFF)
    assert not off.offset.any()
    np.testing.assert_array_equal(off.query_matrix, np.eye(16))
    np.testing.assert_array_equal(off.key_matrix, np.eye(16))
    assert off.query_covariance is None
    assert quantize_values(v, OFF, off).transform is None
    for name in TRANSFORMS:
        options = dataclasses.replace(OFF, **{name: True})
        logits = logit_transform(q, k, 1.0, options)
        values = quantize_values(v, options, logits)
        assert logits.offset.any() == (name == "smooth_keys")
        assert np.any(logits.query_matrix != np.eye(16)) == (
            name in ("rotate_keys", "balance_keys")
        )
        assert (values.transform is not None) == (name in ("rotate_values", "balance_values"))
    plain, keys = quantize_keys(k, OFF), quantize_keys(k, OFF, off)
    np.testing.assert_array_equal(plain.values, keys.values)
    np.testing.assert_array_equal(plain.values, Rounding()(k.values, key_scales(plain)))


def key_scales(keys):
    return np.ldexp(keys.factors.astype(float), keys.exponent - 16)[:, None]


def test_quantized_operands_are_not_transformed():
    q, k, v = qkv()
    integers = np.random.default_rng(0).integers(-127, 128, k.shape, dtype=np.int8)
    integers[:, 0] = 127
    quantized = Operand(integers, np.full((len(k), 1), 0.01))
    logits = logit_transform(Operand(q), quantized, 1.0, ON)
    np.testing.assert_array_equal(logits.query_matrix, np.eye(16))
    assert not logits.offset.any()
    keys = quantize_keys(quantized, ON, logits)
    np.testing.assert_array_equal(keys.values, integers)

    rows = Operand(integers[None], np.full((1, len(k), 1), 0.01))
    logits = logit_transform(rows, Operand(k), 1.0, ON)
    np.testing.assert_array_equal(logits.key_matrix, np.eye(16))
    np.testing.assert_allclose(logits.offset, k.mean(axis=0))
    keys = quantize_keys(Operand(k), ON, logits)
    queries = quantize_queries(rows, keys, 1.0, WIDTHS, [np.arange(len(k))], ON)
    np.testing.assert_array_equal(queries.values, rows.values)

    values = quantize_values(Operand(integers, quantized.scale), ON, logits)
    assert values.transform is None
    np.testing.assert_array_equal(values.values, integers)
    # V does not depend on what Q and K are.
    assert quantize_values(Operand(v), ON, logits).transform is not None


def test_quantized_keys_with_float_queries_and_values():
    q, k, v = qkv(dim=16, value_dim=16)
    scale = np.abs(k).max() / 127
    integers = np.rint(k / scale).astype(np.int8)
    raw = run_attention_raw(
        *(q, Quantized(np.stack([integers] * 2), scale), np.stack([v] * 2)), device="model"
    )
    assert raw.transform is not None
    expected = attention(q, integers * scale, v)
    assert sqnr_db(expected, raw.dequantize()) > 38


@pytest.mark.parametrize("metric", [None, np.zeros((6, 6))])
def test_rounding_without_a_metric_is_to_the_nearest(metric):
    x = random(40, 6)
    scales = np.abs(x).max(axis=1, keepdims=True) / 127
    np.testing.assert_array_equal(Rounding(metric)(x, scales), np.rint(x / scales))


def test_rounding_in_a_metric():
    x, other = random(200, 12), random(100, 12, seed=1) * 2.0 ** -np.arange(12)
    metric = covariance(other @ random(12, 12, seed=2))
    scales = np.abs(x).max(axis=1, keepdims=True) / 127

    def error(rounded, scales):
        e = rounded * scales - x
        return np.einsum("ti,ij,tj->t", e, metric, e)

    nearest, shaped = Rounding(), Rounding(metric)
    near, far = error(nearest(x, scales), scales), error(shaped(x, scales), scales)
    assert far.mean() < near.mean() / 4
    best = shaped.best_scales(x, scales, (1.0, 1.02, 1.04))
    assert set(np.round(best / scales, 6).ravel()) == {1.0, 1.02, 1.04}
    assert error(shaped(x, best), best).mean() < far.mean()
    assert np.abs(shaped(x * 100, scales).astype(int)).max() == 127
    zero = shaped(x, scales * 0)
    assert not zero.any()


def test_sampled_weights():
    q, k, _ = qkv(queries=20, keys=30)
    weights = sample_attention(q, k, 0.25)
    exact = attention(q, k, np.eye(30), scale=0.25).reshape(40, 30)
    np.testing.assert_allclose(weights, exact, atol=1e-12)
    limits = np.arange(20)
    weights = sample_attention(q, k, -0.25, limits).reshape(2, 20, 30)
    exact = attention(q, k, np.eye(30), scale=-0.25, high=np.maximum(limits, 1))
    np.testing.assert_allclose(weights, exact, atol=1e-12)
    assert sample_attention(random(3, 1000, 4), k[:, :4], 1.0).shape == (64, 30)
    assert np.isclose(mass(exact[0]).mean(), 1)
    np.testing.assert_array_equal(sample_attention(q, k, np.inf).max(axis=1), 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("causal", [False, True])
def test_extreme_inputs(kind, causal):
    q, k, v = extreme(kind)
    k, v = (np.broadcast_to(x, (len(q), *x.shape)) for x in (k, v))
    with open_device("model") as device:
        job = plan_attention(device.config, q, k, v, is_causal=causal)
        raw = job.run(device)
    result, ideal = raw.dequantize(), ideal_attention(job)
    assert np.isfinite(result).all()
    peak = np.abs(v).max()
    if kind == "huge":
        # Logits of 1e600 are limited to 4096, and their rounding decides between equal ones.
        assert np.abs(result).max() <= 1.05 * peak
    elif peak > 1e-310:
        assert np.abs(result - ideal).max() <= 2 * peak / 127  # two steps of the largest token
    if kind in ("zeros", "subnormal"):
        np.testing.assert_allclose(result, 0, atol=1e-318)
    if kind == "constant":
        np.testing.assert_allclose(result, 0.7, rtol=0.01)


@pytest.mark.parametrize("kind", ["outlier tokens", "outlier channels", "normal"])
def test_the_default_is_better_than_no_transform(kind):
    rng = np.random.default_rng(5)
    q, k, v = (rng.normal(size=(2, 200, 32)) for _ in range(3))
    if kind == "outlier tokens":  # a huge first key with a tiny value, which all attend to
        k[:, 0] *= 30
        v[:, 0] *= 0.01
        q += 2 * k[:, :1] / np.linalg.norm(k[:, :1])
    if kind == "outlier channels":
        k[..., 3] = 50 + 30 * k[..., 3]
        v[..., 2] *= 100
        q[..., 3] /= 8
    reference = attention(q, k, v)
    off, on = (
        sqnr_db(reference, run_attention_raw(q, k, v, options=options, device="model").dequantize())
        for options in (OFF, ON)
    )
    assert on > max(off + 1, 39)


def test_automatic_result_fraction():
    q, k, v = qkv(queries=50, keys=1000)
    logits = logit_transform(Operand(q / 10), Operand(k), 0.25, ON)
    assert quantize_values(Operand(v), ON, logits).result_fraction >= 10
    assert quantize_values(Operand(v), ON).result_fraction == SAFE_FRACTION
    # A mask may leave a query with a single value.
    logits = logit_transform(Operand(q / 10), Operand(k), 0.25, ON, np.full(50, 1000))
    assert quantize_values(Operand(v), ON, logits).result_fraction == SAFE_FRACTION
    fixed = dataclasses.replace(ON, result_fraction=3)
    assert quantize_values(Operand(v), fixed, logits).result_fraction == 3


def test_heads_that_saturate_run_again():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, count, 16)) for count in (300, 400, 400))
    q *= 0.01
    plain = run_attention_raw(q, k, v, device="model")
    # Query 2 of head 1 is not among the sampled ones, and attends to one key.
    q[1, 2] = 20 * k[1, 7]
    with open_device("model") as device:
        job = plan_attention(device.config, q, k, v)
        fractions = [group.values.result_fraction for group in job.groups]
        raw = job.run(device)
        report = device.report
    assert report is not None
    assert report.useful_macs == job.program.useful_macs
    assert report.bytes_sent > sum(map(len, job.program.commands)), "both runs count"
    assert min(fractions) > SAFE_FRACTION
    np.testing.assert_array_equal(raw.values[0], plain.values[0])
    assert raw.scale[1, 0, 0] == np.ldexp(job.groups[1].values.scale, -SAFE_FRACTION)
    assert np.abs(raw.values[1].astype(int)).max() < 32767
    np.testing.assert_allclose(raw.dequantize()[1, 2], v[1, 7], atol=0.05)


@pytest.mark.parametrize("value", [127, -127, -128])
def test_the_safe_fraction_does_not_saturate(value):
    """The largest values everywhere, with as much rounding of weights and sums as there is."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(1, 50, 8)) * 4, rng.normal(size=(1, 700, 8))
    v = Quantized(np.full((1, 700, 4), value, np.int8), 1.0)
    raw = run_attention_raw(q, k, v, device="model")
    # The largest factor is 65535 / 65536, and truncations cost two units of 2**15.
    assert np.abs(raw.values - value * 256.0).max() <= 4
    if value > -128:
        assert np.abs(raw.values.astype(int)).max() < 32767
