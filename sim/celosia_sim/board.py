"""Whole boards, compiled: their tops with all pins, and a UART at the line, in simulated time."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from celosia_hw import boards
from celosia_hw.config import PRESETS, AcceleratorConfig
from celosia_hw.link_protocol import LinkConfig

from . import toolchain
from .errors import SimulationError
from .export import cached_verilog

__all__ = ["BoardDesign", "SimulatedBoard", "board_design", "plain_board"]

_CAPACITY = 1 << 16


@dataclass(frozen=True)
class BoardDesign:
    """A board's top, and what of it a simulation has to know.

    Parameters
    ----------
    name : str
    verilog : str
        With everything it needs, models of vendor primitives too.
    clocks_per_bit : Fraction
        Cycles of the pin ``clk`` in a bit of the line.
    top : str
        Name of the top module.
        Its pins are ``clk``, ``rx``, ``tx`` and those of `resets`; there is no other input.
    resets : mapping
        Pins that reset the board, and the level with which they do.
    leds : mapping
        Pins of LEDs, and the level with which they shine.
    """

    name: str
    verilog: str
    clocks_per_bit: Fraction
    top: str = "celosia"
    resets: Mapping[str, int] = field(default_factory=dict)
    leds: Mapping[str, int] = field(default_factory=dict)

    def build(self, progress: Callable[[str], None] | None = None) -> ctypes.CDLL:
        """The compiled simulation, from the cache or built.

        Raises
        ------
        SimulationError
            If a tool is missing or fails.
        """
        levels = (f"pins.{name}=(on)?{level}:{1 - level};" for name, level in self.resets.items())
        lit = [f"(pins.{led}=={level})<<{i}" for i, (led, level) in enumerate(self.leds.items())]
        library = toolchain.build_library(
            self.verilog,
            {"RESET(on)": "".join(levels), "LEDS": "|".join(lit) or "0"},
            harness="board_harness.cpp",
            top=self.top,
            label=self.name,
            progress=progress,
        )
        return _load(str(library))


def plain_board(
    config: AcceleratorConfig,
    link: LinkConfig | None = None,
    clocks_per_bit: int | Fraction = 2,
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


def board_design(name: str, progress: Callable[[str], None] | None = None) -> BoardDesign:
    """A board by its name, or a plain one by that of its preset.

    Raises
    ------
    ValueError
        If there is none of that name; the message lists those there are.
    """
    if name in boards.BOARDS:
        from .board_tops import real_board

        return real_board(boards.BOARDS[name], progress)
    if name not in PRESETS:
        known = ", ".join([*boards.BOARDS, *PRESETS])
        raise ValueError(f"unknown board {name!r}: choose one of {known}")
    return plain_board(PRESETS[name], progress=progress)


class _Slice(ctypes.Structure):
    """`Slice` of board_harness.cpp."""

    _fields_ = (
        ("input", ctypes.c_char_p),
        ("size", ctypes.c_uint64),
        ("sent", ctypes.c_uint64),
        ("output", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("received", ctypes.c_uint64),
        ("quiet", ctypes.c_uint64),
    )


class SimulatedBoard:
    """A board with a UART at its line, in simulated time.

    Parameters
    ----------
    design : BoardDesign
    progress : callable, optional
        Is told what is being built, if anything is.

    Attributes
    ----------
    clocks : int
        Simulated so far.
    quiet : int
        Clocks since anything happened on the line.
    to_board : bytearray
        Bytes that wait for the line.
    to_board_bytes, to_host_bytes : int
        On the line so far.

    Raises
    ------
    SimulationError
        If the simulation cannot be built.
    """

    def __init__(self, design: BoardDesign, progress: Callable[[str], None] | None = None) -> None:
        self.design = design
        self._library = design.build(progress)
        bit = design.clocks_per_bit
        self._handle: int | None = self._library.board_create(bit.numerator, bit.denominator)
        self._output = ctypes.create_string_buffer(_CAPACITY)
        self.to_board = bytearray()
        self.to_board_bytes = self.to_host_bytes = self.clocks = self.quiet = 0
        self._break_until = 0

    def run(self, clocks: int) -> bytes:
        """Simulate for some clocks; what the board has sent."""
        broken = min(max(self._break_until - self.clocks, 0), clocks)
        return self._run(broken, True) + self._run(clocks - broken, False)

    def _run(self, clocks: int, is_break: bool) -> bytes:
        if not clocks:
            return b""
        data = bytes(self.to_board[:_CAPACITY])
        work = _Slice(
            input=data,
            size=len(data),
            output=ctypes.addressof(self._output),
            capacity=_CAPACITY,
        )
        self._library.board_run(self._open, ctypes.byref(work), clocks, is_break)
        self.clocks = self._library.board_clocks(self._open)
        self.quiet = work.quiet
        del self.to_board[: work.sent]
        self.to_board_bytes += work.sent
        self.to_host_bytes += work.received
        return ctypes.string_at(self._output, work.received)

    def reset(self) -> None:
        """Reset the board, by its reset pins."""
        self._library.board_reset(self._open)

    def send_break(self, bits: int = 20) -> None:
        """Hold the line to the board low for a while."""
        self._break_until = self.clocks + int(bits * self.design.clocks_per_bit)

    @property
    def shining(self) -> set[str]:
        """The LEDs that shine now, by the names of their pins."""
        lit = self._library.board_leds(self._open)
        return {name for bit, name in enumerate(self.design.leds) if lit >> bit & 1}

    def close(self) -> None:
        """Free the simulation; closing twice does nothing."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._library.board_destroy(handle)

    @property
    def _open(self) -> int:
        if self._handle is None:
            raise SimulationError("the simulation is closed")
        return self._handle


@functools.cache
def _load(path: str) -> ctypes.CDLL:
    handle, number = ctypes.c_void_p, ctypes.c_uint64
    functions = {
        "create": (handle, (number, number)),
        "destroy": (None, (handle,)),
        "reset": (None, (handle,)),
        "clocks": (number, (handle,)),
        "leds": (number, (handle,)),
        "run": (None, (handle, ctypes.POINTER(_Slice), number, ctypes.c_int)),
    }
    return toolchain.load_library(path, "board", functions)
