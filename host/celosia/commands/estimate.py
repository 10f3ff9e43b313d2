"""``celosia estimate``: area and speed of the accelerator on a target."""

from __future__ import annotations

import argparse
from typing import Any

from celosia_hw.config import load

from ..text import aligned
from .common import Progress, add_config, import_extra, to_json

__all__ = ["add_parser"]

_TARGETS = ("ecp5", "ice40", "gowin", "xilinx7", "asic")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "estimate",
        help="synthesise the accelerator for a target and print area and speed",
        description="Synthesise a configuration with Yosys and, where there is an open placer, "
        "place and route it; print cells, clock frequency and critical path by component.",
        allow_abbrev=False,
    )
    parser.set_defaults(function=_estimate)
    add_config(parser)
    parser.add_argument("--target", choices=_TARGETS, required=True)
    parser.add_argument("--no-place", action="store_true", help="synthesise only")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _estimate(arguments: argparse.Namespace) -> int:
    config = load(arguments.config)
    estimates = import_extra("celosia_hw.estimate", "build")
    with Progress() as progress:
        result = estimates.estimate(config, arguments.target, progress, not arguments.no_place)
    if arguments.json:
        print(to_json(result.to_dict()))
    else:
        print(_table(result, f"{arguments.config} on {estimates.TARGETS[arguments.target].name}"))
    return 0


def _table(result: Any, title: str) -> str:
    kinds = list(result.total)
    lines = [title, ""]
    rows = [("component", "".join(f"{kind:>11}" for kind in kinds))]
    ordered = sorted(result.cells.items(), key=lambda item: -sum(item[1].values()))
    for name, cells in [*ordered, ("total", result.total)]:
        rows.append((name, "".join(f"{cells[kind]:>11,}" for kind in kinds)))
    lines.append(aligned(rows))
    facts = []
    for kind in ("LUT", "FF"):
        if result.total[kind]:
            facts.append((f"{kind} per MAC", f"{result.total[kind] / result.multipliers:.0f}"))
    if result.memory_bits is not None:
        facts.append(("memory bits, not in the area", f"{result.memory_bits:,}"))
    if result.fmax is not None:
        facts.append(("clock", f"{result.fmax:.1f} MHz"))
        path = ", ".join(f"{name} {delay:.2f} ns" for name, delay in result.critical_path)
        facts.append(("critical path", path or "not told"))
    for name, fmax in sorted(result.component_fmax.items(), key=lambda item: item[1])[:8]:
        facts.append((f"  into {name}", f"{fmax:.1f} MHz"))
    if result.remark:
        facts.append(("remark", result.remark))
    return "\n".join([*lines, "", aligned(facts)])
