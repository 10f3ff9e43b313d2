"""Tables in text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["aligned", "markdown", "markdown_row"]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Lines of cells in columns, each as wide as it must be."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def markdown(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    return "\n".join(map(markdown_row, [head, ["---"] * len(head), *rows]))


def markdown_row(cells: Sequence[Any]) -> str:
    """A line of such a table."""
    return f"| {' | '.join(map(str, cells))} |"
