"""KeyValueCache: decoding with keys and values that stay on the device."""

import warnings
from importlib.resources import files

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import celosia
from celosia import KeyValueCache, run_attention
from celosia_sim.reference import sqnr_db


def tensors(heads, kv_heads, tokens, dim=16, value_dim=12, seed=0):
    rng = np.random.default_rng(seed)
    q = rng.normal(size=(1, heads, tokens, dim)).astype(np.float32)
    k = (rng.normal(size=(1, kv_heads, tokens, dim)) + 3).astype(np.float32)
    v = rng.normal(size=(1, kv_heads, tokens, value_dim)).astype(np.float32)
    return q, k, v


def causal(q, k, v):
    q, k, v = map(torch.from_numpy, (q, k, v))
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).numpy()


def decode(device, q, k, v, prefill, **options):
    """Causal attention, the first tokens at once and the others one at a time."""
    capacity = options.pop("capacity", q.shape[2])
    sent = []
    with KeyValueCache(
        *(k[:, :, :prefill], v[:, :, :prefill]),
        capacity=capacity,
        device=device,
        query=q[:, :, :prefill],
        **options,
    ) as cache:
        results = [cache.attend(q[:, :, :prefill])]
        for token in range(prefill, q.shape[2]):
            step = slice(token, token + 1)
            cache.append(k[:, :, step], v[:, :, step])
            appended = device.report.bytes_sent
            results.append(cache.attend(q[:, :, step]))
            sent.append(appended + device.report.bytes_sent + device.report.bytes_received)
    return np.concatenate(results, axis=2), sent


def test_decoding_is_causal_attention():
    q, k, v = tensors(6, 2, 320, 64, 64)
    with celosia.open_device("model:small") as device:
        result, sent = decode(device, q, k, v, 256)
    assert sqnr_db(causal(q, k, v), result) > 38
    assert len(set(sent)) == 1, "a step's bytes do not grow with the cache"


@pytest.mark.parametrize("prefill", [1, 3, 8])
def test_the_hardware_is_the_model(prefill, hardware):
    q, k, v = tensors(4, 2, 14, 8, 9)
    results = []
    for name in ("model:tiny", hardware):
        with celosia.open_device(name) as device:
            results.append(decode(device, q, k, v, prefill, capacity=24)[0])
    np.testing.assert_array_equal(*results)


def test_a_token_ten_times_the_range_of_all_before():
    q, k, v = tensors(2, 2, 40, 32, 32)
    k[:, :, 30], v[:, :, 30] = 10 * k[:, :, 30], 10 * v[:, :, 30]
    with celosia.open_device("model:small") as device:
        result, _ = decode(device, q, k, v, 20)
    assert sqnr_db(causal(q, k, v), result) > 33


def test_several_tokens_and_a_window():
    q, k, v = tensors(2, 1, 30)
    with (
        celosia.open_device("model:small") as device,
        KeyValueCache(k[:, :, :10], v[:, :, :10], capacity=30, device=device) as cache,
    ):
        cache.append(k[:, :, 10:], v[:, :, 10:])
        assert cache.length == 30
        result = cache.attend(q[:, :, 22:], window=5)
        i, j = np.indices((30, 30))
        mask = torch.from_numpy((j <= i) & (j > i - 5))
        q, k, v = map(torch.from_numpy, (q, k, v))
        reference = scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        assert sqnr_db(reference[:, :, 22:].numpy(), result) > 33


def test_caches_side_by_side_and_attention_beside_them(device_spec):
    q, k, v = tensors(1, 1, 40)
    with celosia.open_device(device_spec) as device:  # 2 banks of 24 keys
        small = [x[:, :, :8, :10] for x in (q, k, v)]
        first = KeyValueCache(*small[1:], capacity=8, device=device)
        expected = first.attend(small[0])
        with KeyValueCache(*small[1:], capacity=4 + 4, device=device) as second:
            np.testing.assert_array_equal(second.attend(small[0]), expected)
            run_attention(*small, device=device)
            np.testing.assert_array_equal(first.attend(small[0]), expected)
            with pytest.raises(ValueError, match="no room for a cache of 1 heads of 48 tokens"):
                KeyValueCache(*small[1:], capacity=48, device=device)
            # In the one bank that is left, chunk by chunk.
            run_attention(q[..., :10], k[..., :10], v[..., :10], device=device)
            np.testing.assert_array_equal(first.attend(small[0]), expected)
            third = KeyValueCache(*small[1:], capacity=28, device=device)
            with pytest.raises(ValueError, match="caches are open in all 2 key banks"):
                run_attention(*small, device=device)
            third.close()
        first.close()
        run_attention(q[..., :10], k[..., :10], v[..., :10], device=device)
        with pytest.raises(ValueError, match="closed"):
            first.attend(small[0])


def test_a_token_beyond_the_headroom():
    # The others are rounded again, to a coarser scale; the hardware loads them once more.
    q, k, v = tensors(2, 2, 14, 10, 10)
    k[:, 0, 9], v[:, 1, 11] = 1e3 * k[:, 0, 9], 1e3 * v[:, 1, 11]
    results = []
    for name in ("model:tiny", "sim:tiny"):
        with celosia.open_device(name) as device:
            results.append(decode(device, q, k, v, 8)[0])
    np.testing.assert_array_equal(*results)
    assert sqnr_db(causal(q, k, v), results[0]) > 33


def test_a_layer_of_a_trained_model():
    q, k, v = (load_sample()[name][None] for name in ("query", "key", "value"))
    reference = causal(q, k, v)
    found = {}
    with celosia.open_device("model") as device:
        found["all at once"] = run_attention(q, k, v, is_causal=True, enable_gqa=True)
        for prefill in (64, 128):
            for query in (None, q[:, :, :prefill]):
                with KeyValueCache(
                    *(k[:, :, :prefill], v[:, :, :prefill]),
                    capacity=128,
                    device=device,
                    query=query,
                ) as cache:
                    parts = [cache.attend(q[:, :, :prefill])]
                    if prefill < 128:
                        cache.append(k[:, :, prefill:], v[:, :, prefill:])
                        parts.append(cache.attend(q[:, :, prefill:]))
                    found[prefill, query is not None] = np.concatenate(parts, axis=2)
    quality = {name: sqnr_db(reference, result) for name, result in found.items()}
    # 51 dB all at once; balance and error feedback of the first tokens are worth 6 dB or more.
    assert quality[64, True] > quality[64, False] + 5
    assert quality[128, True] > quality[128, False] + 6
    assert quality[128, True] > quality["all at once"] - 4


def sent(device):
    return device.report.bytes_sent


def load_sample():
    with (files(celosia) / "data" / "smollm2_layer17.npz").open("rb") as file:
        return {name: array.astype(np.float32) for name, array in np.load(file).items()}


def test_eviction_changes_nothing():
    q, k, v = tensors(4, 2, 12, 10, 10)
    with celosia.open_device("model:tiny") as device:
        cache = KeyValueCache(k[:, :, :8], v[:, :, :8], capacity=12, device=device)
        assert (cache.slots, cache.is_resident, device.free_banks) == (6, True, 1)
        expected = cache.attend(q[:, :, 7:8])
        plain = sent(device)
        cache.evict()
        assert (cache.is_resident, device.free_banks) == (False, 2)
        np.testing.assert_array_equal(cache.attend(q[:, :, 7:8]), expected)
        assert cache.is_resident
        assert sent(device) > plain
        for where in ("device", "host"):
            cache.append(k[:, :, 8:], v[:, :, 8:])
            result = cache.attend(q[:, :, 8:])
            cache.crop(8)
            if where == "device":
                cache.evict()
                expected = result
        np.testing.assert_array_equal(result, expected)
        with pytest.raises(ValueError, match="between 1 and the 8 tokens, not 9"):
            cache.crop(9)
        cache.close()
        with pytest.raises(ValueError, match="closed"):
            cache.attend(q[:, :, 7:8])


def test_masks_with_biases():
    q, k, v = tensors(4, 2, 12, 10, 10)
    rng = np.random.default_rng(1)
    mask = rng.normal(size=(1, 4, 4, 12)).astype(np.float32)
    mask[..., rng.random((1, 4, 4, 12)) < 0.3] = -np.inf
    mask[:, 1, 2] = -np.inf
    reference = scaled_dot_product_attention(
        *map(torch.from_numpy, (q[:, :, 8:], k, v)),
        attn_mask=torch.from_numpy(mask),
        enable_gqa=True,
    ).numpy()
    results = []
    for name in ("model:tiny", "sim:tiny"):
        with (
            celosia.open_device(name) as device,
            KeyValueCache(k, v, capacity=12, device=device, query=q) as cache,
        ):
            results.append(cache.attend(q[:, :, 8:], mask))
            with pytest.raises(ValueError, match="attn_mask and is_causal"):
                cache.attend(q[:, :, 8:], mask, is_causal=True)
            hidden = cache.attend(q[:, :, 8:], np.zeros((12,), bool))
            assert not hidden.any()
    np.testing.assert_array_equal(*results)
    assert not results[0][:, 1, 2].any()
    assert sqnr_db(np.nan_to_num(reference), results[0]) > 33


def test_reordering_a_batch():
    both = zip(tensors(2, 2, 9, 8, 8, 0), tensors(2, 2, 9, 8, 8, 1), strict=True)
    q, k, v = (np.concatenate(pair) for pair in both)
    with celosia.open_device("model:tiny") as device:
        cache = KeyValueCache(k, v, capacity=9, device=device, query=q)
        first = cache.attend(q[:1, :, 8:].repeat(2, axis=0))
        cache.reorder([1, 0])
        swapped = cache.attend(q[:1, :, 8:].repeat(2, axis=0))
        np.testing.assert_array_equal(swapped, first[::-1])
        cache.reorder([0, 0])
        np.testing.assert_array_equal(cache.attend(q[:1, :, 8:].repeat(2, axis=0)), first[[1, 1]])
        for wrong, message in (([0], r"shape \(1,\)"), ([0, 2], "between 0 and 1")):
            with pytest.raises(ValueError, match=message):
                cache.reorder(wrong)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_any_range(size):
    """Nothing, and numbers at the ends of float32, then ordinary ones."""
    q, k, v = tensors(2, 1, 6, 8, 8)
    k[:, :, :3], v[:, :, :3] = size * k[:, :, :3], size * v[:, :, :3]
    with warnings.catch_warnings(), celosia.open_device("model:tiny") as device:
        warnings.simplefilter("error")
        result, _ = decode(device, q, k, v, 3)
    # Logits of 1e30 are limited as those of `run_attention` are.
    expected = causal(q, k, v)
    rows = slice(None) if size < 1 else slice(0, 1)
    assert sqnr_db(expected[:, :, rows], result[:, :, rows]) > 33 or not expected[:, :, rows].any()


def test_errors_leave_the_cache_as_it_was(monkeypatch, device_spec):
    q, k, v = tensors(4, 2, 12, 10, 10)
    with celosia.open_device(device_spec) as device:
        cache = KeyValueCache(k[:, :, :9], v[:, :, :9], capacity=11, device=device)
        expected = cache.attend(q[:, :, 8:9])
        one = k[:, :, 9:10], v[:, :, 9:10]
        wrong = [
            (
                (k[:, :, 9:], v[:, :, 9:]),
                ValueError,
                "3 more tokens: the cache holds 9 of at most 11",
            ),
            ((one[0][..., :5], one[1]), ValueError, r"key has shape \(1, 2, 1, 5\)"),
            ((one[0] * np.nan, one[1]), ValueError, "NaN"),
            ((one[0].astype(int), one[1]), TypeError, "int64"),
        ]
        with monkeypatch.context() as patch:
            patch.setattr(device, "_exchange", lambda *_: pytest.fail("sent a packet"))
            for arguments, error, message in wrong:
                with pytest.raises(error, match=message):
                    cache.append(*arguments)
            with pytest.raises(ValueError, match="query has shape"):
                cache.attend(q[:, :3])
            for values, message in (({"capacity": 8}, "at least the 9"), ({"headroom": 0}, "0")):
                options = {"capacity": 11, "headroom": 2.0, **values}
                with pytest.raises(ValueError, match=message):
                    KeyValueCache(k[:, :, :9], v[:, :, :9], device=device, **options)
        assert cache.length == 9
        np.testing.assert_array_equal(cache.attend(q[:, :, 8:9]), expected)
