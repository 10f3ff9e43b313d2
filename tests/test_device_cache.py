"""`DeviceCache`: generation with keys and values that stay on the device."""

from typing import Any, cast

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache

import celosia
from celosia.transformers import NAME, DeviceCache
from celosia_hw.config import preset
from test_transformers import close, padded
from tiny_models import tiny_gpt2, tiny_llama, tiny_t5, tokens


def steps(model, ids, cache, prefill, mask=None):
    """Logits of all tokens: the first at once, the others one at a time."""
    logits = []
    for start, stop in [(0, prefill), *((n, n + 1) for n in range(prefill, ids.shape[1]))]:
        part = None if mask is None else mask[:, :stop]
        out = model(ids[:, start:stop], attention_mask=part, cache=cache, use_cache=True)
        logits.append(out.logits)
    return torch.cat(logits, dim=1)


def on_device(model, device, ids, prefill, mask=None, capacity=12):
    model.set_attn_implementation(NAME)
    with torch.no_grad(), celosia.open_device(device) as opened:
        cache = DeviceCache(capacity, opened)
        logits = steps(model, ids, cache, prefill, mask)
        return logits, cache.traffic


def in_float(model, ids, prefill, mask=None):
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        return steps(model, ids, DynamicCache(), prefill, mask)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_decoding(make):
    model, ids = make(), tokens(1, 10)
    reference = in_float(model, ids, 6)
    logits, _ = on_device(model, "model:tiny", ids, 6)
    assert close(reference, logits)


def test_the_hardware_is_the_model_for_a_left_padded_batch():
    # 2 layers of 2 sequences and 2 heads of 3 key tiles: 24 of the 12 that tiny has.
    model, ids, mask = tiny_llama(), tokens(2, 10), padded(10, 7)
    expected, _ = on_device(model, "model:tiny", ids, 6, mask)
    logits, traffic = on_device(model, "sim:tiny", ids, 6, mask)
    assert torch.equal(logits, expected)
    assert traffic["loads"] > 0
    assert traffic["clocks"] > 0
    where = mask.bool()
    assert close(in_float(model, ids, 6, mask)[where], logits[where])


def test_a_step_sends_new_rows_only_while_all_layers_fit():
    model, ids = tiny_llama(), tokens(1, 12)
    model.set_attn_implementation(NAME)
    with torch.no_grad(), celosia.open_device("model:tiny") as device:
        cache = DeviceCache(12, device)
        steps(model, ids[:, :6], cache, 6)
        sent = []
        for token in range(6, 12):
            before = cache.traffic["bytes_sent"]
            model(ids[:, token : token + 1], cache=cache)
            sent.append(cache.traffic["bytes_sent"] - before)
        assert cache.traffic["loads"] == 0
        assert len(set(sent)) == 1
        assert cache.get_seq_length() == 12
        assert cache.get_max_length() == 12
        with pytest.raises(ValueError, match="13 tokens: the cache was made for at most 12"):
            model(ids[:, :1], cache=cache)


def test_results_do_not_depend_on_the_room():
    model, ids = tiny_llama(layers=3), tokens(1, 12)
    model.set_attn_implementation(NAME)
    results, loads = [], []
    for banks in (1, 2, 4):
        config = celosia.AcceleratorConfig(**{**preset("tiny").to_dict(), "key_banks": banks})
        with torch.no_grad(), celosia.open_device("model", config=config) as device:
            cache = DeviceCache(12, device)
            results.append(steps(model, ids, cache, 6))
            loads.append(cache.traffic["loads"])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    # A layer takes 6 of the 6, 12 and 24 key tiles. With room for two of three layers, the first
    # stays and the others take turns.
    assert loads == [18, 9, 0]


def test_generate():
    model, ids, mask = tiny_llama(), tokens(2, 5), padded(5, 3)
    options = {
        "attention_mask": mask,
        "max_new_tokens": 6,
        "do_sample": False,
        "eos_token_id": None,
    }
    reference = model.generate(ids, **options)
    model.set_attn_implementation(NAME)
    with celosia.open_device("model:small") as device:
        cache = DeviceCache(11, device)
        assert torch.equal(model.generate(ids, cache=cache, **options), reference)
        assert cache.get_seq_length() == 10
        cache.reset()
        assert cache.get_seq_length() == 0
        assert device.free_banks == 2
        with pytest.warns(FutureWarning, match="past_key_values"):
            again = model.generate(ids, past_key_values=cache, **options)
        assert torch.equal(again, reference)


@pytest.mark.parametrize("seed", range(3))
def test_beam_search(seed):
    """The scores that beams got on the device are those of their tokens in floating point."""
    model, ids, mask = tiny_llama(), tokens(2, 5, seed=seed), padded(5, 3)
    model.set_attn_implementation(NAME)
    with celosia.open_device("model:small") as device:
        found = model.generate(
            *(ids,),
            attention_mask=mask,
            max_new_tokens=6,
            do_sample=False,
            num_beams=3,
            eos_token_id=None,
            cache=DeviceCache(11, device),
            return_dict_in_generate=True,
            output_scores=True,
        )
    model.set_attn_implementation("sdpa")
    mask = torch.cat([mask, torch.ones(2, 6, dtype=torch.long)], dim=1)
    with torch.no_grad():
        logits = model(found.sequences, attention_mask=mask).logits[:, 4:-1].log_softmax(-1)
    new = found.sequences[:, 5:, None]
    exact = logits.gather(-1, new).mean(dim=(1, 2))
    # Attention 30 dB or more: 3 % of logits of about 2, averaged over 6 tokens, less the error that
    # all logits of a token share. Keys of another beam change the score by 0.1 and more.
    assert (found.sequences_scores - exact).abs().max() < 0.03


def test_the_decoder_of_t5():
    model, ids, mask = tiny_t5(), tokens(2, 9), padded(9, 4, side="right")
    decoder = tokens(2, 7, seed=2)

    def run(make):
        cache, logits = EncoderDecoderCache(make(), make()), []
        for token in range(7):
            out = model(
                input_ids=ids,
                attention_mask=mask,
                decoder_input_ids=decoder[:, token : token + 1],
                cache=cache,
            )
            logits.append(out.logits)
        return torch.cat(logits, dim=1)

    with torch.no_grad():
        reference = run(DynamicCache)
        model.set_attn_implementation(NAME)
        # The encoder runs in each step, beside the caches of the decoder.
        found = []
        for device in ("model:tiny", "sim:tiny"):
            with celosia.open_device(device):
                found.append(run(lambda: DeviceCache(9)))
    assert torch.equal(*found)
    assert close(reference, found[0])


def test_crop_goes_back():
    model, ids, others = tiny_llama(), tokens(1, 10), tokens(1, 10, seed=5)
    model.set_attn_implementation(NAME)
    with torch.no_grad(), celosia.open_device("model:tiny") as device:
        cache = DeviceCache(12, device)
        expected = steps(model, ids, cache, 6)
        cache.crop(-3)
        assert cache.get_seq_length() == 7
        steps(model, others[:, 7:], cache, 1)
        cache.crop(-3)
        again = steps(model, ids[:, 7:], cache, 1)
        # Only how much room the other tokens' scales took may differ.
        assert close(expected[:, 7:], again)
        with pytest.raises(ValueError, match="crop takes minus the tokens"):
            cache.crop(3)
        cache.crop(-10)
        assert cache.get_seq_length() == 0
        assert torch.equal(steps(model, ids, cache, 6), expected)


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 2, 0], [1, 1, 1]])
def test_reorder(order):
    model, ids = tiny_llama(layers=1), tokens(3, 8)
    model.set_attn_implementation(NAME)
    index: Any = torch.tensor(order)
    with torch.no_grad(), celosia.open_device("model:small") as device:
        caches = [DeviceCache(9, device) for _ in range(2)]
        for cache in caches:
            steps(model, ids[:, :7], cache, 5)
        expected = steps(model, ids[:, 7:], caches[0], 1)[index]
        caches[1].reorder_cache(index)
        assert torch.equal(steps(model, ids[index, 7:], caches[1], 1), expected)
        # The same once all is loaded again.
        for cache in caches:
            cache.crop(-1)
            cache.layers[0].offload()
        assert torch.equal(steps(model, ids[index, 7:], caches[1], 1), expected)


def test_what_cannot_be_done():
    model, ids = tiny_llama(), tokens(1, 6)
    with torch.no_grad(), celosia.open_device("model:tiny") as device:
        cache = DeviceCache(12, device)
        with pytest.raises(TypeError, match='needs attn_implementation="celosia"'):
            model(ids, cache=cache)  # PyTorch's attention
        cache.reset()
        model.set_attn_implementation(NAME)
        model(ids, cache=cache)
        layer: Any = cache.layers[0]
        with pytest.raises(TypeError, match="keys or values that are on the accelerator"):
            layer.keys.sum()
        with pytest.raises(NotImplementedError, match="cannot grow"):
            cache.batch_repeat_interleave(2)
        with pytest.raises(NotImplementedError, match="cannot shrink"):
            cache.batch_select_indices(torch.tensor([0]))
        # One layer has to fit alone: 2 heads of 7 key tiles in 12.
        large = DeviceCache(28, device)
        with pytest.raises(ValueError, match="no room for a layer of DeviceCache"):
            model(ids, cache=large)
        # The device and the first cache go on.
        model(ids[:, :1], cache=cache)
        cases: Any = (
            (0, ValueError, "at least 1, not 0"),
            (1.5, TypeError, "must be an int, not 1.5"),
        )
        for wrong, error, message in cases:
            with pytest.raises(error, match=message):
                DeviceCache(wrong, device)
        with pytest.raises(TypeError, match="must be an open Device"):
            DeviceCache(4, cast(Any, "sim"))
    with pytest.raises(celosia.DeviceError, match="no device"):
        DeviceCache(4)
