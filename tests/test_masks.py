"""`resolve_masks` against loops over every query and key, and against PyTorch."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from celosia.masks import resolve_masks

SHAPES = [
    ((), 1, 1),
    ((), 4, 6),
    ((3,), 5, 5),
    ((2, 3), 1, 7),
    ((2, 3), 7, 1),
    ((2, 1), 6, 3),
    ((2, 3), 5, 5),
    ((2, 1, 2), 4, 4),
]


def of_batch(values, batch, head):
    """What the batch element of a head has, of one for all or one for each."""
    values = np.asarray(values)
    return values if values.size == 1 else np.broadcast_to(values, batch)[head[: len(batch)]]


def expected(
    lead,
    queries,
    keys,
    *,
    attn_mask=None,
    is_causal=False,
    causal_alignment="top_left",
    key_length=None,
    window=None,
    document_ids=None,
    alibi_slopes=None,
):
    """What each query may attend to, and the bias, by definition."""
    shape = (*lead, queries, keys)
    batch = lead[:-1] if len(lead) > 1 else lead
    allowed, bias = np.zeros(shape, bool), np.zeros(shape)
    for where in np.ndindex(shape):
        *head, i, j = where
        head = tuple(head)
        position = i + (keys - queries if causal_alignment == "bottom_right" else 0)
        allows, added = True, 0.0
        if attn_mask is not None:
            entry = np.broadcast_to(attn_mask, shape)[where]
            if attn_mask.dtype == bool:
                allows = bool(entry)
            else:
                allows = entry > np.finfo(attn_mask.dtype).min / 2
                added = float(entry)
        if is_causal:
            allows = allows and j <= position
        if key_length is not None:
            allows = allows and j < of_batch(key_length, batch, head)
        if window is not None:
            allows = allows and position - int(window) < j <= position
        if document_ids is not None:
            ids = np.broadcast_to(document_ids, (*batch, keys))[head[: len(batch)]]
            allows = allows and ids[i] == ids[j]
        if alibi_slopes is not None:
            added -= np.broadcast_to(alibi_slopes, lead)[head] * abs(position - j)
        allowed[where] = allows
        bias[where] = added if allows else 0
    return allowed, bias


def check_canonical(mask):
    """That a mask has the one form its docstring promises."""
    queries, matrix = len(mask.low), mask.matrix()
    assert mask.low.dtype == mask.high.dtype == np.int64
    assert mask.low.shape == mask.high.shape == (queries,)
    assert mask.allowed_pairs() == matrix.sum()
    gaps = False
    for row, low, high in zip(matrix, mask.low, mask.high, strict=True):
        (keys,) = row.nonzero()
        assert (low, high) == ((keys[0], keys[-1] + 1) if len(keys) else (0, 0))
        gaps |= len(keys) < high - low
    assert (mask.allowed is not None) == gaps
    if mask.allowed is not None:
        assert mask.allowed.dtype == bool
        assert mask.allowed.shape == (queries, mask.keys)
    if mask.bias is not None:
        assert mask.bias.dtype == np.float64
        assert mask.bias.shape == (queries, mask.keys)
        assert np.isfinite(mask.bias).all()
        assert mask.bias.any()
        assert not mask.bias[~matrix].any()
    if mask.slope is not None:
        assert mask.slope > 0
        assert not np.triu(matrix, 1 + mask.offset).any()


def resolve(lead, queries, keys, **arguments):
    """The masks, after comparing them with what is expected."""
    masks, index = resolve_masks(lead, queries, keys, **arguments)
    assert index.dtype == np.int64
    assert index.shape == (math.prod(lead),)
    assert set(index.tolist()) == set(range(len(masks)))
    for mask in masks:
        check_canonical(mask)
    allowed, bias = expected(lead, queries, keys, **arguments)
    allowed, bias = (x.reshape(-1, queries, keys) for x in (allowed, bias))
    for head, number in enumerate(index):
        np.testing.assert_array_equal(masks[number].matrix(), allowed[head])
        total = masks[number].total_bias()
        # Two additions of numbers near 1, in one order or the other.
        np.testing.assert_allclose(0 if total is None else total, bias[head], rtol=0, atol=1e-12)
    return masks, index


def resolve_one(queries, keys, **arguments):
    (mask,), _ = resolve((), queries, keys, **arguments)
    return mask


def some_shape(rng, shape):
    """A shape that broadcasts to `shape`."""
    sizes = [size if rng.random() < 0.6 else 1 for size in shape]
    return tuple(sizes[rng.integers(len(sizes) + 1) :])


def some_mask(rng, shape):
    shape = some_shape(rng, shape)
    match rng.integers(4):
        case 0:
            return rng.random(shape) < 0.7
        case 1:
            dtype = rng.choice([np.float16, np.float32, np.float64])
            least = rng.choice([-np.inf, np.finfo(dtype).min])
            return np.where(rng.random(shape) < 0.7, 0, least).astype(dtype)
        case 2:
            return rng.normal(size=shape).astype(np.float32)
        case _:
            return np.where(rng.random(shape) < 0.7, rng.normal(size=shape), -np.inf)


def some_arguments(rng, lead, queries, keys):
    batch = lead[:-1] if len(lead) > 1 else lead
    arguments: dict[str, Any] = {"causal_alignment": str(rng.choice(["top_left", "bottom_right"]))}
    if rng.random() < 0.5:
        arguments["attn_mask"] = some_mask(rng, (*lead, queries, keys))
    elif rng.random() < 0.5:
        arguments["is_causal"] = True
    if rng.random() < 0.3:
        size = batch if rng.random() < 0.7 else None
        arguments["key_length"] = rng.integers(keys + 1, size=size)
    if rng.random() < 0.3:
        arguments["window"] = int(rng.integers(1, keys + 2))
    if queries == keys and rng.random() < 0.3:
        ids = rng.integers(3, size=(*some_shape(rng, batch), keys))
        arguments["document_ids"] = ids if rng.random() < 0.5 else np.sort(ids)
    if lead and rng.random() < 0.4:
        arguments["alibi_slopes"] = rng.choice([0, 0.5, 1.25, -0.5], size=some_shape(rng, lead))
    return arguments


@pytest.mark.parametrize(("lead", "queries", "keys"), SHAPES)
def test_random_combinations(lead, queries, keys):
    rng = np.random.default_rng(1)
    for _ in range(100):
        resolve(lead, queries, keys, **some_arguments(rng, lead, queries, keys))


def attention(q, k, v, masks, index):
    """In float64, from the canonical form alone; rows without keys are 0."""
    lead, (queries, _) = q.shape[:-2], q.shape[-2:]
    q, k, v = (x.reshape(-1, *x.shape[-2:]) for x in (q, k, v))
    result = np.zeros((len(q), queries, v.shape[-1]))
    for head, number in enumerate(index):
        mask = masks[number]
        logits = q[head] @ k[head].T / math.sqrt(q.shape[-1])
        bias = mask.total_bias()
        logits = logits if bias is None else logits + bias
        for i in np.flatnonzero(mask.high):
            where = np.flatnonzero(mask.matrix()[i])
            weights = np.exp(logits[i, where] - logits[i, where].max())
            result[head, i] = weights @ v[head, where] / weights.sum()
    return result.reshape(*lead, queries, -1)


def qkv(lead, queries, keys):
    rng = np.random.default_rng(2)
    return tuple(rng.normal(size=(*lead, tokens, 4)) for tokens in (queries, keys, keys))


def compare_with_torch(lead, queries, keys, torch_mask=None, is_causal=False, **arguments):
    q, k, v = qkv(lead, queries, keys)
    reference = scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), attn_mask=torch_mask, is_causal=is_causal
    )
    masks, index = resolve_masks(lead, queries, keys, is_causal=is_causal, **arguments)
    result = attention(q, k, v, masks, index)
    # Both in float64, where a few dozen numbers near 1 are added.
    np.testing.assert_allclose(result, reference.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("lead", "queries", "keys"), SHAPES)
@pytest.mark.parametrize("kind", ["bool", "-inf", "minimum", "bias", "bias and -inf"])
def test_attn_mask_is_what_pytorch_makes_of_it(lead, queries, keys, kind):
    rng = np.random.default_rng(3)
    for _ in range(10):
        shape = some_shape(rng, (*lead, queries, keys))
        shape = shape if len(shape) > 1 else (1,) * (2 - len(shape)) + shape  # of torch's kernel
        mask = rng.random(shape) < 0.6
        if kind == "minimum":
            mask[..., 0] = True  # without any key PyTorch differs, see below
        least = np.finfo(np.float64).min if kind == "minimum" else -np.inf
        additive = rng.normal(size=shape) if "bias" in kind else np.zeros(shape)
        if kind != "bias":
            additive[~mask] = least
        mask = mask if kind == "bool" else additive
        compare_with_torch(lead, queries, keys, torch.from_numpy(mask), attn_mask=mask)


@pytest.mark.parametrize(("lead", "queries", "keys"), SHAPES)
def test_is_causal_is_that_of_pytorch(lead, queries, keys):
    compare_with_torch(lead, queries, keys, is_causal=True)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 7), (4, 7), (7, 7)])
def test_bottom_right_is_that_of_pytorch(queries, keys):
    q, k, v = qkv((1, 2), queries, keys)
    bias = causal_lower_right(queries, keys)
    reference = scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), attn_mask=bias)
    causal = resolve_masks((1, 2), queries, keys, is_causal=True, causal_alignment="bottom_right")
    np.testing.assert_allclose(attention(q, k, v, *causal), reference.numpy(), rtol=0, atol=1e-12)


def test_rows_of_the_finite_minimum_are_zero():
    """PyTorch gives the mean of V, having rounded all other differences away."""
    q, k, v = qkv((), 3, 5)
    mask = np.zeros((3, 5))
    mask[1] = np.finfo(np.float64).min
    reference = scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), attn_mask=torch.from_numpy(mask)
    ).numpy()
    result = attention(q, k, v, *resolve_masks((), 3, 5, attn_mask=mask))
    np.testing.assert_allclose(reference[1], v.mean(0), rtol=0, atol=1e-12)
    assert not result[1].any()
    np.testing.assert_allclose(result[::2], reference[::2], rtol=0, atol=1e-12)


def test_nothing_asked():
    mask = resolve_one(3, 5)
    assert mask.low.tolist() == [0, 0, 0]
    assert mask.high.tolist() == [5, 5, 5]
    assert (mask.allowed, mask.bias, mask.slope, mask.offset) == (None, None, None, 0)
    assert mask.total_bias() is None


@pytest.mark.parametrize(
    ("queries", "keys", "alignment", "high"),
    [
        (3, 5, "top_left", [1, 2, 3]),
        (3, 5, "bottom_right", [3, 4, 5]),
        (5, 3, "top_left", [1, 2, 3, 3, 3]),
        (5, 3, "bottom_right", [0, 0, 1, 2, 3]),
    ],
)
def test_alignment(queries, keys, alignment, high):
    mask = resolve_one(queries, keys, is_causal=True, causal_alignment=alignment)
    assert mask.high.tolist() == high
    assert mask.offset == (0 if alignment == "top_left" else keys - queries)


def test_window():
    mask = resolve_one(4, 4, window=2)
    assert mask.low.tolist() == [0, 0, 1, 2]
    assert mask.high.tolist() == [1, 2, 3, 4]
    np.testing.assert_array_equal(
        resolve_one(4, 4, window=2, is_causal=True).matrix(), mask.matrix()
    )


@pytest.mark.parametrize("window", [4, np.uint8(200), 10**30])
def test_window_longer_than_all_keys_is_causal(window):
    mask = resolve_one(4, 4, window=window)
    np.testing.assert_array_equal(mask.matrix(), np.tri(4, dtype=bool))


def test_window_that_has_left_all_keys_behind():
    assert resolve_one(6, 2, window=2).high.tolist() == [1, 2, 2, 0, 0, 0]


@pytest.mark.parametrize("least", [-np.inf, np.finfo(np.float32).min, np.finfo(np.float32).min / 2])
def test_float_masks_without_bias_are_boolean(least):
    padding = np.where(np.arange(6) < 4, 0, least).astype(np.float32)
    mask = resolve_one(5, 6, attn_mask=padding[None])
    assert mask.high.tolist() == [4] * 5
    assert mask.allowed is None
    assert mask.bias is None


def test_large_negative_bias_stays_bias():
    entries = np.array([[0, -1e4, np.finfo(np.float32).min * 0.49]], np.float32)
    mask = resolve_one(1, 3, attn_mask=entries)
    assert mask.allowed_pairs() == 3
    np.testing.assert_array_equal(mask.bias, entries)


def test_minimum_of_the_dtype_before_conversion():
    entries = np.array([[0, -1, -40000]], np.float32)
    (mask,), _ = resolve_masks((), 1, 3, attn_mask=entries, mask_minimum=-65504.0)
    assert mask.high.tolist() == [2]
    assert mask.bias is not None
    assert mask.bias.tolist() == [[0, -1, 0]]
    (mask,), _ = resolve_masks((), 1, 3, attn_mask=entries < -1, mask_minimum=-65504.0)
    assert (mask.low[0], mask.high[0]) == (2, 3)


def test_intervals_are_found():
    block = np.arange(9) // 3
    for matrix in (
        np.tri(9, dtype=bool),
        np.tri(9, k=2, dtype=bool) & ~np.tri(9, k=-3, dtype=bool),
        block[:, None] == block,
        np.zeros((9, 9), bool),
        np.ones((9, 1), bool),
        np.arange(9)[None] >= 4,
    ):
        mask = resolve_one(9, 9, attn_mask=matrix)
        assert mask.allowed is None
        np.testing.assert_array_equal(mask.matrix(), np.broadcast_to(matrix, (9, 9)))


def test_rules_may_leave_intervals_of_a_mask():
    matrix = np.array([[True, True, False, True, False, True]])
    assert resolve_one(2, 6, attn_mask=matrix).allowed is not None
    mask = resolve_one(2, 6, attn_mask=matrix, key_length=3)
    assert mask.allowed is None
    assert mask.high.tolist() == [2, 2]


def test_a_mask_is_a_copy():
    matrix = np.array([[True, False, True]])
    mask = resolve_one(1, 3, attn_mask=matrix)
    matrix[:] = False
    assert mask.allowed_pairs() == 2


@pytest.mark.parametrize(
    ("ids", "intervals"),
    [
        ([7, 7, -1, -1, -1, 3], True),
        ([0] * 6, True),
        ([5, 4, 3, 2, 1, 0], True),
        ([0, 0, 1, 1, 0, 0], False),
    ],
)
def test_documents(ids, intervals):
    for dtype in (np.int8, np.int64):
        mask = resolve_one(6, 6, document_ids=np.array(ids, dtype))
        assert (mask.allowed is None) == intervals


def test_alibi_on_the_device_where_causal():
    lead, slopes = (2, 3), np.array([0.5, 0.25, -1])
    (first, second, third), index = resolve(lead, 5, 5, is_causal=True, alibi_slopes=slopes)
    assert index.tolist() == [0, 1, 2, 0, 1, 2]
    assert (first.slope, second.slope, third.slope) == (0.5, 0.25, None)
    assert first.bias is None
    assert third.bias is not None


def test_alibi_on_the_device_whatever_made_it_causal():
    for arguments in (
        {"window": 3},
        {"attn_mask": np.tri(4, 6, dtype=bool)},
        {"attn_mask": np.tri(4, 6, dtype=bool) & (np.arange(6) != 1)},
        {"key_length": 1},
        {"key_length": 0},
        {"key_length": 3, "causal_alignment": "bottom_right"},
    ):
        ((mask,), _) = resolve((1,), 4, 6, alibi_slopes=np.array([2.0]), **arguments)
        assert mask.slope == 2
        assert mask.bias is None


def test_alibi_on_the_device_beside_rows_without_keys():
    causal = {"is_causal": True, "causal_alignment": "bottom_right"}
    ((mask,), _) = resolve((1,), 7, 3, alibi_slopes=np.array([2.0]), **causal)
    assert mask.high.tolist() == [0, 0, 0, 0, 1, 2, 3]
    assert mask.slope == 2


def test_alibi_as_bias_where_not_causal():
    slopes = np.array([0.5, 0])
    (first, second), _ = resolve((2,), 3, 5, alibi_slopes=slopes, key_length=np.array([4, 4]))
    assert (first.slope, second.slope) == (None, None)
    assert first.bias is not None
    assert second.bias is None


def test_alibi_beside_a_float_mask():
    mask = np.random.default_rng(4).normal(size=(4, 4))
    (causal,), _ = resolve((1,), 4, 4, attn_mask=mask, alibi_slopes=np.array([0.5]), window=4)
    assert causal.slope == 0.5
    assert causal.bias is not None
    (dense,), _ = resolve((1,), 4, 4, attn_mask=mask, alibi_slopes=np.array([0.5]))
    assert dense.slope is None


@pytest.mark.parametrize(
    ("arguments", "masks", "index"),
    [
        ({}, 1, [0] * 6),
        ({"is_causal": True, "window": 2}, 1, [0] * 6),
        ({"attn_mask": (4, 4)}, 1, [0] * 6),
        ({"attn_mask": (1, 1, 4, 4)}, 1, [0] * 6),
        ({"attn_mask": (2, 1, 4, 4)}, 2, [0, 0, 0, 1, 1, 1]),
        ({"attn_mask": (3, 1, 4)}, 3, [0, 1, 2, 0, 1, 2]),
        ({"attn_mask": (2, 3, 4, 1)}, 6, [0, 1, 2, 3, 4, 5]),
        ({"key_length": 3}, 1, [0] * 6),
        ({"key_length": np.array([3, 3])}, 1, [0] * 6),
        ({"key_length": np.array([3, 2])}, 2, [0, 0, 0, 1, 1, 1]),
        ({"document_ids": np.arange(4)}, 1, [0] * 6),
        ({"document_ids": np.eye(4, dtype=int)[:2]}, 2, [0, 0, 0, 1, 1, 1]),
        ({"alibi_slopes": np.array([1, 2, 1])}, 2, [0, 1, 0, 0, 1, 0]),
        ({"attn_mask": (2, 1, 4, 4), "alibi_slopes": np.ones(1)}, 2, [0, 0, 0, 1, 1, 1]),
        (
            {"key_length": np.array([3, 2]), "alibi_slopes": np.array([1, 2, 1])},
            4,
            [0, 1, 0, 2, 3, 2],
        ),
    ],
)
def test_heads_of_the_same_arguments_share_a_mask(arguments, masks, index):
    if "attn_mask" in arguments:
        matrix = np.random.default_rng(5).random(arguments["attn_mask"]) < 0.5
        arguments = {**arguments, "attn_mask": matrix}
    found, which = resolve((2, 3), 4, 4, **arguments)
    assert len(found) == masks
    assert which.tolist() == index


def test_expanded_masks_share_too():
    expanded = torch.rand(2, 1, 4, 4).lt(0.5).expand(2, 3, 4, 4).numpy()
    masks, index = resolve((2, 3), 4, 4, attn_mask=expanded)
    assert len(masks) == 2
    assert index.tolist() == [0, 0, 0, 1, 1, 1]


def test_rules_take_no_memory_of_all_pairs():
    tokens = 1 << 20  # whose pairs no memory holds
    (mask,), _ = resolve_masks(
        (1,),
        tokens,
        tokens,
        is_causal=True,
        window=100,
        key_length=tokens - 5,
        document_ids=np.arange(tokens) // 1000,
        alibi_slopes=np.array([0.5]),
    )
    assert mask.slope == 0.5
    assert mask.high.max() == tokens - 5


def test_padding_takes_no_memory_of_all_pairs():
    tokens = 1 << 20
    padding = torch.arange(tokens).lt(10)[None, None].expand(2, tokens, tokens).numpy()
    (mask,), _ = resolve_masks((2,), tokens, tokens, attn_mask=padding, window=4)
    assert mask.high.max() == 10


def with_entry(value, dtype: Any = np.float32):
    mask = np.zeros((2, 3, 4, 4), dtype)
    mask[1, 2, 0, 3] = value
    return mask


WRONG = {
    "integer mask": (
        {"attn_mask": np.ones((4, 4), int)},
        TypeError,
        "attn_mask is int64: it must be bool, float16, bfloat16, float32 or float64",
    ),
    "mask of another shape": (
        {"attn_mask": np.ones((2, 4, 4), bool)},
        ValueError,
        r"attn_mask of shape \(2, 4, 4\) does not broadcast to \(2, 3, 4, 4\)",
    ),
    "mask of too many dimensions": (
        {"attn_mask": np.ones((1, 2, 3, 4, 4), bool)},
        ValueError,
        r"attn_mask of shape \(1, 2, 3, 4, 4\) does not broadcast to \(2, 3, 4, 4\)",
    ),
    "empty mask": (
        {"attn_mask": np.ones((0, 3, 4, 4), bool)},
        ValueError,
        r"attn_mask of shape \(0, 3, 4, 4\) does not broadcast",
    ),
    "NaN": (
        {"attn_mask": with_entry(np.nan)},
        ValueError,
        r"attn_mask contains NaN, first at index \(1, 2, 0, 3\)",
    ),
    "infinity": (
        {"attn_mask": with_entry(np.inf, np.float16)},
        ValueError,
        r"attn_mask contains \+infinity, first at index \(1, 2, 0, 3\)",
    ),
    "mask and causal": (
        {"attn_mask": np.ones((4, 4), bool), "is_causal": True},
        ValueError,
        "attn_mask and is_causal=True exclude each other",
    ),
    "alignment": (
        {"causal_alignment": "lower_right"},
        ValueError,
        "causal_alignment must be 'top_left' or 'bottom_right', not 'lower_right'",
    ),
    "window True": ({"window": True}, TypeError, "window must be an integer, not True"),
    "window NumPy bool": ({"window": np.True_}, TypeError, "window must be an integer, not True"),
    "window float": ({"window": 2.0}, TypeError, r"window must be an integer, not 2\.0"),
    "window 0": ({"window": 0}, ValueError, "window must be at least 1, not 0"),
    "window negative": ({"window": -3}, ValueError, "window must be at least 1, not -3"),
    "float length": ({"key_length": 2.0}, TypeError, "key_length must be of integers, not float64"),
    "bool length": ({"key_length": True}, TypeError, "key_length must be of integers, not bool"),
    "lengths": (
        {"key_length": np.array([1, 2, 3])},
        ValueError,
        r"key_length has shape \(3,\), but the batch has shape \(2,\)",
    ),
    "length": ({"key_length": 5}, ValueError, "key_length must be between 0 and 4, not 5"),
    "negative length": (
        {"key_length": np.array([2, -1])},
        ValueError,
        "key_length must be between 0 and 4, not -1",
    ),
    "float documents": (
        {"document_ids": np.zeros(4)},
        TypeError,
        "document_ids must be of integers, not float64",
    ),
    "documents of another length": (
        {"document_ids": np.zeros(1, int)},
        ValueError,
        r"document_ids has shape \(1,\): it must be \(4,\), or broadcast to \(2, 4\)",
    ),
    "documents of each head": (
        {"document_ids": np.zeros((2, 3, 4), int)},
        ValueError,
        r"document_ids has shape \(2, 3, 4\): it must be \(4,\), or broadcast to \(2, 4\)",
    ),
    "slopes of another shape": (
        {"alibi_slopes": np.ones(2)},
        ValueError,
        r"alibi_slopes of shape \(2,\) does not broadcast to \(2, 3\), batch and heads",
    ),
    "complex slopes": (
        {"alibi_slopes": np.ones(3, complex)},
        TypeError,
        "alibi_slopes must be of real numbers, not complex128",
    ),
    "NaN slope": (
        {"alibi_slopes": np.array([1, np.nan, 2])},
        ValueError,
        "alibi_slopes must be finite and within float32, not nan",
    ),
    "infinite slope": (
        {"alibi_slopes": np.array([1, -np.inf, 2])},
        ValueError,
        "alibi_slopes must be finite and within float32, not -inf",
    ),
    "huge slope": (
        {"alibi_slopes": np.array([1, 1e300, 2])},
        ValueError,
        r"alibi_slopes must be finite and within float32, not 1e\+300",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_rejected(case):
    arguments, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        resolve_masks((2, 3), 4, 4, **arguments)


def test_rejected_for_the_shape():
    with pytest.raises(ValueError, match="document_ids needs as many queries as keys, not 3 and 4"):
        resolve_masks((2, 3), 3, 4, document_ids=np.zeros(4, int))
    with pytest.raises(ValueError, match="alibi_slopes needs a dimension of heads"):
        resolve_masks((), 4, 4, alibi_slopes=np.ones(1))


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3), (2, 1, 3)])
def test_one_key_length_for_all(shape, lead):
    masks, index = resolve(lead, 2, 4, key_length=np.full(shape, 3, np.uint8))
    assert len(masks) == 1
    assert masks[0].high.tolist() == [3, 3]
    assert not index.any()


def test_key_length_of_a_batch_of_two_dimensions():
    lengths = np.array([[1, 2], [3, 4]])
    masks, index = resolve((2, 2, 3), 2, 4, key_length=lengths)
    assert [masks[i].high[0] for i in index] == list(
        itertools.chain.from_iterable([length] * 3 for length in lengths.ravel())
    )
