"""Bytes on the serial line for real tensors: ``python -m celosia.link_overhead FILE.npz ...``.

Runs each file's attention on a virtual board and divides the bytes on the line, in both directions
and with everything that the link adds, by those of int8 Q, K, V and int16 O. Keys and values behind
``key_length`` are not sent and not counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from celosia_hw.config import AcceleratorConfig, preset
from celosia_hw.link_protocol import LinkConfig

from .attention import run_attention
from .commands.common import Parser, Progress, guarded
from .commands.inputs import Input, read_npz
from .device import Device, open_device
from .serial_transport import DEFAULT_BAUD, SerialTransport
from .text import markdown

__all__ = ["Overhead", "format_overheads", "measure"]

_QUIET_CLOCKS = 1 << 14
"""Clocks without anything on the line after which nothing more comes."""


@dataclass(frozen=True)
class Overhead:
    """Bytes of one attention.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Heads, heads of keys, queries, keys that are attended to, head dimension.
    tensor_bytes : int
        Of int8 Q, K and V and int16 O.
    packet_bytes : int
        Of all packets, headers and factors included.
    line_bytes : int
        On the line, in both directions.
    seconds : float
        That these take at 3 Mbaud, each direction by itself: the longer one.
    mismatches : int
        Results that differ from the integer model's.
    """

    name: str
    shape: tuple[int, ...]
    tensor_bytes: int
    packet_bytes: int
    line_bytes: int
    seconds: float
    mismatches: int


def measure(
    tensors: Input,
    config: AcceleratorConfig | None = None,
    link: LinkConfig | None = None,
    progress: Callable[[str], None] | None = None,
) -> Overhead:
    """Run an attention on a virtual board and count bytes.

    Parameters
    ----------
    tensors : Input
    config : AcceleratorConfig, optional
        "small" if absent.
    link : LinkConfig, optional
        Sizes of the board's link; the default's if absent.
    progress : callable, optional
        Is told what is done.
    """
    from celosia_sim.board import plain_board
    from celosia_sim.virtual_board import VirtualBoard

    config = config or preset("small")
    parts = (tensors.query, tensors.key, tensors.value)
    options = {**tensors.mask, "enable_gqa": len(tensors.key) != len(tensors.query)}
    design = plain_board(config, link, progress=progress)
    with VirtualBoard(design, progress=progress) as virtual:
        board = virtual.board

        def line_time() -> float:
            """Seconds of the simulated line: what is sent must not depend on this machine."""
            return board.clocks / float(design.clocks_per_bit) / DEFAULT_BAUD

        transport = SerialTransport(virtual.path, DEFAULT_BAUD, timeout=60.0, clock=line_time)

        def tiles(done: int, total: int) -> None:
            if progress is not None:
                progress(f"{done} of {total} query tiles")

        with Device(transport, progress=tiles) as device:
            before = board.to_board_bytes, board.to_host_bytes
            output = run_attention(*parts, device=device, **options)
            while board.quiet < _QUIET_CLOCKS:  # a last acknowledgement
                time.sleep(0.01)
            after = board.to_board_bytes, board.to_host_bytes
            report = device.report
    with open_device("model", config=config) as model:
        expected = run_attention(*parts, device=model, **options)
    assert report is not None
    sent, received = (b - a for a, b in zip(before, after, strict=True))
    heads, queries, dim = tensors.query.shape
    key_heads, keys, value_dim = tensors.value.shape
    used = int(np.max(options.get("key_length") or keys))
    return Overhead(
        tensors.name,
        (heads, key_heads, queries, used, dim),
        heads * queries * dim
        + key_heads * used * (dim + value_dim)
        + 2 * heads * queries * value_dim,
        report.bytes_sent + report.bytes_received,
        sent + received,
        10 * max(sent, received) / DEFAULT_BAUD,
        int(np.count_nonzero(output != expected)),
    )


def format_overheads(overheads: Sequence[Overhead]) -> str:
    """A Markdown table."""
    head = ("tensors", "heads, of K", "queries x keys", "E", "tensor bytes", "packets")
    rows = []
    for one in overheads:
        heads, key_heads, queries, keys, dim = one.shape
        cells = (
            *(one.name, f"{heads}, {key_heads}", f"{queries} x {keys}", dim),
            f"{one.tensor_bytes:,}",
            f"{one.packet_bytes / one.tensor_bytes:.4f}",
            f"{one.line_bytes / one.tensor_bytes:.4f}",
            f"{one.seconds:.2f}",
        )
        rows.append(cells)
    return markdown([*head, "on the line", "s"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its status is 1 if a result is wrong."""
    parser = Parser(prog="python -m celosia.link_overhead", description=__doc__, allow_abbrev=False)
    parser.add_argument("files", metavar="FILE.npz", nargs="+", type=Path)
    arguments = parser.parse_args(argv)

    def run() -> int:
        with Progress() as progress:
            tensors = [read_npz(path, path.stem) for path in arguments.files]
            overheads = [measure(one, progress=progress) for one in tensors]
        print(format_overheads(overheads))
        return 1 if any(one.mismatches for one in overheads) else 0

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
