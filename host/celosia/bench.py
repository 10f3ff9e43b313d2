"""Utilization and accuracy over shapes and masks: the table of ``celosia bench``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from celosia_hw.config import AcceleratorConfig

from .attention import plan_attention
from .device import Device, RunReport, open_device
from .evaluate import ideal_attention, metrics, reference_attention
from .text import markdown

__all__ = ["CASES", "Case", "bench", "format_table"]


@dataclass(frozen=True)
class Case:
    """An attention over N(0, 1) input.

    Parameters
    ----------
    name : str
    queries, keys, dim : int
        L, S, and both head dimensions.
    mask : callable, optional
        Of a random generator and the case: what `plan_attention` takes of masks.
    kv_heads : int or None
        Heads of keys and values; as many as query heads if absent.
    resends : bool
        Run each query tile by itself, so that keys and values are sent anew for each.
    """

    name: str
    queries: int
    keys: int
    dim: int
    mask: Callable[[np.random.Generator, Case], dict[str, Any]] | None = None
    kv_heads: int | None = None
    resends: bool = False


def _random_bits(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    return {"attn_mask": rng.random((case.queries, case.keys)) < 0.5}


def _random_bias(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    return {"attn_mask": rng.normal(size=(case.queries, case.keys)).astype(np.float32)}


def _documents(rng: np.random.Generator, case: Case) -> dict[str, Any]:
    return {"document_ids": np.arange(case.keys) // 200, "is_causal": True}


def _rule(**mask: Any) -> Callable[[np.random.Generator, Case], dict[str, Any]]:
    return lambda rng, case: mask


CASES = (
    Case("64 tokens", 64, 64, 64),
    Case("128 tokens", 128, 128, 64),
    Case("1024 tokens", 1024, 1024, 64),
    Case("1024 tokens, head dim 32", 1024, 1024, 32),
    Case("1024 tokens, head dim 128", 1024, 1024, 128),
    Case("1024 tokens, causal", 1024, 1024, 64, _rule(is_causal=True)),
    Case("1024 tokens, window 128", 1024, 1024, 64, _rule(window=128)),
    Case("1024 tokens, causal documents of 200", 1024, 1024, 64, _documents),
    Case("1024 tokens, random mask bits", 1024, 1024, 64, _random_bits),
    Case("1024 tokens, random bias", 1024, 1024, 64, _random_bias),
    Case("1024 tokens, 8 heads on 2", 1024, 1024, 64, kv_heads=2),
    Case("1 query, 1024 keys, 8 heads on 2", 1, 1024, 64, kv_heads=2),
    Case("256 queries, 4096 keys in chunks", 256, 4096, 64),
    Case("the same, K and V sent for each query tile", 256, 4096, 64, resends=True),
    Case("1024 tokens, causal ALiBi", 1024, 1024, 64, _rule(is_causal=True, alibi_slopes=0.25)),
)
"""What the README's table shows."""


def bench(
    device: Device,
    cases: Iterable[Case] | None = None,
    *,
    heads: int = 8,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Run cases on a device.

    Parameters
    ----------
    device : Device
    cases : iterable of Case, optional
        `CASES` if absent.
    heads : int
    progress : callable, optional
        Is told which case runs.

    Returns
    -------
    list of dict
        ``case``, ``clocks``, ``utilization``, ``link_bytes`` (both ways), ``sqnr_db``,
        ``ideal_sqnr_db`` and ``model_mismatches``; or ``case`` and ``left_out``, why the device's
        configuration cannot run it.
    """
    rows = []
    with open_device("model", config=device.config) as model:
        for case in CASES if cases is None else cases:
            if progress is not None:
                progress(case.name)
            reason = _left_out(case, device.config)
            if reason:
                rows.append({"case": case.name, "left_out": reason})
            else:
                rows.append(_run(device, model, case, heads))
    return rows


def _left_out(case: Case, config: AcceleratorConfig) -> str:
    """Why a configuration cannot run a case, if it cannot."""
    if case.dim > config.max_head_dim:
        return f"max_head_dim is {config.max_head_dim}"
    if case.keys > config.max_sequence:
        return f"max_sequence is {config.max_sequence}"
    return ""


def _run(device: Device, model: Device, case: Case, heads: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    kv_heads = heads if case.kv_heads is None else min(case.kv_heads, heads)
    shapes = ((heads, case.queries), (kv_heads, case.keys), (kv_heads, case.keys))
    query, key, value = (rng.standard_normal((*shape, case.dim), np.float32) for shape in shapes)
    mask = {} if case.mask is None else case.mask(rng, case)
    step = device.config.query_lanes if case.resends else case.queries
    report, outputs, ideals, mismatches = None, [], [], 0
    for start in range(0, case.queries, step):
        job = plan_attention(
            *(device.config, query[:, start : start + step], key, value),
            enable_gqa=True,
            **mask,
        )
        raw = job.run(device)
        report = _added(report, device)
        outputs.append(raw.dequantize())
        ideals.append(ideal_attention(job))
        mismatches += int(np.count_nonzero(job.run(model).values != raw.values))
    reference = reference_attention(query, key, value, **mask)
    assert report is not None
    return {
        "case": case.name,
        "clocks": report.clocks,
        "utilization": report.utilization,
        "link_bytes": report.bytes_sent + report.bytes_received,
        "sqnr_db": metrics(reference, np.concatenate(outputs, axis=1))["sqnr_db"],
        "ideal_sqnr_db": metrics(reference, np.concatenate(ideals, axis=1))["sqnr_db"],
        "model_mismatches": mismatches,
    }


def _added(report: RunReport | None, device: Device) -> RunReport:
    """The report of the device's last run, after those before it."""
    last = device.report
    assert last is not None
    if report is None:
        return last
    useful = report.useful_macs + last.useful_macs
    whole = dataclasses.replace(report, useful_macs=useful)
    return whole.followed(last, device.config.multipliers)


def format_table(rows: Iterable[dict[str, Any]]) -> str:
    """The rows of `bench` in Markdown."""
    head = ("case", "clocks", "utilization", "link, MB", "SQNR, dB", "int8 rounding alone, dB")
    return markdown([*head, "mismatches"], map(_cells, rows))


def _cells(row: dict[str, Any]) -> tuple[Any, ...]:
    if "left_out" in row:
        return (f"{row['case']}: left out, {row['left_out']}", *[""] * 6)
    return (
        row["case"],
        row["clocks"] or "",
        "" if row["utilization"] is None else f"{row['utilization']:.3f}",
        f"{row['link_bytes'] / 1e6:.2f}",
        f"{row['sqnr_db']:.2f}",
        f"{row['ideal_sqnr_db']:.2f}",
        row["model_mismatches"],
    )
