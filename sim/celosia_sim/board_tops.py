"""The tops of real boards as designs of virtual ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from celosia_hw.boards import Board
from celosia_hw.link_protocol import bit_rate

from .board import BoardDesign
from .export import cached_verilog

__all__ = ["CELLS", "cells", "real_board"]

CELLS = Path(__file__).with_name("cells")
"""Models of the primitives of FPGA vendors, a file each."""


def cells(verilog: str) -> str:
    """The models of the primitives that a design uses."""
    used = set(re.findall(r"^ *(\w+) (?:#\(|\w+ \()", verilog, re.MULTILINE))
    return "\n".join(path.read_text() for path in sorted(CELLS.glob("*.v")) if path.stem in used)


def real_board(
    board: Board,
    progress: Callable[[str], None] | None = None,
) -> BoardDesign:
    """A board's own top, the one that its bitstream is built from.

    The PLL's model passes on the clock of its pin, which therefore has the frequency of the
    accelerator's.

    Parameters
    ----------
    board : Board
    progress : callable, optional
        Is told what is being done, if anything is.
    """

    def write() -> str:
        from celosia_hw.boards.top import BoardTop
        from celosia_hw.verilog import Target, convert

        return convert(BoardTop(board), Target(board.module, board.family))

    verilog = cached_verilog(board.name, [repr(board)], write, progress)
    from celosia_hw.boards.pins import locate

    pins = locate(board)
    (button,) = [pin for pin in pins if pin.port == "button"]
    leds = [pin for pin in pins if pin.port.startswith("led_")]
    return BoardDesign(
        board.name,
        verilog + cells(verilog),
        bit_rate(board.clock_hz, board.baud),
        top=board.module,
        resets={"button": int(not button.is_inverted)},
        leds={pin.port: int(not pin.is_inverted) for pin in leds},
    )
