"""``celosia info``: what follows from a configuration."""

from __future__ import annotations

import argparse

from celosia_hw.arithmetic import Widths
from celosia_hw.config import load

from ..text import aligned
from .common import add_config

__all__ = ["add_parser"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "info",
        help="print what follows from a configuration",
        description="Print parameters, derived widths, memories and peak rate of a configuration.",
        allow_abbrev=False,
    )
    parser.set_defaults(function=_info)
    add_config(parser)


def _info(arguments: argparse.Namespace) -> int:
    config = load(arguments.config)
    memories = config.memory_bits
    dim = config.max_head_dim
    sections = {
        f"configuration {arguments.config}": config.to_dict(),
        "derived widths (bits)": vars(Widths(config)),
        "memories (bits)": {**memories, "total": sum(memories.values())},
        "rate": {
            "multipliers": f"{config.multipliers} in the arrays",
            "peak MACs per clock": config.multipliers,
            "clocks per key tile": f"{config.pitch(dim, dim)} at head dim {dim}",
            "results per clock": config.output_lanes,
            "link": f"{config.link_bits} bits per clock each way",
            "key capacity": f"{config.key_capacity} in {config.key_banks} banks",
        },
    }
    for number, (title, values) in enumerate(sections.items()):
        rows = [
            (f"  {name}", f"{value:,}" if isinstance(value, int) else str(value))
            for name, value in values.items()
        ]
        print(("\n" if number else "") + title + "\n" + aligned(rows))
    return 0
