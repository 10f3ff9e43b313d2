"""``celosia devices``: the boards that are plugged in."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from ..device import Device, DeviceError
from ..serial_transport import DEFAULT_BAUD, SerialTransport, parse_port
from ..text import aligned
from .common import to_json

__all__ = ["add_parser"]

_ANSWER_SECONDS = 2.0
"""Enough for the break that `SerialTransport` sends when nothing answers at first."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add this command."""
    parser = subparsers.add_parser(
        "devices",
        help="list serial ports and the boards that answer",
        description="List the serial ports of USB devices, ask each whether it is a board with "
        "this accelerator, and print what answers. Asking resets an accelerator that nobody uses.",
        allow_abbrev=False,
    )
    parser.set_defaults(function=_devices)
    parser.add_argument(
        "ports",
        metavar="PORT",
        nargs="*",
        help="ports to ask instead: a device or URL, and @BAUD if it is not "
        f"{DEFAULT_BAUD}, as behind serial: in --device",
    )
    parser.add_argument("--no-ask", action="store_true", help="only list the ports")
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")


def _devices(arguments: argparse.Namespace) -> int:
    # Its own first column is what other commands take, so this one takes it too.
    ports = [(port.removeprefix("serial:"), "") for port in arguments.ports] or _plugged_in()
    found = []
    for port, description in ports:
        entry: dict[str, Any] = {"device": f"serial:{port}", "port": description}
        if not arguments.no_ask:
            entry.update(_ask(port))
        found.append(entry)
    if arguments.json:
        print(to_json(found))
    elif not found:
        print("no serial port of a USB device; other ports can be named: celosia devices PORT")
    else:
        print(aligned([(entry["device"], _line(entry)) for entry in found]))
    return 0


def _plugged_in() -> Sequence[tuple[str, str]]:
    """Serial ports that belong to a USB device: nothing else is spoken to unasked."""
    try:
        from serial.tools.list_ports import comports
    except ModuleNotFoundError as error:
        raise ImportError(
            'listing serial ports needs the package pyserial: pip install "celosia[serial]"'
        ) from error
    return [
        (port.device, port.description or "") for port in sorted(comports()) if port.vid is not None
    ]


def _ask(port: str) -> dict[str, Any]:
    try:
        with Device(SerialTransport(*parse_port(port), open_timeout=_ANSWER_SECONDS)) as device:
            return {
                "answer": "board",
                "version": ".".join(map(str, device.version)),
                "config": device.config.to_dict(),
            }
    except (DeviceError, ValueError) as error:
        return {"answer": f"{type(error).__name__}: {error}"}


def _line(entry: dict[str, Any]) -> str:
    text = entry["port"]
    if "config" in entry:
        config = entry["config"]
        answer = f"{config['key_rows']} x {config['query_lanes']}, version {entry['version']}"
    else:
        answer = entry.get("answer", "")
    return "; ".join(filter(None, (text, answer)))
