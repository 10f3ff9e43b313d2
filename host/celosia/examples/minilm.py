"""Sentence similarities by MiniLM-L6, in float32 and with attention on the accelerator."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import (
    Log,
    example_parser,
    layer_progress,
    load_sentence_model,
    open_example_device,
    routed,
    run_example,
)
from .report import Report

__all__ = ["SENTENCES", "embed", "main", "measure"]

SENTENCES = (
    "The cat sleeps on the warm window sill.",
    "A kitten is napping in the sun.",
    "Dogs bark at strangers who pass the gate.",
    "The stock market fell sharply on Monday.",
    "Share prices dropped at the start of the week.",
    "The central bank left interest rates unchanged.",
    "She plays the violin in the city's orchestra.",
    "He has practised the cello since he was six years old, and now teaches it to others.",
    "A recipe for bread needs flour, water, yeast and salt.",
    "Knead the dough and let it rise for two hours before you bake it.",
    "The train to the coast leaves at noon.",
    "Our bus was late, so we missed the ferry.",
    "Photosynthesis turns light into chemical energy.",
    "Plants make sugar from carbon dioxide and water, with light as the source of energy.",
    "An array of multipliers computes the product of two matrices.",
    "Rain.",
)
"""Of several lengths, so that the batch is padded."""


def embed(model: Any, batch: dict[str, Any]) -> Any:
    """Embeddings of sentences: the mean over their tokens, of length 1.

    Parameters
    ----------
    model : PreTrainedModel
    batch : dict
        What the tokenizer returned, padded.

    Returns
    -------
    (sentences, dim) float32 tensor
    """
    import torch

    with torch.no_grad():
        states = model(**batch).last_hidden_state.float()
    mask = batch["attention_mask"][..., None]
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def measure(
    model: Any, batch: dict[str, Any], arguments: argparse.Namespace, log: Log
) -> tuple[Any, Any]:
    """Embeddings in float32 and with the device's attention."""
    layers = model.encoder.layer
    with layer_progress(layers, log, "float32"):
        reference = embed(model, batch)
    with (
        routed(model),
        open_example_device(arguments, log),
        layer_progress(layers, log, arguments.device),
    ):
        return reference, embed(model, batch)


def write_report(
    reference: Any, found: Any, sentences: Sequence[str], arguments: argparse.Namespace
) -> Path:
    """Write the report."""
    from matplotlib.figure import Figure

    cosines = (reference * found).sum(-1)
    exact, measured = (x @ x.T for x in (reference, found))
    difference = measured - exact
    figures = {
        "device": arguments.device,
        "config": arguments.config,
        "sentences": len(sentences),
        "mean_cosine": cosines.mean().item(),
        "least_cosine": cosines.min().item(),
        "largest_similarity_change": difference.abs().max().item(),
        "cosines": cosines.tolist(),
    }
    report = Report("Sentence similarities by MiniLM-L6, attention on the accelerator")
    report.text(
        f"{len(sentences)} sentences in one padded batch. Attention of all 6 layers and 12 heads "
        f"ran on the device {arguments.device!r}, configuration {arguments.config!r}; the rest of "
        "the model is float32, as is the reference, with PyTorch's attention."
    )
    report.text(
        f"Cosine of a sentence's embeddings: {figures['mean_cosine']:.6f} on average, "
        f"{figures['least_cosine']:.6f} at least. No similarity of two sentences differs by more "
        f"than {figures['largest_similarity_change']:.5f}."
    )
    figure = Figure(figsize=(9, 4))
    axes = figure.subplots(1, 2)
    for place, matrix, title, limit, colors in (
        (axes[0], measured, "similarity, accelerator", 1.0, "viridis"),
        (axes[1], difference, "difference from float32", None, "coolwarm"),
    ):
        limit = limit or float(difference.abs().max())
        low = 0 if title.startswith("similarity") else -limit
        image = place.imshow(matrix.numpy(), cmap=colors, vmin=low, vmax=limit)
        place.set_title(title)
        figure.colorbar(image, ax=place, shrink=0.8)
    report.plot(figure, "Cosine similarities of all pairs of sentences, in the order below.")
    nearest = (exact - 2 * exact.new_ones(len(exact)).diag()).argmax(-1).tolist()
    other = (measured - 2 * exact.new_ones(len(exact)).diag()).argmax(-1).tolist()
    report.table(
        ["", "sentence", "cosine, float32 to accelerator", "nearest, float32", "accelerator"],
        [
            [number, sentence, f"{cosines[number]:.6f}", nearest[number], other[number]]
            for number, sentence in enumerate(sentences)
        ],
    )
    return report.write(arguments.output, figures)


def _run(arguments: argparse.Namespace, log: Log) -> Path:
    log("loading MiniLM-L6")
    model, tokenizer = load_sentence_model()
    batch = dict(tokenizer(list(SENTENCES), padding=True, return_tensors="pt"))
    reference, found = measure(model, batch, arguments, log)
    return write_report(reference, found, SENTENCES, arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example."""
    return run_example(_run, example_parser("minilm", __doc__ or "", "model"), argv)


if __name__ == "__main__":
    sys.exit(main())
