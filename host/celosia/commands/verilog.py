"""``celosia verilog``: the accelerator as a block of Verilog."""

from __future__ import annotations

import argparse
from pathlib import Path

from celosia_hw.config import load

from .common import InputError, add_config

__all__ = ["add_parser"]


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "verilog",
        help="write the accelerator as Verilog with AXI4-Stream ports",
        description="Write Verilog-2005 of a configuration, with AXI4-Stream ports, its "
        "description, and what lint and other tools need beside it.",
        allow_abbrev=False,
    )
    parser.set_defaults(function=_verilog)
    add_config(parser)
    parser.add_argument(
        "--name",
        metavar="PREFIX",
        default="celosia",
        help="name of the top module and of the files, prefix of all other modules (celosia)",
    )
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, required=True, help="folder to write to"
    )


def _verilog(arguments: argparse.Namespace) -> int:
    config = load(arguments.config)
    try:
        from celosia_hw.block import write_block
    except ModuleNotFoundError as error:
        raise InputError(
            f'the package {error.name} is missing: pip install "celosia[hw]"'
        ) from None
    for path in write_block(config, arguments.output, arguments.name):
        print(path)
    return 0
