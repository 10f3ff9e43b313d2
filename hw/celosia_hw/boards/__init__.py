"""Boards: what is built for each of them, and with which configuration, clock and pins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ..config import AcceleratorConfig, preset
from ..link_protocol import LinkConfig

__all__ = ["BOARDS", "Board", "BoardError", "Pin", "board"]


class BoardError(ValueError):
    """A board that does not exist, or cannot have what is asked for."""


@dataclass(frozen=True)
class Pin:
    """A pin by its resource in amaranth-boards.

    Attributes
    ----------
    resource : str
    number : int
    part : str or None
        Of a resource with subsignals.
    """

    resource: str
    number: int = 0
    part: str | None = None


@dataclass(frozen=True)
class Board:
    """A board and what is built for it.

    Attributes
    ----------
    name : str
        As on the command line.
    title : str
        Board and part, for people.
    platform : str
        Module and class in ``amaranth_boards``.
    family : str
        One of `celosia_hw.boards.clocking.PLLS`.
    config : AcceleratorConfig
        What is built unless another is asked for.
    clock_hz : int
        Clock of the accelerator.
    pins : mapping of Pin
        By the top module's ports: ``clk``, ``button``, ``rx``, ``tx``, ``led_idle``, ``led_busy``,
        ``led_error``; and those in `high`.
    high : tuple of str
        Outputs that are constantly 1.
    header : tuple of str
        On a board without a converter on its serial line: connector in amaranth-boards, and its
        pins for ``rx`` and ``tx``.
    baud : int
    link : LinkConfig
    flash : tuple of tuple of str
        Commands that load a bitstream, the usual one first; ``{bitstream}`` is the file.
    """

    name: str
    title: str
    platform: str
    family: str
    config: AcceleratorConfig
    clock_hz: int
    pins: Mapping[str, Pin]
    high: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    baud: int = 3_000_000
    link: LinkConfig = field(default_factory=LinkConfig)
    flash: tuple[tuple[str, ...], ...] = ()

    @property
    def module(self) -> str:
        """Name of the top module, and of the files."""
        return self.name.replace("-", "_")


def _uart_and(clk: str, button: Pin, *leds: Pin) -> dict[str, Pin]:
    names = ("led_idle", "led_busy", "led_error")
    return {
        "clk": Pin(clk),
        "button": button,
        "rx": Pin("uart", 0, "rx"),
        "tx": Pin("uart", 0, "tx"),
        **dict(zip(names, leds, strict=True)),
    }


_SMALL = preset("small").to_dict() | {"link_bytes": 4}
_ALL = (
    Board(
        name="ulx3s",
        title="Radiona ULX3S, LFE5U-85F",
        platform="ulx3s.ULX3S_85F_Platform",
        family="ecp5",
        config=AcceleratorConfig(**_SMALL),
        clock_hz=100_000_000,
        pins=_uart_and("clk25", Pin("button_fire"), Pin("led", 0), Pin("led", 1), Pin("led", 2))
        # Low, it would let the board's ESP32 start in its loader.
        | {"wifi_gpio0": Pin("esp32", 0, "gpio0")},
        high=("wifi_gpio0",),
        flash=(
            ("openFPGALoader", "--board", "ulx3s", "{bitstream}"),
            ("fujprog", "{bitstream}"),
        ),
    ),
    Board(
        name="orangecrab",
        title="OrangeCrab r0.2, LFE5U-85F",
        platform="orangecrab_r0_2.OrangeCrabR0_2_85FPlatform",
        family="ecp5",
        config=AcceleratorConfig(**_SMALL),
        clock_hz=120_000_000,
        # One LED of three colours.
        pins=_uart_and(
            "clk", Pin("button"), *(Pin("rgb_led", 0, colour) for colour in ("g", "b", "r"))
        ),
        header=("io", "0", "1"),
        flash=(
            ("dfu-util", "--device", "1209:5af0", "--alt", "0", "--download", "{bitstream}"),
            ("openFPGALoader", "--board", "orangeCrab", "{bitstream}"),
        ),
    ),
    Board(
        name="tang-primer-20k",
        title="Sipeed Tang Primer 20K on its dock, GW2A-18C",
        platform="tang_primer_20k.TangPrimer20kDockPlatform",
        family="gowin",
        # Small, since a flip-flop takes the place of a LUT unless that drives it.
        config=AcceleratorConfig(
            key_rows=2,
            query_lanes=2,
            max_head_dim=64,
            max_keys=128,
            key_banks=1,
            max_sequence=1024,
            probability_bits=8,
            score_fraction_bits=8,
            link_bytes=4,
            normalizer_lanes=1,
            multiplier_stages=1,
        ),
        clock_hz=36_000_000,
        link=LinkConfig(frames=4, frame_bytes=512),
        pins=_uart_and("clk27", Pin("button", 0), Pin("led", 0), Pin("led", 1), Pin("led", 2)),
        flash=(("openFPGALoader", "--board", "tangprimer20k", "{bitstream}"),),
    ),
    Board(
        name="arty-a7",
        title="Digilent Arty A7-35T, XC7A35T",
        platform="arty_a7.ArtyA7_35Platform",
        family="xilinx7",
        config=AcceleratorConfig(
            key_rows=8,
            query_lanes=4,
            max_head_dim=64,
            max_keys=512,
            link_bytes=4,
            normalizer_lanes=2,
            multiplier_stages=3,
        ),
        clock_hz=90_000_000,
        pins=_uart_and("clk100", Pin("rst"), Pin("led", 0), Pin("led", 1), Pin("led", 2)),
        flash=(("openFPGALoader", "--board", "arty_a7_35t", "{bitstream}"),),
    ),
)
BOARDS: Mapping[str, Board] = MappingProxyType({board.name: board for board in _ALL})
"""Boards by name."""


def board(name: str) -> Board:
    """Look a board up.

    Raises
    ------
    BoardError
        If there is none of that name; the message lists the boards.
    """
    try:
        return BOARDS[name]
    except KeyError:
        raise BoardError(f"unknown board {name!r}: choose one of {', '.join(BOARDS)}") from None
