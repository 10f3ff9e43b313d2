"""Text from SmolLM2-135M, token by token, with the cache on the accelerator."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
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

__all__ = ["Generated", "generate", "main", "measure"]


@dataclass
class Generated:
    """What `generate` returns.

    Parameters
    ----------
    tokens : list of int
        The new ones.
    traffic : list of dict
        What each of them took, as `DeviceCache.traffic`; empty without such a cache.
    margins : list of float
        By how much the chosen token's logit exceeds the next one's.
    """

    tokens: list[int] = field(default_factory=list)
    traffic: list[dict[str, int]] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)


def generate(model: Any, prompt: Any, count: int, cache: Any) -> Generated:
    """The most likely next tokens, one after the other.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model.
    prompt : (n,) int64 tensor
    count : int
    cache : transformers.Cache
        Empty.
    """
    import torch

    found, new = Generated(), prompt[None]
    for _ in range(count):
        before = dict(getattr(cache, "traffic", {}))
        with torch.no_grad():
            logits = model(new, cache=cache, use_cache=True).logits[0, -1].float()
        best, second = logits.topk(2).values.tolist()
        new = logits.argmax().view(1, 1)
        found.tokens.append(int(new))
        found.margins.append(best - second)
        if before:
            found.traffic.append({name: cache.traffic[name] - n for name, n in before.items()})
    return found


def measure(
    model: Any, prompt: Any, arguments: argparse.Namespace, log: Log
) -> dict[str, Generated]:
    """The same prompt in float32, on the integer model, and on the device.

    Parameters
    ----------
    arguments : Namespace
        With ``device``, ``config``, ``key_banks`` (or None) and ``tokens``.

    Returns
    -------
    dict
        By ``"float"``, ``"model"`` and ``"device"``; the last is absent if the device is the model.
    """
    import transformers

    from ..transformers import DeviceCache

    layers, count = model.get_decoder().layers, arguments.tokens
    parameters = {} if arguments.key_banks is None else {"key_banks": arguments.key_banks}
    names = {"model": "model"}
    if arguments.device.split(":")[0] != "model":
        names["device"] = arguments.device
    found = {}
    with layer_progress(layers, log, "float32"):
        found["float"] = generate(model, prompt, count, transformers.DynamicCache())
    for name, spec in names.items():
        with (
            routed(model),
            open_example_device(arguments, log, spec, **parameters) as device,
            DeviceCache(len(prompt) + count, device) as cache,
            layer_progress(layers, log, spec),
        ):
            found[name] = generate(model, prompt, count, cache)
    return found


def write_report(
    found: dict[str, Generated], words: Any, prompt: str, arguments: argparse.Namespace
) -> Path:
    """Write the report.

    Parameters
    ----------
    found : dict
        As `measure` returns it.
    words : callable
        From a list of tokens to text.
    prompt : str
    arguments : Namespace
    """
    from matplotlib.figure import Figure

    name = "device" if "device" in found else "model"
    run, reference, model = found[name], found["float"], found["model"]
    kind = arguments.device if name == "device" else "the integer model"
    banks = f", {arguments.key_banks} key banks" if arguments.key_banks else ""
    same_model = sum(a == b for a, b in zip(run.tokens, model.tokens, strict=True))
    same_float = sum(a == b for a, b in zip(run.tokens, reference.tokens, strict=True))
    report = Report("SmolLM2-135M generates text, attention on the accelerator")
    report.text(
        f"Every attention of every layer ran on {kind}, configuration {arguments.config!r}{banks}, "
        "with keys and values in its key banks: a step sends the new token's. The most likely "
        "token is taken. The weights are those of SmolLM2-135M-Instruct, Q4_1, dequantized to "
        "float32, in all runs."
    )
    report.text(
        f"Of {len(run.tokens)} tokens, {same_model} are those of the integer model, and "
        f"{same_float} those of PyTorch's attention in float32."
    )
    report.verbatim(f"{prompt}[{words(run.tokens)}]")
    report.table(
        ["token", "float32", "margin of the logit", "clocks", "sent", "received", "loaded again"],
        [
            [
                repr(words([token])),
                repr(words([other])),
                f"{margin:.3f}",
                f"{step['clocks']:,}",
                f"{step['bytes_sent']:,}",
                f"{step['bytes_received']:,}",
                step["loads"],
            ]
            for token, other, margin, step in zip(
                run.tokens, reference.tokens, run.margins, run.traffic, strict=True
            )
        ],
    )
    report.text(
        "Clocks and link bytes of all layers; the first step is the prompt. Layers that do not fit "
        "the key banks together are loaded again when it is their turn."
    )
    for key, label in (("clocks", "clocks"), ("bytes_sent", "bytes sent")):
        figure = Figure(figsize=(7, 3))
        axes = figure.subplots()
        axes.bar(range(len(run.traffic)), [step[key] for step in run.traffic])
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        report.plot(figure, f"{label.capitalize()} of each step.")
    figures = {
        "prompt": prompt,
        "device": arguments.device,
        "config": arguments.config,
        "key_banks": arguments.key_banks,
        "text": words(run.tokens),
        "same_as_model": same_model,
        "same_as_float": same_float,
        "runs": {key: vars(value) for key, value in found.items()},
    }
    return report.write(arguments.output, figures)


def _run(arguments: argparse.Namespace, log: Log) -> Path:
    if arguments.tokens < 1:
        raise ValueError(f"--tokens must be at least 1, not {arguments.tokens}")
    log("loading SmolLM2-135M")
    model, tokenizer = load_language_model()
    prompt = tokenizer(arguments.prompt, return_tensors="pt").input_ids[0]
    if not len(prompt):
        raise ValueError("--prompt is empty")
    found = measure(model, prompt, arguments, log)
    return write_report(found, tokenizer.decode, arguments.prompt, arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the example."""
    parser = example_parser("generate", __doc__ or "", "sim")
    parser.add_argument(
        "--prompt", default="The moon is a natural satellite that", help="default: %(default)s"
    )
    parser.add_argument(
        "--tokens", type=int, default=20, metavar="N", help="to generate; default: %(default)s"
    )
    parser.add_argument(
        "--key-banks",
        type=int,
        metavar="N",
        help="of the configuration, up to 16, which hold all 30 layers of 176 tokens at once",
    )
    return run_example(_run, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
