"""``celosia build``: the bitstream of a board."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from celosia_hw.boards import BOARDS, board
from celosia_hw.config import load

from ..text import aligned
from .common import Progress, add_config, import_extra, natural, to_json

__all__ = ["add_board", "add_parser"]


def add_board(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """Add the option that names a board, for `celosia_hw.boards.board`."""
    parser.add_argument("--board", metavar="NAME", required=required, help=", ".join(BOARDS))


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "build",
        help="build the bitstream of a board",
        description="Synthesise, place and route a board's top module with open tools and write "
        "its bitstream; print resources, clock and peak rate. A design that is too slow for its "
        "clock is an error.",
        allow_abbrev=False,
    )
    parser.set_defaults(function=_build)
    add_board(parser)
    add_config(parser, None)
    parser.add_argument("--seed", metavar="N", type=natural, default=1, help="of the placement (1)")
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="folder to write to"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _build(arguments: argparse.Namespace) -> int:
    chosen = board(arguments.board)
    config = None if arguments.config is None else load(arguments.config)
    tools = import_extra("celosia_hw.build", "build")
    with Progress() as progress:
        result = tools.build(chosen, arguments.output, config, arguments.seed, progress)
    print(to_json(result.to_dict()) if arguments.json else _table(result, chosen.title))
    return 0


def _table(result: Any, title: str) -> str:
    config = result.config
    path = ", ".join(f"{name} {delay:.2f} ns" for name, delay in result.critical_path)
    used = [
        (cell, f"{count:,} of {available:,}")
        for cell, (count, available) in sorted(result.utilization.items())
        if count
    ]
    arrays = f"two of {config.key_rows} x {config.query_lanes}, {config.multipliers} MAC"
    rows = [
        *used,
        ("arrays", arrays),
        ("clock", f"{result.clock_mhz:g} MHz, {result.fmax:.1f} MHz after routing"),
        ("critical path", path),
        ("peak", f"{result.peak_gmacs:.2f} GMAC/s"),
        ("bitstream", str(result.bitstream)),
    ]
    return f"{title}\n\n{aligned(rows)}"
