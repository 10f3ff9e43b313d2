"""What each call inside `attention_on` took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy.typing as npt

from ..device import RunReport
from ..evaluate import metrics
from ..text import aligned

__all__ = ["Call", "CallLog", "errors"]


@dataclass(frozen=True)
class Call:
    """One attention or matrix product.

    Parameters
    ----------
    layer : str
        Name of the module that made the call, as in ``named_modules()`` of the outermost module
        that was called; "" for that itself, or outside of modules.
    kind : str
        "attention" or "linear".
    shapes : tuple of tuple of int
        Of query, key and value; or of input and weight.
    report : RunReport or None
        Of the device; None where PyTorch computed.
    sqnr_db, max_abs_error : float or None
        Against the same in floating point; None if not asked for.
    reason : str or None
        Why PyTorch computed.
    """

    layer: str
    kind: str
    shapes: tuple[tuple[int, ...], ...]
    report: RunReport | None = None
    sqnr_db: float | None = None
    max_abs_error: float | None = None
    reason: str | None = None


class CallLog:
    """The calls in their order; its text is a table.

    Attributes
    ----------
    calls : list of Call
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def __iter__(self) -> Iterator[Call]:
        return iter(self.calls)

    def __len__(self) -> int:
        return len(self.calls)

    @property
    def clocks(self) -> int:
        """Clocks of all calls together."""
        return sum(call.report.clocks for call in self.calls if call.report is not None)

    def __str__(self) -> str:
        head = ("layer", "call", "shapes", "clocks", "utilization", "SQNR, dB", "largest error")
        return aligned([head, *map(_row, self.calls)])


def _row(call: Call) -> tuple[str, ...]:
    shapes = " ".join("x".join(map(str, shape)) for shape in dict.fromkeys(call.shapes))
    report = call.report
    if report is None:
        return call.layer, call.kind, shapes, f"PyTorch: {call.reason}", "", "", ""
    return (
        call.layer,
        call.kind,
        shapes,
        f"{report.clocks:,}" if report.clocks else "none",
        "" if report.utilization is None else f"{report.utilization:.3f}",
        "" if call.sqnr_db is None else f"{call.sqnr_db:.2f}",
        "" if call.max_abs_error is None else f"{call.max_abs_error:.3g}",
    )


def errors(reference: npt.NDArray, result: npt.NDArray) -> dict[str, float]:
    """`Call.sqnr_db` and `Call.max_abs_error`."""
    both = metrics(reference, result)
    return {name: both[name] for name in ("sqnr_db", "max_abs_error")}
