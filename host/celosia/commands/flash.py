"""``celosia flash``: load a bitstream into a board."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from celosia_hw.boards import Board, board
from celosia_hw.tools import find_tool, run_tool

from .build import add_board
from .common import InputError, Progress, import_extra

__all__ = ["add_parser"]

# Where to get a programmer, and its option for keeping the bitstream without power.
_PROGRAMMERS = {
    "openFPGALoader": (
        "sudo apt install openfpgaloader, or https://trabucayre.github.io/openFPGALoader",
        ("--write-flash",),
    ),
    # Writes flash memory in any case.
    "dfu-util": ("sudo apt install dfu-util", ()),
    "fujprog": ("https://github.com/kost/fujprog/releases", ("-j", "FLASH")),
}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "flash",
        help="load a bitstream into a board",
        description="Load a bitstream into a board with its usual programmer: openFPGALoader, "
        "fujprog or dfu-util.",
        allow_abbrev=False,
    )
    parser.set_defaults(function=_flash)
    add_board(parser)
    parser.add_argument("path", metavar="PATH", type=Path, help="bitstream, or folder of a build")
    parser.add_argument("--tool", choices=list(_PROGRAMMERS), help="the board's first if absent")
    parser.add_argument(
        "--permanent", action="store_true", help="write it to the board's flash memory"
    )


def _flow(chosen: Board) -> Any:
    """The open tools that build a board's bitstream, if there are any."""
    return import_extra("celosia_hw.build", "build").FLOWS.get(chosen.family)


def _flash(arguments: argparse.Namespace) -> int:
    chosen = board(arguments.board)
    commands = {command[0]: command[1:] for command in chosen.flash}
    tool = arguments.tool or next(iter(commands))
    if tool not in commands:
        raise InputError(f"{tool} does not load {chosen.name}: {', '.join(commands)}")
    path = arguments.path
    if path.is_dir():
        flow = _flow(chosen)
        path /= f"{chosen.module}.{flow.suffix if flow else 'bit'}"
    if not path.exists():
        makes = "build --board {} makes it"
        if _flow(chosen) is None:
            makes = "verilog --board {} writes what Vivado makes it from"
        raise InputError(f"no bitstream {path}: celosia {makes.format(chosen.name)}")
    where, permanent = _PROGRAMMERS[tool]
    command = [find_tool(tool, where), *(permanent if arguments.permanent else ())]
    command += [word.format(bitstream=path.resolve()) for word in commands[tool]]
    with Progress() as progress:
        run_tool(command, Path.cwd(), progress)
    print(f"{path} loaded into {chosen.title}")
    return 0
