"""Boards without the board: the whole top, compiled, behind a pseudo-terminal.

The host's driver talks to it through the operating system's serial layer, as to a real one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import TracebackType

from celosia_hw import boards
from celosia_hw.config import PRESETS, AcceleratorConfig
from celosia_hw.link_protocol import LinkConfig

from . import toolchain
from .errors import SimulationError
from .export import cached_verilog

__all__ = ["BOARDS", "BoardDesign", "Line", "VirtualBoard", "board_design", "plain_board"]

_SLICE_SECONDS = 0.002
_CAPACITY = 1 << 16
_AHEAD = 512
"""Bytes taken from the host before the line has room for them, as a USB converter does."""
_DROPPED = 1 << 16
"""Bytes for a host that does not read; what is more is lost."""
_QUIET_CLOCKS, _ASLEEP_CLOCKS = 1 << 18, 1 << 22
"""Clocks without anything on the line after which the simulation slows down, and nearly stops."""


@dataclass(frozen=True)
class BoardDesign:
    """A board's top, and what of it a simulation has to know.

    Parameters
    ----------
    name : str
    verilog : str
        With everything it needs, models of vendor primitives too.
    clocks_per_bit : Fraction
        Cycles of the pin `clock` in a bit of the line.
    top : str
        Name of the top module.
    clock, rx, tx : str
        Its pins; `rx` and `tx` as the board sees them.
    resets : mapping
        Pins that reset the board, and the level with which they do.
    others : mapping
        Levels of all other inputs.
    """

    name: str
    verilog: str
    clocks_per_bit: Fraction
    top: str = "celosia"
    clock: str = "clk"
    rx: str = "rx"
    tx: str = "tx"
    resets: Mapping[str, int] = field(default_factory=dict)
    others: Mapping[str, int] = field(default_factory=dict)

    def build(self, progress: Callable[[str], None] | None = None) -> ctypes.CDLL:
        """The compiled simulation, from the cache or built.

        Raises
        ------
        SimulationError
            If a tool is missing or fails.
        """
        others = "".join(f"pins.{name}={level};" for name, level in self.others.items())
        defines = {"PIN_CLOCK": self.clock, "PIN_RX": self.rx, "PIN_TX": self.tx}
        defines["OTHER_PINS"] = others
        if self.resets:
            levels = (
                f"pins.{name}=(on)?{level}:{1 - level};" for name, level in self.resets.items()
            )
            defines["RESET(on)"] = "".join(levels)
        library = toolchain.build_library(
            self.verilog,
            defines,
            harness="board_harness.cpp",
            top=self.top,
            label=self.name,
            progress=progress,
        )
        return _load(str(library))


def plain_board(
    config: AcceleratorConfig,
    link: LinkConfig | None = None,
    clocks_per_bit: int | Fraction = 4,
    progress: Callable[[str], None] | None = None,
) -> BoardDesign:
    """The design that all boards have in common: `SerialAccelerator`, and a reset.

    Parameters
    ----------
    config : AcceleratorConfig
    link : LinkConfig, optional
    clocks_per_bit : int or Fraction
        At least 2; few make the simulation fast.
    """
    sizes = link if link is not None else LinkConfig()
    bit = Fraction(clocks_per_bit)

    def write() -> str:
        from celosia_hw.serial_accelerator import SerialAccelerator
        from celosia_hw.verilog import Target, convert

        return convert(SerialAccelerator(config, sizes, bit), Target())

    name = f"board-{config.key_rows}x{config.query_lanes}"
    verilog = cached_verilog(name, [repr(config), repr(sizes), str(bit)], write, progress)
    return BoardDesign(name, verilog, bit, resets={"rst": 1})


BOARDS: dict[str, Callable[[Callable[[str], None] | None], BoardDesign]] = {
    name: functools.partial(lambda config, progress: plain_board(config, progress=progress), config)
    for name, config in PRESETS.items()
}
"""Plain boards of the presets by their names, as functions of `progress`."""


def board_design(name: str, progress: Callable[[str], None] | None = None) -> BoardDesign:
    """Look a board up.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists those there are.
    """
    if name in boards.BOARDS:
        from .board_tops import real_board

        return real_board(boards.BOARDS[name], progress)
    if name not in BOARDS:
        known = ", ".join([*boards.BOARDS, *BOARDS])
        raise ValueError(f"unknown board {name!r}: choose one of {known}")
    return BOARDS[name](progress)


class Line:
    """What is between the pseudo-terminal and the board's pins: nothing, unless overridden.

    Its methods are called between slices of the simulation, some hundred times a second, also when
    there are no bytes.
    """

    def to_board(self, data: bytes) -> bytes:
        """What becomes of bytes on their way to the board."""
        return data

    def to_host(self, data: bytes) -> bytes:
        """What becomes of bytes on their way to the host."""
        return data

    def step(self, board: VirtualBoard) -> None:
        """What else happens to the board."""


class _Slice(ctypes.Structure):
    """`Slice` of board_harness.cpp."""

    _fields_ = (
        ("input", ctypes.c_char_p),
        ("size", ctypes.c_uint64),
        ("sent", ctypes.c_uint64),
        ("output", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("received", ctypes.c_uint64),
        ("errors", ctypes.c_uint64),
        ("quiet", ctypes.c_uint64),
    )


class VirtualBoard:
    """A board at a pseudo-terminal, in a thread of this process.

    In a ``with`` block it is served until the end.

    Parameters
    ----------
    design : BoardDesign
    line : Line, optional
        What happens to the bytes on their way.
    progress : callable, optional
        Is told what is being built, if anything is.

    Attributes
    ----------
    path : str
        Of the device that the host opens.
    to_board_bytes, to_host_bytes : int
        On the line so far.
    clocks : int
        Simulated so far.

    Raises
    ------
    SimulationError
        If the simulation cannot be built.
    """

    def __init__(
        self,
        design: BoardDesign,
        line: Line | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        import pty
        import tty

        self.design = design
        self._line = line or Line()
        self._library = design.build(progress)
        bit = design.clocks_per_bit
        self._handle = self._library.board_create(bit.numerator, bit.denominator)
        # The board keeps the host's side open too: a host may come and go.
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        self.to_board_bytes = self.to_host_bytes = self.clocks = 0
        self._to_board, self._to_host = bytearray(), bytearray()
        self._output = ctypes.create_string_buffer(_CAPACITY)
        self._slice_clocks = 2000
        self._break_until = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def serve(self, seconds: float | None = None) -> None:
        """Serve until `stop` is called from elsewhere, or for some time."""
        end = None if seconds is None else time.monotonic() + seconds
        while not self._stop.is_set() and (end is None or time.monotonic() < end):
            self._step()

    def stop(self) -> None:
        """Let `serve` return."""
        self._stop.set()

    def reset(self) -> None:
        """Reset the board, by its reset pin if it has one; from within `Line.step`."""
        self._library.board_reset(self._handle)

    def send_break(self, bits: int = 20) -> None:
        """Hold the line to the board low; from within `Line.step`."""
        self._break_until = self.clocks + int(bits * self.design.clocks_per_bit)

    def close(self) -> None:
        """Stop and free everything; the host sees its cable go."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.board_destroy(handle)
            os.close(self._master)
            os.close(self._slave)

    def __enter__(self) -> VirtualBoard:
        self._thread = threading.Thread(target=self._serve, name=self.design.name, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
        if self._failure is not None and exception is None:
            raise SimulationError("the virtual board failed") from self._failure

    def _serve(self) -> None:
        try:
            self.serve()
        except BaseException as error:
            self._failure = error

    def _step(self) -> None:
        self._take()
        data = bytes(self._to_board[:_CAPACITY])
        work = _Slice(
            input=data,
            size=len(data),
            output=ctypes.addressof(self._output),
            capacity=_CAPACITY,
        )
        is_break = self.clocks < self._break_until
        start = time.perf_counter()
        self._library.board_run(self._handle, ctypes.byref(work), self._slice_clocks, is_break)
        took = max(time.perf_counter() - start, 1e-6)
        clocks = self._library.board_clocks(self._handle)
        rate, self.clocks = (clocks - self.clocks) / took, clocks
        self._slice_clocks = min(max(int(rate * _SLICE_SECONDS), 500), 1 << 20)
        del self._to_board[: work.sent]
        self.to_board_bytes += work.sent
        self.to_host_bytes += work.received
        received = self._line.to_host(ctypes.string_at(self._output, work.received))
        self._to_host += received[: max(_DROPPED - len(self._to_host), 0)]
        self._give()
        self._line.step(self)
        if work.quiet > _QUIET_CLOCKS and not self._to_board:
            select.select([self._master], [], [], 0.2 if work.quiet > _ASLEEP_CLOCKS else 0.005)

    def _take(self) -> None:
        data = b""
        if len(self._to_board) < _AHEAD:
            with contextlib.suppress(BlockingIOError):
                data = os.read(self._master, _AHEAD)
        self._to_board += self._line.to_board(data)

    def _give(self) -> None:
        if self._to_host:
            with contextlib.suppress(BlockingIOError):
                del self._to_host[: os.write(self._master, self._to_host)]


@functools.cache
def _load(path: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise SimulationError(f"cannot load {path}, delete it to build it anew: {error}") from None
    handle, number = ctypes.c_void_p, ctypes.c_uint64
    for name, result, arguments in (
        ("create", handle, (number, number)),
        ("destroy", None, (handle,)),
        ("reset", None, (handle,)),
        ("clocks", number, (handle,)),
        ("run", None, (handle, ctypes.POINTER(_Slice), number, ctypes.c_int)),
    ):
        function = getattr(library, f"board_{name}")
        function.restype, function.argtypes = result, arguments
    return library
