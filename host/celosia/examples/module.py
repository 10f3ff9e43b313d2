"""`celosia.MultiHeadAttention` on a device: clocks, utilization, error, and the integer model.

Query, key and value projection, attention and output projection of random input, each compared in
every integer with the integer model and with PyTorch in float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..checked import CheckedDevice
from ..commands.common import Parser, Progress, count, guarded, natural, to_json
from ..device import open_device
from ..text import aligned, markdown

__all__ = ["run"]


def run(
    device: CheckedDevice,
    *,
    tokens: int = 1024,
    features: int = 512,
    heads: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """``MultiHeadAttention(features, features, heads)`` on ``randn(1, tokens, features)``.

    Parameters
    ----------
    device : CheckedDevice
    tokens, features, heads, seed : int

    Returns
    -------
    dict
        ``clocks``, ``useful_macs``, ``utilization`` (of the multipliers that a step can use: a
        product has the score array alone), ``sqnr_db`` and ``max_abs_error`` of the module against
        float32, ``compared`` integers and ``model_mismatches``, and the same of each of ``steps``.
    """
    import torch

    from ..nn import MultiHeadAttention, attention_on
    from ..nn.report import errors

    torch.manual_seed(seed)
    module = MultiHeadAttention(features, features, heads).eval()
    x = torch.randn(1, tokens, features)
    with torch.no_grad():
        with attention_on(device, compare=True) as log:
            result = module(x)
        reference = _reference(module, x)
    steps = []
    capacity = 0.0
    for call, name in zip(log, ("query", "key", "value", "attention", "output"), strict=True):
        report = call.report
        assert report is not None
        multipliers = device.config.multipliers // (1 if call.kind == "attention" else 2)
        capacity += report.clocks * multipliers
        steps.append(
            {
                "step": name,
                "clocks": report.clocks,
                "useful_macs": report.useful_macs,
                "utilization": report.utilization,
                "sqnr_db": call.sqnr_db,
                "max_abs_error": call.max_abs_error,
            }
        )
    useful = sum(step["useful_macs"] for step in steps)
    return {
        "clocks": log.clocks,
        "useful_macs": useful,
        "utilization": useful / capacity if capacity else None,
        **errors(reference.numpy(), result.numpy()),
        "compared": device.compared,
        "model_mismatches": device.mismatches,
        "steps": steps,
    }


def _reference(module: Any, x: Any) -> Any:
    """The module in float32 PyTorch."""
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (
        layer(x).unflatten(-1, (module.num_heads, -1)).transpose(-3, -2)
        for layer in (module.query, module.key, module.value)
    )
    return module.output(scaled_dot_product_attention(q, k, v).transpose(-3, -2).flatten(-2))


def _table(result: dict[str, Any], title: str) -> str:
    steps = markdown(
        ("step", "clocks", "utilization", "SQNR, dB", "largest error"),
        (
            (
                step["step"],
                step["clocks"] or "",
                "" if step["utilization"] is None else f"{step['utilization']:.3f}",
                f"{step['sqnr_db']:.2f}",
                f"{step['max_abs_error']:.3g}",
            )
            for step in [*result["steps"], {**result, "step": "all five"}]
        ),
    )
    rows = [
        ("module", title),
        ("integers compared", f"{result['compared']:,}"),
        ("mismatches, integer model", str(result["model_mismatches"])),
    ]
    return f"{steps}\n\n{aligned(rows)}"


def _main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m celosia.examples.module",
        description="Run MultiHeadAttention with all five steps on a device, compare with the "
        "integer model and with PyTorch, and print a table.",
        allow_abbrev=False,
    )
    parser.add_argument("--device", metavar="SPEC", default="sim:default", help="sim:default")
    parser.add_argument("--tokens", metavar="N", type=count, default=1024, help="1024")
    parser.add_argument("--features", metavar="N", type=count, default=512, help="512")
    parser.add_argument("--heads", metavar="N", type=count, default=8, help="8")
    parser.add_argument("--seed", metavar="N", type=natural, default=0, help="0")
    parser.add_argument("--json", action="store_true", help="print one JSON object, not a table")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    with Progress() as progress:
        result = _measured(arguments, progress)
    title = (
        f"MultiHeadAttention({arguments.features}, {arguments.features}, {arguments.heads}) on "
        f"randn(1, {arguments.tokens}, {arguments.features}), {arguments.device}"
    )
    print(to_json(result) if arguments.json else _table(result, title))
    return 1 if result["model_mismatches"] else 0


def _measured(arguments: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    def tiles(done: int, total: int) -> None:
        progress(f"{done} of {total} query tiles")

    opened = open_device(arguments.device, progress=progress)
    with CheckedDevice(opened.transport, progress=tiles) as device:
        return run(
            device,
            tokens=arguments.tokens,
            features=arguments.features,
            heads=arguments.heads,
            seed=arguments.seed,
        )


if __name__ == "__main__":
    sys.exit(_main())
