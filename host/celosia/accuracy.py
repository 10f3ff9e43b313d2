"""What each option of the quantization is worth: ``python -m celosia.accuracy FILE.npz ...``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from .attention import plan_attention
from .commands.common import Parser, Progress, guarded
from .commands.inputs import read_npz
from .device import open_device
from .evaluate import ideal_attention, metrics, reference_attention, reference_name
from .options import AttentionOptions
from .text import markdown

__all__ = ["STEPS", "accuracy_table", "format_table"]


def _steps() -> dict[str, AttentionOptions]:
    """Options by name, each step with those before it."""
    options = AttentionOptions(
        per_token_query=False,
        per_token_key=False,
        per_token_value=False,
        smooth_keys=False,
        rotate_keys=False,
        balance_keys=False,
        rotate_values=False,
        balance_values=False,
        error_feedback=False,
        search_scales=False,
    )
    steps = {"one scale per head": options}
    per_token = ("per_token_query", "per_token_key", "per_token_value")
    for name, fields in (
        ("+ a scale per token", per_token),
        ("+ smooth_keys", ("smooth_keys",)),
        ("+ rotate_keys", ("rotate_keys",)),
        ("+ rotate_values", ("rotate_values",)),
        ("+ balance_keys", ("balance_keys",)),
        ("+ balance_values", ("balance_values",)),
        ("+ error_feedback", ("error_feedback",)),
        ("+ search_scales", ("search_scales",)),
    ):
        options = dataclasses.replace(options, **dict.fromkeys(fields, True))
        steps[name] = options
    assert options == AttentionOptions()
    for field in ("smooth_keys", "rotate_keys", "balance_keys", "rotate_values", "balance_values"):
        steps[f"default without {field}"] = dataclasses.replace(options, **{field: False})
    steps["default and smooth_values"] = dataclasses.replace(options, smooth_values=True)
    steps["default with result_fraction=8"] = dataclasses.replace(options, result_fraction=8)
    return steps


STEPS = _steps()
"""Options that `accuracy_table` measures, by name."""


def accuracy_table(
    paths: Iterable[str | Path], progress: Callable[[str], None] | None = None
) -> list[dict[str, Any]]:
    """Signal to noise of each of `STEPS` against attention in float32.

    Parameters
    ----------
    paths : iterable of str or Path
        Files as ``celosia run --input`` takes them.
    progress : callable, optional
        Called with a line of text.

    Returns
    -------
    list of dict
        ``file`` (the name without .npz), ``step``, ``sqnr_db`` of the integer model, and
        ``ideal_sqnr_db`` with Q, K and V rounded and all else exact; over all heads and queries.

    Raises
    ------
    OSError, ValueError
        If a file cannot be read or does not fit the accelerator.
    """
    rows = []
    for path in map(Path, paths):
        tensors = read_npz(str(path), path.name)
        qkv = (tensors.query, tensors.key, tensors.value)
        where = tensors.mask
        reference = None
        for step, options in STEPS.items():
            if progress is not None:
                progress(f"{path.stem}: {step}")
            with open_device("model") as device:
                gqa = len(tensors.query) != len(tensors.key)
                job = plan_attention(device.config, *qkv, enable_gqa=gqa, options=options, **where)
                result = job.run(device).dequantize()
            if reference is None:
                reference = reference_attention(*qkv, **where)
            row: dict[str, Any] = {"file": path.stem, "step": step}
            row["sqnr_db"] = metrics(reference, result)["sqnr_db"]
            row["ideal_sqnr_db"] = metrics(reference, ideal_attention(job))["sqnr_db"]
            rows.append(row)
    return rows


def format_table(rows: Sequence[dict[str, Any]]) -> str:
    """`accuracy_table` in Markdown: a row per step, and per file the model's figure and the ideal.

    Parameters
    ----------
    rows : sequence of dict

    Returns
    -------
    str
    """
    names = list(dict.fromkeys(row["file"] for row in rows))
    figures = {
        (row["step"], row["file"]): f"{row['sqnr_db']:.2f} ({row['ideal_sqnr_db']:.2f})"
        for row in rows
    }
    steps = dict.fromkeys(row["step"] for row in rows)
    return markdown(
        ["", *names], [[step, *(figures.get((step, name), "") for name in names)] for step in steps]
    )


def _main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m celosia.accuracy",
        description="Print, in Markdown, what each option of the quantization is worth: signal to "
        f"noise against float32 {reference_name()} in dB, of the integer model and (in brackets) "
        "with Q, K and V rounded and all else exact.",
        allow_abbrev=False,
    )
    parser.add_argument("files", nargs="+", metavar="FILE.npz", help="as celosia run --input")
    arguments = parser.parse_args(argv)

    def run() -> int:
        with Progress() as progress:
            rows = accuracy_table(arguments.files, progress)
        print(format_table(rows))
        return 0

    return guarded(run)


if __name__ == "__main__":
    sys.exit(_main())
