"""Boards without the board: a simulated one behind a pseudo-terminal.

The host's driver talks to it through the operating system's serial layer, as to a real one.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from types import TracebackType

from .board import BoardDesign, SimulatedBoard
from .errors import SimulationError

__all__ = ["Line", "VirtualBoard"]

_SLICE_SECONDS = 0.002
_AHEAD = 512
"""Bytes taken from the host before the line has room for them, as a USB converter does."""
_DROPPED = 1 << 16
"""Bytes for a host that does not read; what is more is lost."""
_QUIET_CLOCKS, _ASLEEP_CLOCKS = 1 << 18, 1 << 22
"""Clocks without anything on the line after which the simulation slows down, and nearly stops."""


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

    def step(self, board: SimulatedBoard) -> None:
        """What else happens to the board."""


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
    board : SimulatedBoard

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
        self.board = SimulatedBoard(design, progress)
        self._line = line or Line()
        self._plug()
        self._to_host = bytearray()
        self._slice_clocks = 2000
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._is_closed = False

    def _plug(self) -> None:
        import pty
        import tty

        # The board keeps the host's side open too: a host may come and go.
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)

    def _unplug(self) -> None:
        os.close(self._master)
        os.close(self._slave)

    def replug(self) -> None:
        """Take the cable out and put it back in; the board goes on. Only from `Line.step`.

        The host's device is gone, and another one is at `path`.
        """
        self._unplug()
        self._plug()

    def serve(self) -> None:
        """Serve until `stop` is called from elsewhere."""
        while not self._stop.is_set():
            self._step()

    def stop(self) -> None:
        """Let `serve` return."""
        self._stop.set()

    def close(self) -> None:
        """Stop and free everything; the host sees its cable go. Closing twice does nothing."""
        self.stop()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if not self._is_closed:
            self._is_closed = True
            self.board.close()
            self._unplug()

    def __enter__(self) -> VirtualBoard:
        self._thread = threading.Thread(target=self._serve, name=self.path, daemon=True)
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
        """A slice of simulation, and what has come from and goes to the host."""
        board, line = self.board, self._line
        data = b""
        if len(board.to_board) < _AHEAD:
            with contextlib.suppress(BlockingIOError):
                data = os.read(self._master, _AHEAD)
        board.to_board += line.to_board(data)
        start, before = time.perf_counter(), board.clocks
        received = line.to_host(board.run(self._slice_clocks))
        rate = (board.clocks - before) / max(time.perf_counter() - start, 1e-6)
        self._slice_clocks = min(max(int(rate * _SLICE_SECONDS), 500), 1 << 20)
        self._to_host += received[: max(_DROPPED - len(self._to_host), 0)]
        if self._to_host:
            with contextlib.suppress(BlockingIOError):
                del self._to_host[: os.write(self._master, self._to_host)]
        line.step(board)
        if board.quiet > _QUIET_CLOCKS and not board.to_board:
            select.select([self._master], [], [], 0.2 if board.quiet > _ASLEEP_CLOCKS else 0.005)
