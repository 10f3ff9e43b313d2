"""Cycle-accurate simulation as compiled code: Verilator's C++ in this process, at full speed."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import time
from collections.abc import Callable, Generator
from os import PathLike
from pathlib import Path

from celosia_hw.config import AcceleratorConfig

from . import toolchain
from .errors import SimulationError
from .export import accelerator_label, accelerator_verilog
from .transport import Slice, StreamTransport, patience

__all__ = ["CompiledSimulation", "CompiledTransport"]

_SLICE_SECONDS = 0.1
_MAX_SLICE_CLOCKS = 200_000
_RESULT_WORDS = 1 << 14


class _Exchange(ctypes.Structure):
    """`Exchange` of harness.cpp."""

    _fields_ = (
        ("command", ctypes.c_char_p),
        ("command_ends", ctypes.c_char_p),
        ("words", ctypes.c_uint64),
        ("sent", ctypes.c_uint64),
        ("result", ctypes.c_void_p),
        ("result_ends", ctypes.c_void_p),
        ("capacity", ctypes.c_uint64),
        ("received", ctypes.c_uint64),
        ("replies", ctypes.c_uint64),
        ("idle", ctypes.c_uint64),
        ("first_command", ctypes.c_uint64),
        ("last_command", ctypes.c_uint64),
        ("last_result", ctypes.c_uint64),
    )


class CompiledSimulation(StreamTransport):
    """A transport to any design with the ports of an accelerator, given as Verilog.

    Parameters
    ----------
    verilog : str
        Design with the top module ``celosia`` and the ports of
        `celosia_hw.axi_stream.AxiStreamAccelerator`.
    link_bytes : int
        Bytes of a link word: 4, 8, 16, 32 or 64.
    idle_clocks : int
        Clocks without a word in either direction after which an exchange is given up.
    trace : path, optional
        Waveform file to write, ``.vcd`` or ``.fst``; the latter needs the headers of lz4 and zlib
        to build. 10 time units are a clock.
    stall_seed : int, optional
        Seed of the random stalls.
    command_stall, result_stall : float
        Probabilities, below 1, with which in each clock the command's valid (until it is raised)
        and the result's ready are withheld.
    label : str
        Names the design in the cache and in messages.
    progress : callable, optional
        Is told what is being built, if anything is.

    Raises
    ------
    SimulationError
        If a tool is missing or the simulation cannot be built.
    OSError
        If the waveform file cannot be written.
    ValueError
        If a parameter is out of its range.
    """

    def __init__(
        self,
        verilog: str,
        link_bytes: int,
        *,
        idle_clocks: int = 200_000,
        trace: str | PathLike[str] | None = None,
        stall_seed: int | None = None,
        command_stall: float = 0.0,
        result_stall: float = 0.0,
        label: str = "design",
        progress: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(link_bytes, idle_clocks)
        self._handle: int | None = None
        if link_bytes not in (4, 8, 16, 32, 64):
            raise ValueError(f"link_bytes must be 4, 8, 16, 32 or 64, not {link_bytes}")
        for name, value in (("command_stall", command_stall), ("result_stall", result_stall)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {value}")
            if value and stall_seed is None:
                raise ValueError(f"{name} needs a stall_seed")
        trace_format = _trace_format(trace)
        library = toolchain.build_library(
            verilog,
            {"LINK_BYTES": link_bytes},
            trace=trace_format,
            label=label,
            progress=progress,
        )
        if trace is not None:
            Path(trace).open("wb").close()  # Verilator would go on without a word
        self._library = _load(str(library))
        self._handle = self._library.celosia_create(
            str(trace).encode() if trace is not None else None,
            (stall_seed or 0) & (2**64 - 1),
            command_stall,
            result_stall,
        )
        self._result = ctypes.create_string_buffer(_RESULT_WORDS * link_bytes)
        self._result_ends = ctypes.create_string_buffer(_RESULT_WORDS)
        self._slice_clocks = 1000

    def close(self) -> None:
        """Free the simulation and finish the waveform file; closing twice does nothing."""
        if self._handle is not None:
            self._library.celosia_destroy(self._handle)
            self._handle = None

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # never got as far as being created
            self.close()

    def _reset(self) -> None:
        self._library.celosia_reset(self._open())

    def _open(self) -> int:
        if self._handle is None:
            raise SimulationError("the simulation is closed")
        return self._handle

    def _run(self, data: bytes, ends: bytes, replies: int) -> Generator[Slice, None, None]:
        exchange = _Exchange(
            command=data,
            command_ends=ends,
            words=len(ends),
            result=ctypes.addressof(self._result),
            result_ends=ctypes.addressof(self._result_ends),
            capacity=_RESULT_WORDS,
            replies=max(replies, 0),
        )
        while exchange.sent < exchange.words or exchange.replies:
            exchange.received = 0
            before, start = self.total_clocks, time.perf_counter()
            self._library.celosia_run(
                self._open(), ctypes.byref(exchange), self._slice_clocks, self.idle_clocks
            )
            self.total_clocks = self._library.celosia_clocks(self._open())
            rate = (self.total_clocks - before) / max(time.perf_counter() - start, 1e-6)
            self._slice_clocks = min(max(int(rate * _SLICE_SECONDS), 100), _MAX_SLICE_CLOCKS)
            last = exchange.last_result if replies > 0 else exchange.last_command
            yield Slice(
                ctypes.string_at(self._result, exchange.received * self.link_bytes),
                ctypes.string_at(self._result_ends, exchange.received),
                exchange.sent,
                exchange.idle,
                max(last - exchange.first_command + 1, 0) if exchange.sent else 0,
            )


class CompiledTransport(CompiledSimulation):
    """A transport to the compiled simulation of an accelerator.

    The first use of a configuration builds it, in about a minute; later ones load it from the
    cache.

    Parameters
    ----------
    config : AcceleratorConfig
    trace, stall_seed, command_stall, result_stall, progress
        As in `CompiledSimulation`.
    idle_clocks : int, optional
        Clocks without a word after which an exchange is given up; by default more than twice what
        the longest computation takes.

    Raises
    ------
    SimulationError, OSError, ValueError
        As in `CompiledSimulation`.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        idle_clocks: int | None = None,
        trace: str | PathLike[str] | None = None,
        stall_seed: int | None = None,
        command_stall: float = 0.0,
        result_stall: float = 0.0,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        self._handle = None
        super().__init__(
            accelerator_verilog(config, progress),
            config.link_bytes,
            idle_clocks=patience(config) if idle_clocks is None else idle_clocks,
            trace=trace,
            stall_seed=stall_seed,
            command_stall=command_stall,
            result_stall=result_stall,
            label=accelerator_label(config),
            progress=progress,
        )


def _trace_format(trace: str | PathLike[str] | None) -> str | None:
    if trace is None:
        return None
    suffix = Path(trace).suffix[1:]
    if suffix not in toolchain.TRACE_FORMATS:
        raise ValueError(f"a waveform file must end in .vcd or .fst, not {Path(trace).name!r}")
    return suffix


@functools.cache
def _load(path: str) -> ctypes.CDLL:
    handle, number = ctypes.c_void_p, ctypes.c_uint64
    functions = {
        "create": (handle, (ctypes.c_char_p, number, ctypes.c_double, ctypes.c_double)),
        "destroy": (None, (handle,)),
        "reset": (None, (handle,)),
        "clocks": (number, (handle,)),
        "run": (None, (handle, ctypes.POINTER(_Exchange), number, number)),
    }
    return toolchain.load_library(path, "celosia", functions)
