"""A report in one HTML file, its plots inside, and its figures in a JSON file beside it."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["Report"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: right; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
pre { background: #f4f4f4; padding: .8rem; white-space: pre-wrap; }
"""


class Report:
    """Collects what a page shows.

    Parameters
    ----------
    title : str
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []

    def text(self, paragraph: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{html.escape(paragraph)}</p>")

    def verbatim(self, text: str) -> None:
        """Add text as it is."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table."""
        lines = [_row("th", header), *(_row("td", row) for row in rows)]
        self._parts.append(f"<table>{''.join(lines)}</table>")

    def plot(self, figure: Any, caption: str) -> None:
        """Add a matplotlib figure, and close it."""
        file = io.StringIO()
        figure.savefig(file, format="svg", bbox_inches="tight", metadata={"Date": None})
        svg = file.getvalue()
        self._parts.append(f"<figure>{svg[svg.index('<svg') :]}</figure>")
        self._parts.append(f"<p><em>{html.escape(caption)}</em></p>")

    def write(self, folder: str | Path, figures: dict[str, Any]) -> Path:
        """Write ``report.html`` and ``figures.json``.

        Returns
        -------
        Path
            Of the page.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
        title, page = html.escape(self._title), folder / "report.html"
        page.write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            f"<style>{_STYLE}</style><h1>{title}</h1>{''.join(self._parts)}</html>\n",
            encoding="utf-8",
        )
        return page


def _row(tag: str, cells: Sequence[Any]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(str(x))}</{tag}>' for x in cells)}</tr>"
