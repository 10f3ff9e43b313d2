"""``celosia bench``: utilization and accuracy over shapes and masks."""

from __future__ import annotations

import argparse

from ..bench import bench, format_table
from ..device import open_device
from .common import Progress, to_json

__all__ = ["add_parser"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "bench",
        help="print utilization and accuracy over shapes and masks",
        description="Run 8 heads of N(0, 1) input over shapes and masks, and compare them with "
        "float32 attention and with the integer model.",
        allow_abbrev=False,
    )
    parser.set_defaults(function=_bench)
    parser.add_argument(
        "--device", metavar="SPEC", default="sim:default", help="as for run; sim:default if absent"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")


def _bench(arguments: argparse.Namespace) -> int:
    with (
        Progress() as progress,
        open_device(arguments.device, progress=progress) as device,
    ):
        rows = bench(device, progress=progress)
    print(to_json(rows) if arguments.json else format_table(rows))
    return 1 if any(row.get("model_mismatches") for row in rows) else 0
