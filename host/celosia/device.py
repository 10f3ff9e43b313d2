"""Accelerators, however they are reached."""

from __future__ import annotations

import contextvars
import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, NoReturn, Protocol

import numpy.typing as npt

from celosia_hw.config import PRESETS, AcceleratorConfig, preset
from celosia_hw.protocol import (
    COMMAND_BYTES,
    COUNTERS_FIELDS,
    REPLY_BYTES,
    REPLY_FIELDS,
    ErrorCode,
    Opcode,
    ProtocolError,
    ProtocolVersionError,
    Reply,
    decode_header,
    encode_header,
    parse_identity,
    parse_statistics,
)

from .program import Program

__all__ = ["Device", "DeviceError", "RunReport", "Transport", "VersionMismatch", "open_device"]


class DeviceError(RuntimeError):
    """A device that does not answer as it should, is closed, or was not opened."""


class VersionMismatch(DeviceError):
    """A device whose protocol, or a board whose link, is of another version than this driver's."""


class Transport(Protocol):
    """Carries packets to an accelerator and back."""

    @property
    def clocks(self) -> int:
        """Clocks of the last exchange, first command word to last result word; 0 if unknown."""
        ...

    def exchange(
        self,
        commands: Sequence[bytes],
        replies: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[bytes]:
        """Send packets and return the next `replies` replies."""
        ...

    def close(self) -> None:
        """Let go of the accelerator."""
        ...


@dataclass(frozen=True)
class RunReport:
    """What one attention took.

    Parameters
    ----------
    clocks : int
        From the first command word to the last result word; 0 where the device has no clock.
    useful_macs : int
        Both head dimensions times the allowed pairs of queries and keys.
    utilization : float or None
        ``useful_macs / (clocks * 2 * R * C)``; None where the device has no clock.
    bytes_sent, bytes_received : int
        Over the link, headers and padding included.
    busy : int
        Clocks with a query tile in the pipeline.
    stalled_input, stalled_output : int
        Clocks in which a query tile could have started but had not arrived, and in which one had
        arrived but found no free accumulators.
    seconds : float
        Time spent in the transport.
    """

    clocks: int
    useful_macs: int
    utilization: float | None
    bytes_sent: int
    bytes_received: int
    busy: int
    stalled_input: int
    stalled_output: int
    seconds: float

    def followed(self, again: RunReport, peak_macs: int) -> RunReport:
        """This run and another that went on with it or repeated a part of it.

        Parameters
        ----------
        again : RunReport
            Its useful MACs are those of this run already.
        peak_macs : int
            Multiply-accumulates a clock of the arrays that are used.
        """
        both = {
            name: getattr(self, name) + getattr(again, name)
            for name in (
                *("clocks", "bytes_sent", "bytes_received"),
                *("busy", "stalled_input", "stalled_output", "seconds"),
            )
        }
        peak = both["clocks"] * peak_macs
        return RunReport(
            **both,
            useful_macs=self.useful_macs,
            utilization=self.useful_macs / peak if peak else None,
        )


_defaults: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar(
    "celosia_devices", default=()
)


def enter_default(device: Any) -> None:
    """Make a device or a pool the default of this thread or task."""
    _defaults.set((*_defaults.get(), device))


def leave_default(device: Any) -> None:
    """Make it the default no longer."""
    _defaults.set(tuple(other for other in _defaults.get() if other is not device))


class Device:
    """An open accelerator.

    In a ``with`` block it is the default device of `run_attention`, innermost first, and it is
    closed at the end. A default holds in the thread or task that opened it.

    Parameters
    ----------
    transport : Transport
        Closed with the device, and if the accelerator cannot be identified.
    progress : callable, optional
        Is told of the progress of a run, with the query tiles done and their number.

    Attributes
    ----------
    config : AcceleratorConfig
        As the accelerator itself reports it.
    version : tuple of int
        Of the gateware.
    report : RunReport or None
        Of the last run.

    Raises
    ------
    VersionMismatch
        If the accelerator speaks another version of the protocol.
    DeviceError
        If it speaks none.
    """

    def __init__(
        self, transport: Transport, *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._transport: Transport | None = transport
        self._progress = progress
        self.report: RunReport | None = None
        self._reserved: dict[int, int] = {}
        try:
            self.config, self.version = self._identify()
        except BaseException:
            self.close()
            raise

    def _identify(self) -> tuple[AcceleratorConfig, tuple[int, int, int]]:
        command = encode_header(COUNTERS_FIELDS, COMMAND_BYTES, opcode=Opcode.IDENTIFY, tag=1)
        reply = self._exchange([command], 1)[0]
        self._check(reply, Reply.IDENTITY, 1)
        # Zeros pad the header to a link word, whose width is not known yet; the payload starts
        # with the protocol's version, which is not zero.
        padding = next((n for n, byte in enumerate(reply[REPLY_BYTES:]) if byte), 0)
        try:
            return parse_identity(reply[REPLY_BYTES + padding :])
        except ProtocolVersionError as error:
            raise VersionMismatch(str(error)) from error
        except (ProtocolError, ValueError) as error:
            raise DeviceError(f"the device cannot be identified: {error}") from error

    def run(self, program: Program, result: npt.NDArray) -> RunReport:
        """Execute the packets of a program and write their results.

        Parameters
        ----------
        program : Program
            Made for the configuration of this device.
        result : (heads, queries, value_dim) int16 or int32

        Returns
        -------
        RunReport
            Also kept as `report`.

        Raises
        ------
        DeviceError
            If the device is closed, or a reply is not the one expected.
        """
        self._counters()
        progress, total = self._progress, len(program.tiles)
        notify = None if progress is None else lambda done: progress(done, total)
        start = time.perf_counter()
        replies = self._exchange(program.commands, total, notify)
        seconds = time.perf_counter() - start
        clocks = self._open.clocks if total else 0
        for reply, tile in zip(replies, program.tiles, strict=True):
            kind, size = program.expected(tile)
            self._check(reply, kind, tile.tag, size)
        program.collect(replies, result)
        counters = self._counters()
        peak = clocks * program.peak_macs
        self.report = RunReport(
            clocks=clocks,
            useful_macs=program.useful_macs,
            utilization=program.useful_macs / peak if peak else None,
            bytes_sent=sum(map(len, program.commands)),
            bytes_received=sum(map(len, replies)),
            busy=counters["busy"],
            stalled_input=counters["stalled_input"],
            stalled_output=counters["stalled_output"],
            seconds=seconds,
        )
        return self.report

    @property
    def free_banks(self) -> int:
        """Key banks, from the first, in which nothing is reserved."""
        first = min(self._reserved, default=self.config.slots)
        return first // self.config.slots_per_bank

    def reserve(self, slots: int, what: str) -> int:
        """Set consecutive key slots aside, as far back as there is room.

        Parameters
        ----------
        slots : int
        what : str
            What for; named in the error.

        Returns
        -------
        int
            The first of them.

        Raises
        ------
        ValueError
            If there is no such room.
        """
        end = self.config.slots
        for first in sorted(self._reserved, reverse=True):
            if end - (first + self._reserved[first]) >= slots:
                break
            end = first
        if slots > end:
            used = sum(self._reserved.values())
            raise ValueError(
                f"no room for {what}: it takes {slots} of the device's {self.config.slots} key "
                f"tiles, and {used} are taken"
            )
        self._reserved[end - slots] = slots
        return end - slots

    def release(self, first: int) -> None:
        """Give slots back that `reserve` returned."""
        self._reserved.pop(first, None)

    def close(self) -> None:
        """Let go of the accelerator; closing twice does nothing."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    @property
    def transport(self) -> Transport:
        """What carries packets; a device that is closed raises DeviceError."""
        return self._open

    @property
    def is_closed(self) -> bool:
        """Whether it was closed, by the caller or after an error."""
        return self._transport is None

    def __enter__(self) -> Device:
        self._open  # noqa: B018  a closed device raises
        enter_default(self)
        return self

    def __exit__(self, *exception: object) -> None:
        leave_default(self)
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an open device cannot be copied or sent to another process: give its name there, "
            "like 'sim:small'"
        )

    @property
    def _open(self) -> Transport:
        if self._transport is None:
            raise DeviceError("the device is closed")
        return self._transport

    def _counters(self) -> dict[str, int]:
        """Read the counters and clear them."""
        command = encode_header(
            COUNTERS_FIELDS, COMMAND_BYTES, opcode=Opcode.COUNTERS, tag=2, clear=1
        )
        reply = self._exchange([command], 1)[0]
        self._check(reply, Reply.STATISTICS, 2)
        return parse_statistics(reply[self.config.words(REPLY_BYTES) * self.config.link_bytes :])

    def _exchange(
        self,
        commands: Sequence[bytes],
        replies: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[bytes]:
        try:
            return self._open.exchange(commands, replies, progress)
        except (ProtocolError, TimeoutError) as error:
            raise DeviceError(f"the device does not answer: {error}") from error

    def _check(self, reply: bytes, opcode: Reply, tag: int, size: int | None = None) -> None:
        """Raise unless a reply is of this kind and size and answers the command of this tag."""
        header = decode_header(REPLY_FIELDS, reply[:REPLY_BYTES])
        if header["opcode"] == Reply.ERROR:
            code = header["code"]
            name = ErrorCode(code).name if code in set(ErrorCode) else "unknown"
            problem = f"error {code} ({name}) for the packet of tag {header['tag']}"
        elif (header["opcode"], header["tag"]) != (opcode, tag):
            problem = (
                f"opcode {header['opcode']} and tag {header['tag']}, "
                f"expected {int(opcode)} ({opcode.name}) and {tag}"
            )
        elif size is not None and len(reply) != size:
            problem = f"a result of {len(reply)} bytes, expected {size}"
        else:
            return
        # What else is on its way belongs to nobody: a device out of step is not used again.
        self.close()
        raise DeviceError(f"the device replied {problem}; open it again")


def default_device() -> Any:
    """The innermost open default, a `Device` or a `DevicePool`.

    Raises
    ------
    DeviceError
        If there is none; the message says how to open one.
    """
    devices = _defaults.get()
    if not devices:
        raise DeviceError(
            'no device: pass device="sim", or open a default with '
            '"with celosia.open_device("sim"):"'
        )
    return devices[-1]


_KINDS = {
    "sim": ("celosia_sim.compiled", "CompiledTransport", "default"),
    "model": ("celosia_sim.model_device", "ModelTransport", "default"),
    "pysim": ("celosia_sim.pysim", "PysimTransport", "tiny"),
}
"""Kind of device -> module and class of its transport, and its preset."""


def open_device(
    spec: str,
    *,
    config: AcceleratorConfig | None = None,
    progress: Callable[[str], None] | None = None,
    waveform: str | PathLike[str] | None = None,
) -> Device:
    """Open a device.

    Parameters
    ----------
    spec : str
        ``"sim"`` (compiled, cycle-accurate simulation), ``"model"`` (integer model, the same
        results without clocks) or ``"pysim"`` (Amaranth's simulator, slow, no compiler needed),
        each optionally with a configuration, as in ``"sim:small"``. Without one it is "default",
        and "tiny" for ``"pysim"``. ``"serial:PORT[@BAUD]"`` is a board: PORT is a device such as
        ``/dev/ttyUSB0`` or a URL that pyserial takes, BAUD is 3000000 if absent.
    config : AcceleratorConfig, optional
        Instead of a name in `spec`. A board has its own.
    progress : callable, optional
        Is told, in one line each, what is built and how far a run is.
    waveform : path, optional
        File that the signals of ``"sim"`` are written to, ``.fst`` or ``.vcd``.

    Returns
    -------
    Device

    Raises
    ------
    ValueError
        If the kind or the configuration is unknown.
    ImportError
        If the device needs packages that are not installed; the message names the extra.
    DeviceError
        If the device does not answer. A board's are `LinkTimeout`, `DeviceBusy`,
        `VersionMismatch`, `CableLost` and `BoardReset`.
    """
    if not isinstance(spec, str):
        raise TypeError(f"a device is given as a str like 'sim:small', not {spec!r}")
    kind, colon, name = spec.partition(":")
    if kind not in (*_KINDS, "serial"):
        known = ", ".join(f"{kind}[:CONFIG]" for kind in _KINDS)
        raise ValueError(
            f"unknown device {spec!r}: choose one of {known}, serial:PORT[@BAUD] "
            f"(CONFIG: {', '.join(PRESETS)})"
        )
    if waveform is not None and kind != "sim":
        raise ValueError(f"only the device 'sim' writes a waveform, not {spec!r}")
    if kind == "serial":
        if config is not None:
            raise ValueError(f"device {spec!r} has a configuration of its own")
        return Device(_serial(name), progress=_tile_progress(progress))
    module, transport, default = _KINDS[kind]
    if config is None:
        config = preset(name if colon else default)
    elif colon:
        raise ValueError(f"device {spec!r} names a configuration, and config is given too")
    try:
        factory = getattr(importlib.import_module(module), transport)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("celosia"):
            raise
        raise ImportError(
            f'device {spec!r} needs the package {error.name}: pip install "celosia[sim]"'
        ) from error
    options = {} if kind != "sim" else {"progress": progress, "trace": waveform}
    return Device(factory(config, **options), progress=_tile_progress(progress))


def _serial(port: str) -> Transport:
    from .serial_transport import SerialTransport, parse_port

    return SerialTransport(*parse_port(port))


def _tile_progress(progress: Callable[[str], None] | None) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(f"{done} of {total} query tiles")
