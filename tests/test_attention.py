"""`run_attention` on the integer model against PyTorch."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import celosia
from celosia import AttentionOptions, Quantized, run_attention, run_attention_raw
from celosia.attention import plan_attention
from celosia.evaluate import ideal_attention
from celosia_hw.config import preset
from celosia_sim.reference import attention, sqnr_db

# On N(0, 1) the largest of a token's 10 to 128 numbers is 1.5 to 3 standard deviations, so a
# step of int8 is at most 3 / 127 of one and its rounding 43 dB below the signal. Three tensors
# are rounded, and logits have about the variance of a score: 43 - 10 log10(3) = 38 dB, less 3 dB
# because a small tensor is a small sample.
BOUND_DB = 35.0


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def qkv(heads, queries, keys, dim, value_dim=None, key_heads=None):
    key_heads = heads if key_heads is None else key_heads
    return (
        random(heads, queries, dim, seed=1),
        random(key_heads, keys, dim, seed=2),
        random(key_heads, keys, dim if value_dim is None else value_dim, seed=3),
    )


def sdpa(q, k, v, **options):
    """PyTorch in float32 and four dimensions, so that all its options mean what they should."""
    q, k, v = (torch.from_numpy(x)[None] for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, **options)[0].numpy()


SIZES = (
    *((1, 1, 1, 1), (17, 33, 10, 10), (5, 40, 3, 7)),
    *((3, 4, 10, 1), (16, 16, 8, 8), (1, 25, 10, 10)),
)


@pytest.mark.parametrize("device", ["model:tiny", "model:small", "model"])
@pytest.mark.parametrize(("queries", "keys", "dim", "value_dim"), SIZES)
@pytest.mark.parametrize("causal", [False, True])
def test_sizes(device, queries, keys, dim, value_dim, causal):
    check_sizes(device, queries, keys, dim, value_dim, causal)


@pytest.mark.parametrize("causal", [False, True])
def test_sizes_on_each_device(device_spec, causal):
    with celosia.open_device(device_spec) as device:
        for sizes in SIZES:
            check_sizes(device, *sizes, causal)


def check_sizes(device, queries, keys, dim, value_dim, causal):
    q, k, v = qkv(2, queries, keys, dim, value_dim)
    result = run_attention(q, k, v, is_causal=causal, device=device)
    assert result.shape == (2, queries, value_dim)
    assert result.dtype == np.float32
    assert sqnr_db(sdpa(q, k, v, is_causal=causal), result) > BOUND_DB


@pytest.mark.parametrize(
    ("device", "shape"),
    [
        ("model:small", (1, 17, 33, 15)),
        ("model", (1, 100, 1000, 128)),
        ("model:small", (2, 64, 64, 64)),
    ],
)
def test_larger_sizes(device, shape):
    q, k, v = qkv(*shape)
    assert sqnr_db(sdpa(q, k, v), run_attention(q, k, v, device=device)) > BOUND_DB


@pytest.mark.parametrize("causal", [False, True])
def test_close_to_int8_rounding_alone(causal):
    """The issue's bound: all the integer arithmetic together costs at most 0.1 dB."""
    q, k, v = qkv(1, 512, 512, 64)
    reference = sdpa(q, k, v, is_causal=causal)
    result = run_attention(q, k, v, is_causal=causal, device="model")
    job = plan_attention(preset("default"), q, k, v, is_causal=causal)
    assert sqnr_db(reference, result) > sqnr_db(reference, ideal_attention(job)) - 0.1


def test_grouped_heads():
    q, k, v = qkv(6, 9, 13, 8, key_heads=2)
    expected = sdpa(q, k, v, enable_gqa=True)
    result = run_attention(q, k, v, enable_gqa=True, device="model:small")
    assert sqnr_db(expected, result) > BOUND_DB


def test_grouped_heads_in_a_batch():
    q, k, v = random(2, 6, 9, 8), random(2, 3, 11, 8, seed=1), random(2, 3, 11, 5, seed=2)
    tq, tk, tv = map(torch.from_numpy, (q, k, v))
    expected = scaled_dot_product_attention(tq, tk, tv, enable_gqa=True).numpy()
    result = run_attention(q, k, v, enable_gqa=True, device="model:tiny")
    assert sqnr_db(expected, result) > BOUND_DB


@pytest.mark.parametrize(
    ("q_lead", "k_lead"),
    [
        ((), ()),
        ((3,), (3,)),
        ((2, 3), (2, 3)),
        ((2, 3), (1, 3)),
        ((1, 2, 3), (2, 2, 1)),
        ((2, 3), ()),
        ((), (4,)),
    ],
)
def test_leading_dimensions(q_lead, k_lead):
    q = random(*q_lead, 7, 6)
    k, v = random(*k_lead, 9, 6, seed=1), random(*k_lead, 9, 4, seed=2)
    expected = attention(q, k, v)
    result = run_attention(q, k, v, device="model:tiny")
    assert result.shape == expected.shape
    assert sqnr_db(expected, result) > BOUND_DB


def test_key_length_of_each_batch_element():
    q, k, v = random(3, 2, 5, 8), random(3, 2, 9, 8, seed=1), random(3, 2, 9, 8, seed=2)
    lengths = np.array([9, 4, 0])
    result = run_attention(q, k, v, key_length=lengths, device="model:tiny")
    mask = torch.from_numpy(np.arange(9) < lengths[:, None])[:, None, None, :]
    tq, tk, tv = map(torch.from_numpy, (q, k, v))
    expected = scaled_dot_product_attention(tq, tk, tv, attn_mask=mask)
    assert not result[2].any()
    assert sqnr_db(expected.nan_to_num().numpy(), result) > BOUND_DB
    same = run_attention(q, k, v, key_length=torch.from_numpy(lengths), device="model:tiny")
    np.testing.assert_array_equal(result, same)


def test_key_length_hides_what_is_behind_it():
    q, k, v = qkv(2, 5, 9, 8)
    k2, v2 = k.copy(), v.copy()
    k2[:, 6:], v2[:, 6:] = 1e6, -1e6
    first, second = (
        run_attention(q, *kv, key_length=6, is_causal=True, device="model:tiny")
        for kv in ((k, v), (k2, v2))
    )
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_torch_tensors(dtype):
    q, k, v = (torch.from_numpy(x).to(dtype) for x in qkv(2, 7, 9, 8))
    result = run_attention(q.requires_grad_(), k, v, device="model:tiny")
    assert isinstance(result, torch.Tensor)
    assert result.dtype == dtype
    assert result.device == q.device
    assert not result.requires_grad
    q, k, v = (x.detach().float() for x in (q, k, v))
    expected = scaled_dot_product_attention(q, k, v)
    # The result is rounded once more, to 8 bits at least: 48 dB.
    assert sqnr_db(expected.numpy(), result.float().numpy()) > BOUND_DB - 0.3


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_numpy_arrays(dtype):
    q, k, v = (x.astype(dtype) for x in qkv(2, 7, 9, 8))
    result = run_attention(q, k.astype(np.float32), v, device="model:tiny")
    assert result.dtype == dtype
    assert sqnr_db(attention(q, k, v), result) > BOUND_DB


def test_arrays_need_not_be_contiguous():
    q, k, v = qkv(2, 7, 9, 8)
    strided = [np.asfortranarray(x)[:, ::-1] for x in (q, k, v)]
    plain = [np.ascontiguousarray(x) for x in strided]
    first, second = (run_attention(*x, device="model:tiny") for x in (strided, plain))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("scale", [1.0, 0.05, -0.5])
def test_scale(scale):
    q, k, v = qkv(2, 7, 9, 4)
    result = run_attention(q, k, v, scale=scale, device="model:tiny")
    assert sqnr_db(sdpa(q, k, v, scale=scale), result) > BOUND_DB


def test_zero_scale_is_the_mean():
    q, k, v = qkv(2, 7, 9, 8)
    result = run_attention(q, k, v, scale=0.0, device="model:tiny")
    expected = np.broadcast_to(v.mean(axis=1, keepdims=True), result.shape)
    # Half a step of V's int8 values, and half a step and one more of the result.
    step = np.abs(v).max() / 127
    assert np.abs(result - expected).max() <= step * (1 / 2 + 1.5 / 256)


@pytest.mark.parametrize(
    ("of_q", "of_k", "of_v"),
    [(1e-30, 1e-8, 1e30), (1e30, 1e-30, 1e-30), (1e-30, 1e30, 1.0), (1e-40, 1.0, 1e-40)],
)
def test_magnitudes_that_float32_just_holds(of_q, of_k, of_v):
    q, k, v = qkv(2, 7, 9, 8)
    tensors = [x.astype(np.float64) * scale for x, scale in ((q, of_q), (k, of_k), (v, of_v))]
    single = [x.astype(np.float32) for x in tensors]
    result = run_attention(*single, device="model:tiny")
    # Denormal float32 numbers have few digits: compare with what is left of the inputs.
    expected = attention(*(x.astype(np.float64) for x in single))
    assert sqnr_db(expected / of_v, result / np.float64(of_v)) > BOUND_DB


@pytest.mark.parametrize("magnitude", [1e4, 1e30, 1e300])
def test_huge_logits_pick_the_largest(magnitude):
    """Each query agrees with one key; the limit of the logarithm must not blur that."""
    eye = np.eye(6)
    v = random(6, 4).astype(np.float64)
    result = run_attention(eye * magnitude, eye * magnitude, v, device="model:tiny")
    assert sqnr_db(v, result) > BOUND_DB


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_largest_numbers_of_a_type(dtype):
    largest = np.full((1, 2, 2), np.finfo(dtype).max)
    for v in (largest, -largest):
        result = run_attention(largest, largest, v, device="model:tiny")
        assert np.isfinite(result).all()
        np.testing.assert_allclose(result.astype(np.longdouble) / v, 1, rtol=2e-3)


def test_all_zero():
    zeros = np.zeros((2, 5, 4), np.float32)
    assert not run_attention(zeros, zeros, zeros, device="model:tiny").any()


def test_outlier_tokens_keep_the_others_exact():
    """A first key of huge norm and tiny value, as language models have."""
    q, k, v = qkv(1, 8, 24, 10)
    k[:, 0] *= 30
    v[:, 0] *= 1e-3
    result = run_attention(q, k, v, device="model:tiny", scale=0.1)
    assert sqnr_db(sdpa(q, k, v, scale=0.1), result) > BOUND_DB - 3
    options = AttentionOptions(per_token_key=False, smooth_keys=False)
    worse = run_attention(q, k, v, device="model:tiny", scale=0.1, options=options)
    assert sqnr_db(sdpa(q, k, v, scale=0.1), worse) < sqnr_db(sdpa(q, k, v, scale=0.1), result)


def test_smoothing():
    q, k, v = qkv(2, 7, 30, 8)
    k, v = k + 20 * random(1, 1, 8, seed=4), v + 5
    expected = sdpa(q, k, v)
    plain = sqnr_db(expected - 5, run_attention(q, k, v, device="model:tiny") - 5)
    options = AttentionOptions(smooth_values=True)
    smooth = run_attention(q, k, v, device="model:tiny", options=options)
    assert sqnr_db(expected - 5, smooth - 5) > max(BOUND_DB, plain)
    options = AttentionOptions(smooth_keys=False)
    rough = run_attention(q, k, v, device="model:tiny", options=options)
    assert sqnr_db(expected, rough) < sqnr_db(expected, smooth)


def test_smoothed_values_of_a_row_without_keys_are_zero():
    q, k, v = qkv(2, 3, 4, 5)
    options = AttentionOptions(smooth_values=True)
    assert not run_attention(q, k, v, key_length=0, options=options, device="model:tiny").any()


def test_quantized_is_what_its_values_stand_for():
    rng = np.random.default_rng(0)
    operands, floats = [], []
    for shape in ((2, 7, 10), (2, 9, 10), (2, 9, 6)):
        values = rng.integers(-127, 128, shape, dtype=np.int8)
        scale = rng.uniform(0.005, 0.01, (*shape[:-1], 1))
        operands.append(Quantized(values, scale))
        floats.append(values * scale)
    result = run_attention(*operands, device="model:tiny")
    assert result.dtype == np.float32
    # No int8 rounding is left, only the result's: 1/256 of a V scale of at most 0.01, 1.5 steps
    # of it, and 2^-10 of a log2 unit per score.
    assert np.abs(result - attention(*floats)).max() < 1.5 * 0.01 / 256 + 1.27 * 2**-10


def test_quantized_mixes_with_floats_and_torch():
    q, k, v = qkv(2, 7, 9, 8)
    scale = np.abs(k).max() / 127
    values = torch.from_numpy(np.rint(k / scale).astype(np.int8))
    result = run_attention(q, Quantized(values, float(scale)), v, device="model:tiny")
    assert sqnr_db(sdpa(q, k, v), result) > BOUND_DB
    query = Quantized(values, torch.tensor(scale))
    result = run_attention(query, k, v, device="model:tiny")
    assert isinstance(result, torch.Tensor)
    assert result.dtype == torch.float32


def test_raw_result():
    q, k, v = qkv(3, 7, 9, 8)
    options = AttentionOptions(smooth_values=True)
    raw = run_attention_raw(q, k, v, options=options, device="model:tiny")
    assert raw.values.dtype == np.int16
    assert raw.values.shape == (3, 7, 8)
    assert raw.scale.shape == (3, 1, 1)
    assert raw.offset.shape == (3, 1, 8)
    result = run_attention(q.astype(np.float64), k, v, options=options, device="model:tiny")
    assert raw.transform is not None
    assert raw.transform.shape == (3, 8, 8)
    expected = raw.values * raw.scale @ raw.transform + raw.offset
    np.testing.assert_allclose(expected, result, atol=1e-12)
    options = AttentionOptions(rotate_values=False, balance_values=False)
    raw = run_attention_raw(q, k, v, options=options, device="model:tiny")
    assert raw.transform is None
    np.testing.assert_array_equal(raw.dequantize(), raw.values * raw.scale)


def test_result_fraction():
    q, k, v = qkv(1, 4, 1000, 8)
    errors = []
    for fraction in (4, 8, 10):
        options = AttentionOptions(result_fraction=fraction)
        result = run_attention(q, k, v, device="model", options=options)
        errors.append(np.abs(result - sdpa(q, k, v)).max())
    assert errors[0] > errors[1] >= errors[2] * 0.9


def test_nothing_depends_on_other_heads():
    q, k, v = qkv(3, 7, 9, 8)
    together = run_attention(q, k, v, device="model:tiny")
    for head in range(3):
        alone = run_attention(q[head], k[head], v[head], device="model:tiny")
        np.testing.assert_array_equal(together[head], alone)


def poisoned(x, value):
    x = x.copy()
    x[1, 2, 3] = value
    return x


Q, K, V = qkv(2, 5, 6, 8)
EMPTY = np.zeros((2, 0, 8), np.float32)
REJECTED = {
    "nan": (
        (Q, K, poisoned(V, np.nan)),
        {},
        ValueError,
        r"value contains NaN, first at .*\(1, 2, 3\)",
    ),
    "infinity": ((poisoned(Q, np.inf), K, V), {}, ValueError, "query contains infinity"),
    "minus infinity": ((Q, poisoned(K, -np.inf), V), {}, ValueError, "key contains infinity"),
    "rank 1": ((Q[0, 0], K, V), {}, ValueError, r"query has shape \(8,\): .* at least 2"),
    "head dims": ((Q, K[..., :7], V), {}, ValueError, r"query \(8\) and key \(7\) differ"),
    "tokens": ((Q, K, V[:, :4]), {}, ValueError, "key has 6 tokens, value 4"),
    "batch": (
        (Q, np.zeros((3, 6, 8)), np.zeros((3, 6, 8))),
        {},
        ValueError,
        "do not fit.*enable_gqa",
    ),
    "head dim": (
        (np.zeros((1, 2, 11)), np.zeros((1, 2, 11)), V[:1, :2]),
        {},
        ValueError,
        "head dimension 11 of query exceeds the device's maximum of 10",
    ),
    "value dim": (
        (Q[:1], K[:1], np.zeros((1, 6, 12))),
        {},
        ValueError,
        "head dimension 12 of value exceeds the device's maximum of 10",
    ),
    "no queries": ((EMPTY, K, V), {}, ValueError, r"query is empty: shape \(2, 0, 8\)"),
    "no keys": ((Q, EMPTY, EMPTY), {}, ValueError, "key is empty"),
    "no heads": ((Q[:0], K[:0], V[:0]), {}, ValueError, "query is empty"),
    "groups": (
        (Q[[0, 1, 1]], K, V),
        {"enable_gqa": True},
        ValueError,
        "3 query heads .* 2 key heads",
    ),
    "gqa of one head": (
        (Q[0], K[0], V[0]),
        {"enable_gqa": True},
        ValueError,
        "at least 3 dimensions",
    ),
    "too many keys": (
        (Q, np.zeros((2, 32769, 8), np.float16), np.zeros((2, 32769, 8), np.float16)),
        {},
        ValueError,
        "32769 keys.*32768",
    ),
    "integers": ((Q.astype(np.int8), K, V), {}, TypeError, "query is int8.*Quantized"),
    "torch integers": (
        (Q, torch.zeros(2, 6, 8, dtype=torch.int64), V),
        {},
        TypeError,
        "key is int64",
    ),
    "complex": ((Q, K, V.astype(complex)), {}, TypeError, "value is complex128"),
    "quantized type": ((Quantized(Q, 1.0), K, V), {}, TypeError, r"query\.values is float32"),
    "quantized scale": (
        (Q, Quantized(K.astype(np.int8), np.ones(7)), V),
        {},
        ValueError,
        r"key\.scale of",
    ),
    "quantized nan": (
        (Q, K, Quantized(V.astype(np.int8), np.nan)),
        {},
        ValueError,
        r"value\.scale contains NaN",
    ),
    "quantized minus": (
        (Q, K, Quantized(V.astype(np.int8), -1.0)),
        {},
        ValueError,
        r"value\.scale is negative",
    ),
    "scale": ((Q, K, V), {"scale": float("nan")}, ValueError, "scale must be finite"),
    "key_length": (
        (Q, K, V),
        {"key_length": 7},
        ValueError,
        "key_length must be between 0 and 6, not 7",
    ),
    "negative length": ((Q, K, V), {"key_length": -1}, ValueError, "not -1"),
    "lengths": ((Q, K, V), {"key_length": [1, 2, 3]}, ValueError, r"shape \(3,\).*\(2,\)"),
    "float length": ((Q, K, V), {"key_length": 2.0}, TypeError, "integers"),
    "options": ((Q, K, V), {"options": {}}, TypeError, "AttentionOptions"),
    "slopes": ((Q, K, V), {"alibi_slopes": [1.0, 2.0, 3.0, 4.0]}, ValueError, r"\(4,\)"),
    "mask and causal": (
        (Q, K, V, np.ones((5, 6), bool)),
        {"is_causal": True},
        ValueError,
        "exclude each other",
    ),
    "mask shape": ((Q, K, V, np.ones((4, 6), bool)), {}, ValueError, r"\(4, 6\)"),
    "integer mask": ((Q, K, V, np.ones((5, 6), int)), {}, TypeError, "int64"),
    "window": ((Q, K, V), {"window": 0}, ValueError, "window .*0"),
    "alignment": ((Q, K, V), {"causal_alignment": "left"}, ValueError, "'left'"),
    "documents": ((Q, K, V), {"document_ids": np.zeros(6, int)}, ValueError, "5"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_rejected_before_anything_is_sent(case, device_spec, monkeypatch):
    arguments, options, error, message = REJECTED[case]
    with celosia.open_device(device_spec) as device:
        with monkeypatch.context() as patch:
            patch.setattr(device, "_exchange", lambda *_: pytest.fail("sent a packet"))
            with pytest.raises(error, match=message) as caught:
                run_attention(*arguments, **options)
        assert "\n" not in str(caught.value)
        assert sqnr_db(sdpa(Q, K, V), run_attention(Q, K, V)) > BOUND_DB


KINDS = (
    *("none", "causal", "bottom_right", "window", "lengths", "bool", "float"),
    *("holes", "bias", "alibi", "causal alibi"),
)


def random_call(seed, most=40, dims=65):
    """Tensors of a random shape, a kind of mask, and the same as PyTorch takes it."""
    rng = np.random.default_rng(seed)
    batch, kv_heads, group = rng.integers(1, 3), rng.integers(1, 4), rng.integers(1, 4)
    queries, keys = rng.integers(1, most, 2)
    head_dim, value_dim = rng.integers(1, dims, 2)
    shape = (int(batch), int(kv_heads))
    q = rng.normal(size=(shape[0], shape[1] * group, queries, head_dim)).astype(np.float32)
    k = rng.normal(size=(*shape, keys, head_dim)).astype(np.float32)
    v = rng.normal(size=(*shape, keys, value_dim)).astype(np.float32)
    kind = KINDS[seed % len(KINDS)]
    query, key = np.indices((queries, keys))
    arguments: dict[str, Any] = {"scale": float(rng.uniform(0.05, 0.5))}
    allowed = np.ones((queries, keys), bool)
    if kind in ("causal", "bottom_right"):
        offset = int(keys - queries) if kind == "bottom_right" else 0
        arguments["is_causal"] = True
        arguments["causal_alignment"] = "bottom_right" if offset else "top_left"
        allowed = key <= query + offset
    elif kind == "window":
        arguments["window"] = window = int(rng.integers(1, 12))
        allowed = (key <= query) & (key > query - window)
    elif kind == "lengths":
        lengths = rng.integers(0, keys + 1, batch)
        arguments["key_length"] = lengths
        allowed = (key < lengths[:, None, None])[:, None]
    elif kind == "holes":
        arguments["attn_mask"] = allowed = rng.random((shape[0], 1, queries, keys)) < 0.4
    elif kind == "bias":
        allowed = 2 * rng.normal(size=(shape[1] * group, queries, keys))
        allowed = np.where(rng.random(allowed.shape) < 0.1, -np.inf, allowed).astype(np.float32)
        arguments["attn_mask"] = allowed
    elif kind in ("alibi", "causal alibi"):
        arguments["alibi_slopes"] = slopes = 2.0 ** -np.arange(1, shape[1] * group + 1)
        allowed = -slopes[:, None, None] * np.abs(query - key)
        if kind == "causal alibi":
            arguments["is_causal"] = True
            allowed = np.where(key <= query, allowed, -np.inf)
        allowed = allowed.astype(np.float32)
    elif kind in ("bool", "float"):
        ends = np.sort(rng.integers(0, keys + 1, (queries, 2)), axis=1)
        allowed = (key >= ends[:, :1]) & (key < ends[:, 1:])
        floats = np.where(allowed, 0, -np.inf).astype(np.float32)
        arguments["attn_mask"] = allowed if kind == "bool" else floats
    return (q, k, v), arguments, allowed


def check_random_call(seed, device, **limits):
    """Against PyTorch, where a query attends to anything; zeros elsewhere."""
    tensors, arguments, allowed = random_call(seed, **limits)
    result = run_attention(*tensors, enable_gqa=True, device=device, **arguments)
    q, k, v = map(torch.from_numpy, tensors)
    reference = torch.nn.functional.scaled_dot_product_attention(
        *(q, k, v),
        attn_mask=torch.tensor(np.broadcast_to(allowed, (*q.shape[:2], *allowed.shape[-2:]))),
        scale=arguments["scale"],
        enable_gqa=True,
    ).numpy()
    attends = allowed if allowed.dtype == bool else np.isfinite(allowed)
    empty = np.broadcast_to(~attends.any(axis=-1), reference.shape[:-1])
    assert not result[empty].any()
    reference = np.where(empty[..., None], 0, reference)
    # Int8 of few tokens and of up to 64 numbers each: 5 % of the largest is far from a wrong mask.
    np.testing.assert_allclose(result, reference, atol=0.05 * np.abs(tensors[2]).max())


@pytest.mark.parametrize("seed", range(22 * 11))
def test_random_shapes_and_masks_against_pytorch(seed):
    with celosia.open_device("model:small") as device:
        check_random_call(seed, device)


@pytest.mark.parametrize("seed", range(3 * 11))
def test_random_shapes_and_masks_on_the_hardware(seed):
    tensors, arguments, _ = random_call(1000 + seed)
    raw = {}
    for name in ("model:small", "sim:small"):
        raw[name] = celosia.run_attention_raw(
            *tensors, enable_gqa=True, device=name, **arguments
        ).values
    np.testing.assert_array_equal(raw["sim:small"], raw["model:small"])


@pytest.mark.parametrize("seed", range(11))
def test_random_shapes_and_masks_on_each_device(seed, device_spec):
    """Every kind of mask, in sizes that the smallest configuration holds."""
    tensors, arguments, _ = random_call(2000 + seed, dims=9)
    result, expected = (
        celosia.run_attention_raw(*tensors, enable_gqa=True, device=name, **arguments).values
        for name in (device_spec, "model:tiny")
    )
    np.testing.assert_array_equal(result, expected)
    check_random_call(3000 + seed, device_spec, dims=9)
