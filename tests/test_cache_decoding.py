"""KeyValueCache: decoding with keys and values that stay on the device."""

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
        k[:, :, :prefill], v[:, :, :prefill], capacity=capacity, device=device, **options
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
    assert sqnr_db(causal(q, k, v), result) > 36
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
            ((1e3 * one[0], one[1]), ValueError, "key of .* exceeds the cache's headroom"),
            ((one[0], 1e3 * one[1]), ValueError, "value of .* exceeds the cache's headroom"),
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
