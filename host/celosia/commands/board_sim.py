"""``celosia board-sim``: a board without the board."""

from __future__ import annotations

import argparse
import contextlib

from celosia_hw.boards import BOARDS
from celosia_hw.config import PRESETS

from .common import Progress, import_extra

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
    parser.add_argument(
        "board",
        metavar="NAME",
        help=f"{', '.join(BOARDS)}, or a preset on a plain board: {', '.join(PRESETS)}",
    )


def _board_sim(arguments: argparse.Namespace) -> int:
    designs = import_extra("celosia_sim.board", "sim")
    virtual = import_extra("celosia_sim.virtual_board", "sim")
    with Progress() as progress:
        board = virtual.VirtualBoard(designs.board_design(arguments.board, progress))
    print(board.path, flush=True)
    with contextlib.closing(board), contextlib.suppress(KeyboardInterrupt):
        board.serve()
    return 0
