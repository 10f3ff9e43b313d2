"""Pins of a board: from their resources in amaranth-boards to the constraints of each toolchain."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import Board, BoardError

__all__ = ["CONSTRAINTS", "Located", "constraints", "locate", "platform", "source_hz"]


@dataclass(frozen=True)
class Located:
    """A port of the top module on the board.

    Attributes
    ----------
    port : str
    site : str
        Name of the package's pin.
    is_inverted : bool
        Whether 0 on the pin means that a button is pressed or that an LED shines.
    attributes : dict of str
        As the toolchain names them.
    """

    port: str
    site: str
    is_inverted: bool
    attributes: dict[str, str]


def platform(board: Board) -> Any:
    """An instance of the board's platform in amaranth-boards, with a serial line.

    Raises
    ------
    ImportError
        If that is not installed.
    """
    module, _, name = board.platform.partition(".")
    try:
        found = importlib.import_module(f"amaranth_boards.{module}")
    except ModuleNotFoundError as error:
        raise ImportError(
            f'the package {error.name} is missing: pip install "celosia[hw]"'
        ) from None
    chip = getattr(found, name)()
    if board.header:
        chip.add_resources([_uart(*board.header)])
    return chip


def _uart(connector: str, rx: str, tx: str) -> Any:
    from amaranth.build import Attrs, Pins, Resource, Subsignal

    at = (connector, 0)
    return Resource(
        "uart",
        0,
        # High while nothing is plugged in, else that would be a break.
        Subsignal("rx", Pins(rx, dir="i", conn=at), Attrs(PULLMODE="UP")),
        Subsignal("tx", Pins(tx, dir="o", conn=at)),
        Attrs(IO_TYPE="LVCMOS33"),
    )


def locate(board: Board) -> list[Located]:
    """The pins of a board's top module.

    Raises
    ------
    BoardError
        If amaranth-boards has no such resource.
    """
    from amaranth.build import Pins, ResourceError

    chip = platform(board)
    found = []
    for port, pin in board.pins.items():
        try:
            resource = chip.lookup(pin.resource, pin.number)
        except ResourceError as error:
            raise BoardError(f"{board.name}: {error}") from None
        attributes = dict(resource.attrs)
        ios = resource.ios
        if pin.part is not None:
            (part,) = [io for io in ios if getattr(io, "name", None) == pin.part]
            attributes |= part.attrs
            ios = part.ios
        (pins,) = [io for io in ios if isinstance(io, Pins)]
        (site,) = pins.map_names(chip._conn_pins, resource)
        attributes = {name: str(value) for name, value in attributes.items()}
        found.append(Located(port, site, pins.invert, attributes))
    return found


def source_hz(board: Board) -> int:
    """Frequency of the board's oscillator."""
    pin = board.pins["clk"]
    return int(platform(board).lookup(pin.resource, pin.number).clock.frequency)


def constraints(board: Board) -> str:
    """The constraint file of a board: pins, and the clock where the format has one."""
    suffix, write = CONSTRAINTS[board.family]
    mark = "//" if suffix == "cst" else "#"
    head = f"{mark} {board.title}: pins of the top module, from amaranth-boards.\n\n"
    return head + "\n".join(write(locate(board), source_hz(board))) + "\n"


def _lpf(pins: list[Located], hz: int) -> list[str]:
    lines = []
    for pin in pins:
        options = " ".join(f"{name}={value}" for name, value in pin.attributes.items())
        lines += [
            f'LOCATE COMP "{pin.port}" SITE "{pin.site}";',
            f'IOBUF PORT "{pin.port}" {options};',
        ]
    return [*lines, f'FREQUENCY PORT "clk" {hz / 1e6:g} MHZ;']


def _cst(pins: list[Located], hz: int) -> list[str]:
    lines = []
    for pin in pins:
        lines.append(f'IO_LOC "{pin.port}" {pin.site};')
        options = " ".join(f"{name}={value}" for name, value in pin.attributes.items())
        lines.append(f'IO_PORT "{pin.port}" {options};')
    return lines


def _xdc(pins: list[Located], hz: int) -> list[str]:
    lines = []
    for pin in pins:
        options = {"PACKAGE_PIN": pin.site, **pin.attributes}
        for name, value in options.items():
            lines.append(f"set_property {name} {value} [get_ports {pin.port}]")
    return [
        *lines,
        f"create_clock -name clk -period {1e9 / hz:g} [get_ports clk]",
        "",
        "# Asynchronous: two registers follow, or people look at them.",
        "set_false_path -from [get_ports {button rx}]",
        "set_false_path -to [get_ports {tx led_*}]",
        "",
        "set_property CFGBVS VCCO [current_design]",
        "set_property CONFIG_VOLTAGE 3.3 [current_design]",
    ]


CONSTRAINTS: dict[str, tuple[str, Callable[[list[Located], int], list[str]]]] = {
    "ecp5": ("lpf", _lpf),
    "gowin": ("cst", _cst),
    "xilinx7": ("xdc", _xdc),
}
"""By family: the suffix of its constraint files, and what writes their lines."""
