"""Time of an attention on each board: ``python docs/measure_boards.py``.

Prints the second table of docs/boards.md; takes some minutes. The input is that of ``celosia run``:
3 query heads of layer 17 of SmolLM2-135M, 128 tokens, head dimension 64, causal. Bytes on the line
are counted on a virtual board with the board's configuration, clocks in the simulation of its
accelerator without a link. The time is that of the line's busier direction and of all clocks, one
after the other: what overlaps makes it shorter. Arguments restrict it to boards of these names.
"""

from __future__ import annotations

import argparse
import sys

from celosia import open_device, run_attention
from celosia.commands.inputs import Input, add_options, read_input
from celosia.link_overhead import measure
from celosia.text import markdown, markdown_row
from celosia_hw.boards import BOARDS, Board


def row(board: Board, tensors: Input) -> str:
    """A line of the table."""

    def tell(text: str) -> None:
        print(f"\r\x1b[K{text}"[:120], end="", file=sys.stderr)

    line = measure(tensors, board.config, board.link, progress=tell)
    options = {**tensors.mask, "enable_gqa": len(tensors.key) != len(tensors.query)}
    with open_device("sim", config=board.config, progress=tell) as device:
        run_attention(tensors.query, tensors.key, tensors.value, device=device, **options)
        assert device.report is not None
        clocks = device.report.clocks
    core = clocks / board.clock_hz
    total = line.seconds + core
    fields = [f"`{board.name}`", f"{line.line_bytes:,}", f"{line.seconds:.3f}", f"{clocks:,}"]
    fields += [f"{1000 * core:.2f}", f"{total:.3f}", f"{line.seconds / total:.3f}"]
    print("\r\x1b[K", end="", file=sys.stderr)
    return markdown_row(fields)


def main() -> None:
    """Measure, and print a line as soon as it is known."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    tensors = read_input(parser.parse_args([]))
    head = ["board", "bytes on the line", "line, s", "clocks", "accelerator, ms", "both, s"]
    head.append("share of the line")
    print(markdown(head, []))
    for board in BOARDS.values():
        if board.name in (sys.argv[1:] or BOARDS):
            print(row(board, tensors), flush=True)


if __name__ == "__main__":
    main()
