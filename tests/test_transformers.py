"""Models of Hugging Face transformers, with attention on the device against PyTorch's."""

import inspect
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

import celosia
from celosia.transformers import NAME, attention_forward
from celosia_sim.reference import sqnr_db
from tiny_models import tiny_bert, tiny_gpt2, tiny_llama, tiny_t5, tokens

# Heads of 8 to 12 and random weights: attention alone is 35 dB or more (tests/test_attention.py);
# a second layer attends to the error of the first, and doubles it.
BOUND_DB = 30.0


def both(model, run, device="model:tiny"):
    """What a function of the model returns with PyTorch's attention and with the device's."""
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        reference = run(model)
        model.set_attn_implementation(NAME)
        with celosia.open_device(device):
            return reference, run(model)


def close(reference, result):
    return sqnr_db(reference.numpy(), result.numpy()) > BOUND_DB


def padded(*lengths, side="left"):
    """A mask of so many tokens a sequence."""
    longest = max(lengths)
    positions = torch.arange(longest)
    kept = torch.tensor(lengths)[:, None]
    return (positions >= longest - kept if side == "left" else positions < kept).long()


def bert(model):
    mask = padded(9, 5, side="right")
    return model(tokens(2, 9), attention_mask=mask).last_hidden_state[mask.bool()]


def gpt2(model):
    return model(tokens(2, 11)).logits


def llama(model):
    mask = padded(11, 6)
    return model(tokens(2, 11), attention_mask=mask).logits[mask.bool()]


def t5(model):
    mask = padded(9, 4, side="right")
    return model(tokens(2, 9), attention_mask=mask, decoder_input_ids=tokens(2, 7, seed=2)).logits


MODELS = {
    "bert": (tiny_bert, bert),
    "gpt2": (tiny_gpt2, gpt2),
    "llama": (tiny_llama, llama),
    "t5": (tiny_t5, t5),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_on_the_integer_model(name):
    make, run = MODELS[name]
    assert close(*both(make(), run))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_on_the_hardware(name):
    make, run = MODELS[name]
    model = make()
    _, expected = both(model, run)
    _, found = both(model, run, "sim:tiny")
    assert torch.equal(found, expected)


def test_registered():
    assert AttentionInterface()[NAME] is attention_forward
    assert AttentionMaskInterface()[NAME] is sdpa_mask


def test_padding_is_not_attended_to():
    # What padding holds does not change the others.
    model, mask = tiny_llama(), padded(11, 6)
    first = tokens(2, 11)
    second = torch.where(mask.bool(), first, tokens(2, 11, seed=3))
    model.set_attn_implementation(NAME)
    results = []
    with torch.no_grad(), celosia.open_device("model:tiny"):
        for ids in (first, second):
            results.append(model(ids, attention_mask=mask).logits[mask.bool()])
    # Padding moves the mean and the balance of the keys, no more.
    assert close(*results)


def test_bfloat16_and_a_sliding_window():
    model = tiny_bert().to(torch.bfloat16)
    _, found = both(model, bert)
    assert found.dtype == torch.bfloat16
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        **{**tiny_llama().config.to_dict(), "sliding_window": 4, "model_type": "mistral"}
    )
    mistral = MistralForCausalLM(config).eval()
    assert close(*both(mistral, gpt2))


def test_generation_of_a_left_padded_batch():
    ids, mask = tokens(2, 6), padded(6, 4)

    def run(model):
        return model.generate(
            ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=None
        )

    reference, found = both(tiny_llama(), run)
    assert torch.equal(reference, found)


class Layer(torch.nn.Module):
    """What attention_forward knows of a layer."""

    is_causal = True


def qkv(queries=5, keys=5, heads=4, key_heads=2, dim=8) -> Any:
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, queries), (key_heads, keys), (key_heads, keys))
    return tuple(torch.randn(1, *shape, dim, generator=generator) for shape in shapes)


def attend(*tensors: Any, mask: Any = None, module: Any = None, **options: Any) -> Any:
    q, k, v = tensors
    with celosia.open_device("model:tiny"):
        return attention_forward(module or Layer().eval(), q, k, v, mask, **options)[0]


def sdpa(q, k, v, **options) -> Any:
    from torch.nn.functional import scaled_dot_product_attention

    return scaled_dot_product_attention(q, k, v, enable_gqa=True, **options).transpose(1, 2)


@pytest.mark.parametrize(
    ("queries", "module", "call", "expected"),
    [
        (5, True, None, True),
        (5, True, False, False),
        (5, False, True, True),
        (1, True, None, False),
    ],
)
def test_without_a_mask_it_is_causal_if_asked_for(queries, module, call, expected):
    q, k, v = qkv(queries)
    layer = Layer().eval()
    layer.is_causal = module
    found = attend(q, k, v, module=layer, is_causal=call)
    assert close(sdpa(q, k, v, is_causal=expected), found)
    wrong = sdpa(q, k, v, is_causal=not expected)
    assert not close(wrong, found)


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_position_bias(kind):
    q, k, v = qkv()
    bias = torch.randn(1, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    additive = bias.masked_fill(~causal, -torch.inf)
    mask = {
        "none": None,
        "bool": causal[None, None],
        "float": torch.zeros(1, 1, 5, 5).masked_fill(~causal, torch.finfo(torch.float32).min),
    }[kind]
    found = attend(q, k, v, mask=mask, position_bias=bias)
    assert close(sdpa(q, k, v, attn_mask=additive), found)


def training():
    return Layer().train()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dropout": 0.1}, ValueError, "dropout of attention weights must be 0 .* not 0.1"),
        ({"softcap": 30.0}, ValueError, "cannot honour softcap"),
        ({"s_aux": torch.zeros(4)}, ValueError, "cannot honour s_aux"),
        ({"cu_seq_lens_q": torch.zeros(2)}, ValueError, "cannot honour cu_seq_lens_q"),
        ({"output_attentions": True}, ValueError, "no attention weights"),
        ({"mask": torch.full((1, 1, 5, 5), torch.nan)}, ValueError, "attn_mask contains NaN"),
        ({"mask": torch.ones(1, 1, 5, 5, dtype=torch.long)}, TypeError, "mask is torch.int64"),
        ({"mask": torch.ones(1, 1, 4, 5, dtype=torch.bool)}, ValueError, "does not broadcast"),
        ({"mask": "causal"}, TypeError, "attention_mask must be a tensor, not str"),
        ({"mask": torch.ones(5, 5, device="meta")}, ValueError, "is on meta, query on cpu"),
    ],
)
def test_wrong_calls(change, error, message):
    with pytest.raises(error, match=message):
        attend(*qkv(), **change)


def test_wrong_tensors():
    q, k, v = qkv()
    with pytest.raises(TypeError, match=r"query is torch\.int64: it must be float16"):
        attend(q.long(), k, v)
    with pytest.raises(TypeError, match=r"value is torch\.complex64"):
        attend(q, k, v.to(torch.complex64))
    with pytest.raises(ValueError, match="key is on meta, query on cpu"):
        attend(q, k.to("meta"), v)
    with pytest.raises(ValueError, match="head dimension 11 of query exceeds"):
        attend(*qkv(dim=11))
    with pytest.raises(celosia.DeviceError, match="no device"):
        attention_forward(Layer().eval(), q, k, v, None)


def test_what_does_not_matter_is_ignored():
    q, k, v = qkv()
    expected = attend(q, k, v)
    ignored = {"position_ids": torch.arange(5), "use_cache": True, "softcap": None}
    assert torch.equal(attend(q, k, v, **ignored), expected)
    with torch.no_grad():
        assert torch.equal(attend(q.requires_grad_(), k, v, module=training()), expected)


def test_gradients_of_a_model_in_training():
    """Straight through, those of PyTorch's attention at activations that int8 moved a little."""
    ids = tokens(2, 9)
    gradients = {}
    for name in ("sdpa", NAME):
        model = tiny_llama().train()
        model.set_attn_implementation(name)
        with celosia.open_device("model:tiny"):
            logits = model(ids, attention_mask=padded(9, 6), use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
            loss.backward()
        gradients[name] = {key: x.grad for key, x in model.named_parameters()}
    assert len(gradients[NAME]) > 10
    for key, reference in gradients["sdpa"].items():
        assert close(reference, gradients[NAME][key]), key


def test_the_signature_is_that_of_the_library():
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    library = inspect.signature(sdpa_attention_forward).parameters
    ours = inspect.signature(attention_forward).parameters
    assert list(ours) == list(library)
