"""The command ``celosia``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

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

__all__ = ["main"]

# In the order of the help.
_COMMANDS = (run, bench, devices, board_sim, info, verilog, estimate, build, flash, cache)


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"celosia: error: {message}\n")


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
    try:
        return arguments.function(arguments)
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        return _fail(error)
    except KeyboardInterrupt:
        return 130


def _fail(error: BaseException) -> int:
    message = " ".join(str(error).split()) or type(error).__name__
    print(f"celosia: error: {message}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
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
