"""PyTorch models on a device: routing, module, gradients, calibration."""

import json
import threading
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import celosia
from celosia import MultiHeadAttention, attention_on, calibrate
from celosia.checked import CheckedDevice
from celosia.examples.module import _main
from celosia.nn import attention, linear
from celosia.program import Program
from celosia_sim.reference import sqnr_db

early: Any = F.scaled_dot_product_attention
# As in test_attention.py: rounding Q, K and V to int8 keeps more than that.
BOUND_DB = 35.0


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def x(*shape):
    return torch.randn(*(shape or (2, 9, 16)))


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


class Custom(nn.Module):
    def forward(self, q):
        return early(q, q, q, is_causal=True)


MODELS = {
    "early reference": (Custom, [""], (2, 9, 8)),
    "transformer": (encoder, ["layers.0.self_attn", "layers.1.self_attn"], (2, 9, 16)),
    "decoder": (
        lambda: nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True),
        [
            "encoder.layers.0.self_attn",
            "decoder.layers.0.self_attn",
            "decoder.layers.0.multihead_attn",
        ],
        (2, 9, 16),
    ),
}


@pytest.mark.parametrize("device", ["model:tiny", "sim:tiny"])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_models(name, device, training):
    make, layers, shape = MODELS[name]
    model, inputs = make().train(training), [x(*shape)]
    if name == "decoder":
        inputs.append(x(2, 7, 16))
    with torch.set_grad_enabled(training):
        reference = model(*inputs)
        with attention_on(device, compare=True) as log:
            result = model(*inputs)
    assert [call.layer for call in log] == layers
    assert not torch.equal(result, reference)
    assert sqnr_db(reference.detach().numpy(), result.detach().numpy()) > BOUND_DB
    for call in log:
        assert call.sqnr_db is not None
        assert call.sqnr_db > BOUND_DB
        assert call.report is not None
        assert (call.report.clocks > 0) == device.startswith("sim")
    assert len(str(log).splitlines()) == 1 + len(layers)


def test_padding_and_fast_path_restored():
    model, inputs = encoder().eval(), x()
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[0, 5:] = True
    enabled = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        reference = model(inputs, src_key_padding_mask=padding)
        with attention_on("model:tiny"):
            assert not torch.backends.mha.get_fastpath_enabled()
            result = model(inputs, src_key_padding_mask=padding)
    assert torch.backends.mha.get_fastpath_enabled() == enabled
    kept = ~padding
    assert sqnr_db(reference[kept].numpy(), result[kept].numpy()) > BOUND_DB
    with pytest.raises(RuntimeError, match="mine"), attention_on("model:tiny"):
        raise RuntimeError("mine")
    assert torch.backends.mha.get_fastpath_enabled() == enabled
    assert torch.equal(early(inputs, inputs, inputs), early(inputs, inputs, inputs))


def test_what_is_not_routed():
    q, mha = x(2, 9, 8), nn.MultiheadAttention(8, 2, batch_first=True)
    results = []
    thread = threading.Thread(target=lambda: results.append(early(q, q, q)))

    @attention_on("model:tiny")
    def elsewhere():
        thread.start()
        thread.join()

    with pytest.warns(UserWarning, match="intercepted no call"):
        elsewhere()
    assert torch.equal(results[0], early(q, q, q))
    with attention_on("model:tiny", unsupported="pytorch") as log:
        _, weights = mha(q, q, q)
        dropped = early(q, q, q, dropout_p=0.5)
    assert weights.shape == (2, 9, 9)
    assert dropped.shape == q.shape
    assert [call.report for call in log] == [None, None]
    assert "need_weights" in str(log)
    assert "dropout of 0.5" in str(log)


def test_compiled_graphs_break_at_attention():
    def double(q):
        return early(q, q, q) * 2

    q = x(2, 9, 8)
    compiled = torch.compile(double, backend="eager")
    with attention_on("model:tiny") as log:
        result = compiled(q)
    assert len(log) == 1
    assert not torch.equal(result, double(q))
    assert torch.equal(compiled(q), double(q))
    torch._dynamo.reset()
    whole = torch.compile(double, backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError), attention_on("model:tiny"):
        whole(q)


Q = torch.zeros(1, 2, 4, 8)
WRONG = {
    "dtype": (lambda: early(Q.int(), Q.int(), Q.int()), TypeError, "int32"),
    "dtypes": (lambda: early(Q, Q.double(), Q), TypeError, "float64: they must be the same"),
    "complex": (lambda: early(*[Q.to(torch.complex64)] * 3), TypeError, "complex64"),
    "device": (lambda: early(Q, Q.to("meta"), Q), ValueError, "key on meta"),
    "meta": (lambda: early(*[Q.to("meta")] * 3), TypeError, "'meta' holds no data"),
    "sparse": (lambda: early(*[Q.to_sparse()] * 3), TypeError, "sparse"),
    "dropout": (lambda: early(Q, Q, Q, dropout_p=0.1), ValueError, "dropout of 0.1"),
    "layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)(x(1, 3, 8)),
        ValueError,
        "self_attn: dropout of 0.1: the accelerator has none",
    ),
    "weights": (lambda: nn.MultiheadAttention(8, 2)(*[x(3, 1, 8)] * 3), ValueError, "need_weights"),
    "mask": (lambda: early(Q, Q, Q, torch.full((4, 4), torch.inf)), ValueError, "infinity"),
    "mask shape": (lambda: early(Q, Q, Q, torch.zeros(3, 4)), ValueError, "attn_mask of shape"),
    "mask kind": (lambda: early(Q, Q, Q, torch.zeros(4, 4, dtype=torch.int)), TypeError, "int32"),
    "head dim": (lambda: early(*[x(1, 4, 11)] * 3), ValueError, "maximum of 10"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_use(case):
    call, error, message = WRONG[case]
    with celosia.open_device("model:tiny") as device, attention_on(device) as log:
        with pytest.raises(error, match=message):
            call()
        assert early(Q, Q, Q).shape == Q.shape
    assert len(log) == 1
    with pytest.raises(ValueError, match="unsupported must be"), attention_on(unsupported="no"):
        pass
    with pytest.raises(TypeError, match="device must be"), attention_on(3):  # type: ignore
        pass


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "bias"])
def test_gradients_are_those_of_float_attention(mask):
    tensors = [x(2, 2, 6, 8) for _ in range(3)]
    settings = {"is_causal": mask == "causal"}
    if mask == "bool":
        allowed = torch.rand(6, 6) > 0.4
        allowed[2] = False  # a query that attends to nothing
        tensors.append(allowed)
    elif mask == "bias":
        tensors.append(x(6, 6))
    both = []
    for function in (early, lambda *a, **s: attention(*a, **s, device="model:tiny")):
        leaves = [t.clone().requires_grad_(t.is_floating_point()) for t in tensors]
        output = function(*leaves, **settings)
        # A gradient that does not depend on the output: the backward passes are the same.
        output.backward(torch.linspace(-1, 1, output.numel()).reshape(output.shape))
        both.append([t.grad for t in leaves if t.requires_grad])
    for expected, found in zip(*both, strict=True):
        torch.testing.assert_close(found, expected)
        assert expected.abs().max() > 0


def test_gradients_of_linear_layers_and_the_module():
    a, w, b = (t.requires_grad_() for t in (x(2, 3, 12), x(5, 12), x(5)))
    with torch.no_grad():
        expected_output = F.linear(a, w, b)
    gradient = x(2, 3, 5)
    expected = torch.autograd.grad(F.linear(a, w, b), (a, w, b), gradient)
    output = linear(a, w, b, device="model:tiny")
    assert sqnr_db(expected_output.numpy(), output.detach().numpy()) > BOUND_DB
    for found, grad in zip(torch.autograd.grad(output, (a, w, b), gradient), expected, strict=True):
        torch.testing.assert_close(found, grad)
    module, inputs = MultiHeadAttention(16, 8, 2), x().requires_grad_()
    with attention_on("model:tiny"):
        module(inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    assert inputs.grad is not None


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 12, "vdim": 10}])
def test_module_from_torch(options):
    theirs = nn.MultiheadAttention(16, 4, batch_first=True, **options).eval()
    if theirs.in_proj_bias is not None:
        nn.init.normal_(theirs.in_proj_bias)
    ours = MultiHeadAttention.from_torch(theirs)
    q, k, v = x(), x(2, 7, options.get("kdim", 16)), x(2, 7, options.get("vdim", 16))
    reference, _ = theirs(q, k, v)
    results = [ours(q, k, v, device=name) for name in ("model:tiny", "sim:tiny")]
    assert torch.equal(*results)
    # Five steps of int8 follow each other: each adds noise about 40 dB below the signal.
    assert sqnr_db(reference.detach().numpy(), results[0].detach().numpy()) > 30


def test_module_on_a_pool_is_the_same():
    module, inputs = MultiHeadAttention(16, 16, 4), x()
    with celosia.DevicePool(["model:tiny"] * 3) as pool:
        spread = module(inputs, is_causal=True, device=pool)
    assert torch.equal(spread, module(inputs, is_causal=True, device="model:tiny"))


def test_module_rejects():
    with pytest.raises(ValueError, match="no multiple of num_heads"):
        MultiHeadAttention(16, 16, 3)
    with pytest.raises(TypeError, match="num_heads must be an int"):
        MultiHeadAttention(16, 16, 2.0)  # type: ignore
    with pytest.raises(ValueError, match="in training with a dropout"):
        MultiHeadAttention.from_torch(nn.MultiheadAttention(16, 2, dropout=0.1))
    with pytest.raises(ValueError, match="add_bias_kv"):
        MultiHeadAttention.from_torch(nn.MultiheadAttention(16, 2, add_bias_kv=True))
    module = MultiHeadAttention(16, 16, 2)
    with pytest.raises(ValueError, match=r"query has shape \(2, 9, 8\)"):
        module(x(2, 9, 8), device="model:tiny")
    with pytest.raises(ValueError, match="meta"):
        module(x().to("meta"), device="model:tiny")
    with pytest.raises(celosia.DeviceError, match="no device"):
        module(x())


def test_fine_tuning_with_gradient_accumulation():
    """A classifier of the more frequent of two tokens learns through the device."""

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(2, 8)
            self.attention = MultiHeadAttention(8, 8, 2)
            self.head = nn.Linear(8, 2)

        def forward(self, tokens):
            return self.head(self.attention(self.embedding(tokens)).mean(dim=1))

    model = Classifier()
    tokens = torch.randint(0, 2, (16, 7))
    labels = (tokens.sum(dim=1) > 3).long()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    with attention_on("model:tiny"):
        for _ in range(10):
            optimizer.zero_grad()
            total = 0.0
            for part in range(0, 16, 8):  # two backward passes for one step
                logits = model(tokens[part : part + 8])
                loss = F.cross_entropy(logits, labels[part : part + 8]) / 2
                loss.backward()
                total += loss.item()
            losses.append(total)
            optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_calibration(suffix, tmp_path):
    if suffix == "safetensors":
        pytest.importorskip("safetensors")
    model = nn.Sequential(MultiHeadAttention(16, 16, 2), encoder()).eval()
    samples = x(4, 9, 16)
    with torch.no_grad():
        with calibrate(model) as observed:
            reference = model(samples)
        assert set(observed.attentions) == {"0", "1.layers.0.self_attn", "1.layers.1.self_attn"}
        assert set(observed.inputs) == {f"0.{name}" for name in ("query", "key", "value", "output")}
        observed.save(tmp_path / f"scales.{suffix}")
        loaded = celosia.Calibration.load(tmp_path / f"scales.{suffix}")
        loaded.apply_to(model)
        with attention_on("model:tiny"):
            static, again = model(samples), model(samples[:1])
        celosia.Calibration.remove_from(model)
        with attention_on("model:tiny"):
            dynamic = model(samples)
    assert not torch.equal(static, dynamic)
    # What does not depend on other samples is the mark of static scales.
    torch.testing.assert_close(again, static[:1])
    assert sqnr_db(reference.numpy(), static.numpy()) > 30
    for name, scales in observed.attentions.items():
        np.testing.assert_array_equal(loaded.attentions[name].key_mean, scales.key_mean)


def test_calibration_rejects(tmp_path):
    with pytest.raises(ValueError, match="saw no attention"), calibrate(nn.Linear(2, 2)):
        pass
    model = MultiHeadAttention(8, 8, 2)
    with calibrate(model) as observed:
        model(x(2, 3, 8))
    with pytest.raises(ValueError, match="has no module"):
        observed.apply_to(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="a calibration is a"):
        observed.save(tmp_path / "scales.bin")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no calibration"):
        celosia.Calibration.load(tmp_path / "other.json")
    observed.apply_to(model)
    model.num_heads = 4
    with pytest.raises(ValueError, match="static scales are for 2"):
        model(x(2, 3, 8), device="model:tiny")


def test_saturation_of_static_scales_is_clipped():
    model = MultiHeadAttention(8, 8, 2)
    with calibrate(model) as observed:
        model(x(2, 3, 8))
    observed.apply_to(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model(100 * x(2, 3, 8), device="model:tiny").isfinite().all()


def test_example_of_the_module(capsys):
    arguments = ["--device", "sim:tiny", "--tokens", "20", "--features", "16", "--heads", "2"]
    assert _main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model_mismatches"] == 0
    assert result["compared"] == 5 * 20 * 16
    assert result["clocks"] == sum(step["clocks"] for step in result["steps"])
    assert result["sqnr_db"] > BOUND_DB
    assert _main(["--device", "sim:huge"]) == 2
    assert "celosia: error: " in capsys.readouterr().err


def test_checked_device_counts_what_differs(monkeypatch):
    opened = celosia.open_device("sim:tiny")
    with CheckedDevice(opened.transport) as device:
        celosia.run_attention(*[x(2, 60, 8)] * 3)  # in chunks, with states
        assert device.mismatches == 0
        collect = Program.collect

        def wrong(program, replies, result):
            collect(program, replies, result)
            result.flat[0] += len(calls)
            calls.append(result)

        calls = []
        monkeypatch.setattr(Program, "collect", wrong)
        celosia.run_attention(*[x(1, 5, 8)] * 3)
        assert device.mismatches == 1
