"""The command ``celosia``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__
from .commands import (
    bench,
    board_sim,
    build,
    cache,
    devices,
    estimate,
    flash,
    info,
    run,
    verilog,
)
from .commands.common import Parser, guarded

__all__ = ["main"]

# In the order of the help.
_COMMANDS = (run, bench, devices, board_sim, info, verilog, estimate, build, flash, cache)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if absent.

    Returns
    -------
    int
        Exit status: 0, 1 if a result differs from the integer model's, 2 for an error. Wrong
        usage raises SystemExit with status 2.
    """
    arguments = _parser().parse_args(argv)
    return guarded(lambda: arguments.function(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="celosia",
        description="Run attention on an int8 accelerator, simulated cycle by cycle.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"celosia {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
