"""``celosia board-sim``: a board without the board."""

from __future__ import annotations

import argparse
import sys

from .common import Progress

__all__ = ["add_parser"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "board-sim",
        help="serve a simulated board at a pseudo-terminal",
        description="Simulate a whole board, pins and UART included, and serve it at a "
        "pseudo-terminal until stopped. It prints the device's path; run --device serial:PATH "
        "talks to it as to a real board.",
        allow_abbrev=False,
    )
    parser.set_defaults(function=_board_sim)
    parser.add_argument("board", metavar="NAME", help="a board, or a preset on a plain one")


def _board_sim(arguments: argparse.Namespace) -> int:
    try:
        from celosia_sim.board import board_design
        from celosia_sim.virtual_board import VirtualBoard
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("celosia"):
            raise
        raise ImportError(
            f'board-sim needs the package {error.name}: pip install "celosia[sim]"'
        ) from error
    progress = Progress(sys.stderr)
    try:
        board = VirtualBoard(board_design(arguments.board, progress))
    finally:
        progress.clear()
    print(board.path, flush=True)
    try:
        board.serve()
    except KeyboardInterrupt:
        pass
    finally:
        board.close()
    return 0
