"""Perplexity of SmolLM2-135M with attention on the accelerator, per probability width."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from .common import (
    Log,
    example_parser,
    layer_progress,
    load_language_model,
    open_example_device,
    routed,
    run_example,
)
from .report import Report

__all__ = ["TEXT", "losses", "main", "measure", "passage"]

TEXT = "H. G. Wells, The Time Machine (1895), beginning of chapter I; in the public domain"
"""What `passage` is."""


def passage() -> str:
    """The text, a paragraph a line, without the emphasis of single words."""
    text = (files("celosia.examples") / "data" / "time_machine.txt").read_text(encoding="utf-8")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def losses(model: Any, tokens: Any) -> Any:
    """Negative log-likelihood of each token but the first, in nats.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    tokens : (n,) int64 tensor

    Returns
    -------
    (n - 1,) float32 tensor
    """
    import torch

    with torch.no_grad():
        logits = model(tokens[None], use_cache=False).logits[0].float()
    return torch.nn.functional.cross_entropy(logits[:-1], tokens[1:], reduction="none")


def measure(
    model: Any, tokens: Any, arguments: argparse.Namespace, log: Log
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Losses with float32 attention and with the accelerator's, per probability width.

    Returns
    -------
    figures : dict
        ``tokens`` predicted, ``perplexity`` with float32, and ``widths``: a list of dicts.
    losses : dict of tensor
        By ``"float"`` and by width.
    """
    layers = model.get_decoder().layers
    with layer_progress(layers, log, "float32"):
        reference = losses(model, tokens)
    every: dict[str, Any] = {"float": reference}
    perplexity = math.exp(reference.mean().item())
    rows = []
    with routed(model):
        for width in arguments.widths:
            start = time.perf_counter()
            with (
                open_example_device(arguments, log, probability_bits=width),
                layer_progress(layers, log, f"probabilities of {width} bits"),
            ):
                found = losses(model, tokens)
            every[str(width)] = found
            value = math.exp(found.mean().item())
            row = {
                "probability_bits": width,
                "perplexity": value,
                "change_percent": 100 * (value / perplexity - 1),
                "mean_loss_change": (found - reference).abs().mean().item(),
                "seconds": time.perf_counter() - start,
            }
            rows.append(row)
            change = f"{row['change_percent']:+.3f} %"
            log(f"{width} bits: {value:.4f} ({change}), float {perplexity:.4f}")
    figures = {
        "text": TEXT,
        "tokens": len(reference),
        "device": arguments.device,
        "config": arguments.config,
        "perplexity": perplexity,
        "widths": sorted(rows, key=lambda row: row["probability_bits"]),
    }
    return figures, every


def write_report(figures: dict[str, Any], every: dict[str, Any], folder: str) -> Path:
    """Write the report of what `measure` returned."""
    from matplotlib.figure import Figure

    report = Report("Perplexity of SmolLM2-135M, attention on the accelerator")
    report.text(
        f"Text: {figures['text']}; {figures['tokens']} tokens are predicted, each from all before "
        f"it. Every attention of every layer is computed by the device {figures['device']!r}, "
        f"configuration {figures['config']!r}; the rest of the model is float32."
    )
    report.text(
        "The baseline is the same model with PyTorch's attention in float32: "
        "SmolLM2-135M-Instruct, whose Q4_1 weights are dequantized to float32 for both. The change "
        "is what the accelerator costs, not what Q4_1 costs."
    )
    report.table(
        ["attention", "perplexity", "change, %", "mean change of a token's loss, nats", "s"],
        [
            ["float32", f"{figures['perplexity']:.4f}", "", "", ""],
            *(
                [
                    f"{row['probability_bits']} bits",
                    f"{row['perplexity']:.4f}",
                    f"{row['change_percent']:+.4f}",
                    f"{row['mean_loss_change']:.5f}",
                    f"{row['seconds']:.0f}",
                ]
                for row in figures["widths"]
            ),
        ],
    )
    figure = Figure(figsize=(7, 3.5))
    axes = figure.subplots()
    widths = [row["probability_bits"] for row in figures["widths"]]
    axes.plot(widths, [row["change_percent"] for row in figures["widths"]], "o-")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("bits of a probability")
    axes.set_ylabel("change of perplexity, %")
    axes.set_xticks(widths)
    report.plot(figure, "Perplexity against float32, per width of the unnormalised probabilities.")
    figure = Figure(figsize=(7, 3.5))
    axes = figure.subplots()
    for width in widths:
        axes.hist(
            (every[str(width)] - every["float"]).numpy(),
            bins=61,
            histtype="step",
            label=f"{width} bits",
        )
    axes.set_yscale("log")
    axes.set_xlabel("change of a token's loss, nats")
    axes.set_ylabel("tokens")
    axes.legend()
    report.plot(figure, "How far the loss of single tokens moves.")
    return report.write(folder, figures)


def _run(arguments: argparse.Namespace, log: Log) -> Path:
    log("loading SmolLM2-135M")
    model, tokenizer = load_language_model()
    tokens = tokenizer(passage(), return_tensors="pt").input_ids[0]
    if not 2 <= arguments.tokens <= len(tokens):
        raise ValueError(
            f"--tokens must be between 2 and the {len(tokens)} of the text, not {arguments.tokens}"
        )
    figures, every = measure(model, tokens[: arguments.tokens], arguments, log)
    return write_report(figures, every, arguments.output)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example."""
    parser = example_parser("perplexity", f"{__doc__} Text: {TEXT}.", "model")
    parser.add_argument(
        "--tokens", type=int, default=1024, metavar="N", help="of the text; default: %(default)s"
    )
    parser.add_argument(
        "--widths",
        type=int,
        nargs="+",
        default=[8, 10, 12, 14, 16],
        metavar="BITS",
        help="of probabilities; default: 8 10 12 14 16",
    )
    return run_example(_run, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
