"""``celosia verilog``: the accelerator, or a board's top module, as Verilog."""

from __future__ import annotations

import argparse
from pathlib import Path

from celosia_hw.boards import board
from celosia_hw.config import load

from .build import add_board
from .common import add_config, import_extra

__all__ = ["add_parser"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "verilog",
        help="write the accelerator as Verilog with AXI4-Stream ports, or the top of a board",
        description="Write Verilog-2005 of a configuration, with AXI4-Stream ports, its "
        "description, and what lint and other tools need beside it; or the top module of a board "
        "with its constraints.",
        allow_abbrev=False,
    )
    parser.set_defaults(function=_verilog)
    add_config(parser, None)
    add_board(parser, required=False)
    parser.add_argument(
        "--name",
        metavar="PREFIX",
        help="name of the top module and of the files, prefix of all other modules (celosia, or "
        "the board's)",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="folder to write to"
    )


def _verilog(arguments: argparse.Namespace) -> int:
    config = None if arguments.config is None else load(arguments.config)
    if arguments.board is not None:
        chosen = board(arguments.board)
        build = import_extra("celosia_hw.build", "build")
        paths = build.write_sources(chosen, arguments.output, config, arguments.name)
    else:
        block = import_extra("celosia_hw.block", "hw")
        config = load("default") if config is None else config
        name = "celosia" if arguments.name is None else arguments.name
        paths = block.write_block(config, arguments.output, name)
    for path in paths:
        print(path)
    return 0
