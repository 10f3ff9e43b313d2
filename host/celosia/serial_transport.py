"""Packets to a board over a serial port, by pyserial."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .device import DeviceError
from .serial_link import CableLost, DeviceBusy, HostLink, LinkTimeout

__all__ = ["DEFAULT_BAUD", "SerialTransport", "parse_port"]

DEFAULT_BAUD = 3_000_000
_READ_SECONDS = 0.005
_WRITE_BYTES = 512
"""Written at once: what arrives meanwhile has to fit the system's buffer."""
_PROGRESS_SECONDS = 0.1
try:
    import termios

    _PORT_ERRORS = (OSError, termios.error)  # pyserial's own exceptions are OSErrors
except ImportError:  # not on every system
    _PORT_ERRORS = (OSError,)
_BREAK_AFTER, _BREAK_SECONDS = 1.0, 0.01


def parse_port(text: str) -> tuple[str, int]:
    """Port and baud rate of ``PORT[@BAUD]``.

    Raises
    ------
    ValueError
        If there is no port, or the rate is not a positive number.
    """
    port, at, rate = text.rpartition("@")
    if not at or "/" in rate or ":" in rate:
        port, rate = text, str(DEFAULT_BAUD)
    if not port:
        raise ValueError("a serial device needs a port, as in 'serial:/dev/ttyUSB0'")
    if not rate.isdecimal() or int(rate) < 1:
        raise ValueError(f"the baud rate must be a positive number, not {rate!r}")
    return port, int(rate)


class SerialTransport:
    """A transport to a board at a serial port.

    An exchange that ends with an exception of the caller's making, Ctrl-C included, resets the
    accelerator; one that ends with a `DeviceError` closes the port, and the device must be opened
    again.

    Parameters
    ----------
    port : str
        Device, or URL as pyserial's ``serial_for_url`` takes it.
    baud : int
        Bits per second.
    timeout : float
        Seconds without progress after which an exchange is given up.
    open_timeout : float
        Seconds in which a board must answer at first.
    clock : callable, optional
        Tells the time in seconds: of a simulated line its own, if its timing matters.

    Attributes
    ----------
    clocks : int
        0: a board does not tell.
    link : HostLink or None
        The session, with its counts.

    Raises
    ------
    ImportError
        If pyserial is missing; the message names the extra.
    DeviceBusy
        If another process uses the port.
    LinkTimeout
        If nothing answers.
    VersionMismatch
        If the board's link is of another version.
    DeviceError
        If the port cannot be opened.
    """

    clocks = 0

    def __init__(
        self,
        port: str,
        baud: int = DEFAULT_BAUD,
        *,
        timeout: float = 10.0,
        open_timeout: float = 3.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._baud = port, baud
        self._timeout, self._open_timeout = timeout, open_timeout
        self._clock = clock
        self.link: HostLink | None = None
        self._number = 0
        self._out = b""
        self._port: Any = _open_port(port, baud, timeout)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def exchange(
        self,
        commands: Sequence[bytes],
        replies: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[bytes]:
        """Send packets and collect replies; replies come in while packets still go out.

        Parameters
        ----------
        commands : sequence of bytes
            Packets; all are delivered, even if the replies arrive earlier.
        replies : int
            Reply packets to wait for. Replies beyond this number are returned first by the next
            exchange.
        progress : callable, optional
            Called now and then with the number of replies so far.

        Raises
        ------
        LinkTimeout
            If nothing goes on for `timeout` seconds.
        BoardReset
            If the board was reset since it was opened.
        CableLost
            If the port is gone.
        ValueError
            If a packet is empty.
        """
        for number, packet in enumerate(commands):
            if not packet:
                raise ValueError(f"packet {number} is empty")
        link = self.link or self._begin()
        with self._orderly():
            now = told = self._clock()
            before = link.delivered
            link.send(commands, now)
            while link.sending or len(link.replies) < replies:
                link.awaiting = len(link.replies) < replies
                now = self._turn(link)
                if now - link.progress_at > self._timeout:
                    raise LinkTimeout(
                        f"{self._name}: nothing went on for {self._timeout:g} s: "
                        f"{link.delivered - before} of {len(commands)} packets delivered, "
                        f"{len(link.replies)} of {replies} replies received; open it again"
                    )
                if progress is not None and now - told >= _PROGRESS_SECONDS:
                    told = now
                    progress(min(len(link.replies), replies))
            if progress is not None:
                progress(replies)
            link.awaiting = False
            return [link.replies.popleft() for _ in range(replies)]

    def close(self) -> None:
        """Close the port; closing twice does nothing."""
        port, self._port, self.link = self._port, None, None
        if port is not None:
            with contextlib.suppress(*_PORT_ERRORS):
                port.close()

    def _begin(self) -> HostLink:
        """Open a session, which resets the accelerator."""
        if self._port is None:
            raise DeviceError(f"{self._name} is closed; open it again")
        with self._orderly():
            self._port.reset_input_buffer()
            start = now = self._clock()
            self._number = random.choice([n for n in range(1, 256) if n != self._number])
            link = HostLink(self._number, os.urandom(4), now, self._baud)
            self._out, is_broken = b"", False
            while link.welcome is None:
                now = self._turn(link)
                if now - start > self._open_timeout:
                    raise LinkTimeout(self._silence(link))
                if now - start > _BREAK_AFTER and not is_broken:
                    is_broken = True
                    # A break resets a board in whatever state it is. Not every port can send one.
                    with contextlib.suppress(*_PORT_ERRORS, NotImplementedError):
                        self._port.send_break(_BREAK_SECONDS)
            self.link = link
            return link

    def _silence(self, link: HostLink) -> str:
        if link.bytes_received:
            return (
                f"{self._name}: {link.bytes_received} bytes arrived at {self._baud} baud, but no "
                "answer: is this the board's rate, and its bitstream loaded?"
            )
        return (
            f"{self._name}: nothing answers at {self._baud} baud: is the board connected, and its "
            "bitstream loaded?"
        )

    def _turn(self, link: HostLink) -> float:
        """Send and receive what can be, and wait a little if nothing can; returns the time."""
        self._out = self._out or link.transmit(self._clock())
        if self._out:
            written = self._port.write(self._out[:_WRITE_BYTES])
            self._out = self._out[written:]
            data = b""
        else:
            data = self._port.read(1)
        while waiting := self._port.in_waiting:
            data += self._port.read(waiting)
            if len(data) > _WRITE_BYTES:
                break
        now = self._clock()
        if data:
            link.receive(data, now)
        return now

    @contextlib.contextmanager
    def _orderly(self) -> Iterator[None]:
        """What goes wrong on the port as a `DeviceError`, after which the port is closed."""
        try:
            yield
        except DeviceError:
            self.close()
            raise
        except _PORT_ERRORS as error:
            self.close()
            if type(error).__name__ == "SerialTimeoutException":
                raise LinkTimeout(f"{self._name} took no byte for {self._timeout:g} s") from error
            raise CableLost(f"{self._name} is gone: {error}") from error
        except BaseException:
            self.link = None  # the next exchange begins with a new session
            raise


def _open_port(port: str, baud: int, timeout: float) -> Any:
    try:
        import serial
    except ModuleNotFoundError as error:
        raise ImportError(
            f'a serial device needs the package pyserial: pip install "celosia[serial]" ({error})'
        ) from error
    try:
        opened = serial.serial_for_url(
            port,
            baudrate=baud,
            timeout=_READ_SECONDS,
            write_timeout=timeout,
            exclusive=True,
        )
    except (*_PORT_ERRORS, ValueError) as error:
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.EAGAIN, errno.EBUSY):
            raise DeviceBusy(f"{port} is in use by another process") from error
        hint = {
            errno.ENOENT: "there is no such port; celosia devices lists those there are",
            errno.EACCES: "no permission; on most systems members of the group dialout have it",
        }.get(code or 0, str(error))
        raise DeviceError(f"{port} cannot be opened: {hint}") from error
    # USB converters hold bytes back for up to 16 ms unless told otherwise.
    with contextlib.suppress(OSError, AttributeError, NotImplementedError, ValueError):
        opened.set_low_latency_mode(True)
    return opened
