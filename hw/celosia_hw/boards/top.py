"""The top module of a board."""

from __future__ import annotations

from fractions import Fraction

from amaranth.hdl import ClockDomain, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

from ..config import AcceleratorConfig
from ..link_protocol import bit_rate
from ..serial_accelerator import SerialAccelerator
from . import Board
from .clocking import clock
from .pins import locate, source_hz

__all__ = ["RESET_CLOCKS", "BoardTop"]

RESET_CLOCKS = 1 << 10
"""Clocks that a reset takes at least."""
_SHINE_SECONDS = Fraction(1, 50)
"""Time that the LED stays on after work, so that short work is seen."""


class BoardTop(wiring.Component):
    """An accelerator behind a board's serial line.

    The line runs at ``board.baud``. The button, a break on the line, and a PLL that is not locked
    reset everything for `RESET_CLOCKS` clocks or more. One of the LEDs shines: ``led_error`` while
    the link tells of an error; else ``led_busy`` while there is work and a moment longer; else
    ``led_idle``. None shines in reset.

    Parameters
    ----------
    board : Board
    config : AcceleratorConfig, optional
        In place of the board's own.

    Members
    -------
    clk : In(1)
        The board's oscillator.
    button, rx : In(1)
    tx, led_idle, led_busy, led_error : Out(1)
        Levels on the pins: inverted where the board does so.
    """

    def __init__(self, board: Board, config: AcceleratorConfig | None = None) -> None:
        self.board = board
        self.config = board.config if config is None else config
        self._inverted = {pin.port for pin in locate(board) if pin.is_inverted}
        inputs = {"clk", "button", "rx"}
        super().__init__({port: In(1) if port in inputs else Out(1) for port in board.pins})

    def elaborate(self, platform) -> Module:
        m = Module()
        board = self.board
        m.domains.sync = sync = ClockDomain()
        m.domains.start = start = ClockDomain(reset_less=True)
        out, locked = clock(m, board.family, self.clk, source_hz(board), board.clock_hz)
        m.d.comb += [sync.clk.eq(out), start.clk.eq(out)]
        m.submodules.serial = serial = SerialAccelerator(
            self.config, board.link, bit_rate(board.clock_hz, board.baud)
        )

        is_locked = Signal()
        is_pressed = Signal()
        m.submodules.locked = FFSynchronizer(locked, is_locked, o_domain="start")
        m.submodules.button = FFSynchronizer(self._level("button"), is_pressed, o_domain="start")
        waited = Signal(range(RESET_CLOCKS))
        is_reset = Signal(init=1)
        m.d.start += is_reset.eq(~waited.all())
        m.d.comb += sync.rst.eq(is_reset)
        with m.If(~is_locked | is_pressed | serial.line_break):
            m.d.start += waited.eq(0)
        with m.Elif(~waited.all()):
            m.d.start += waited.eq(waited + 1)

        most = int(board.clock_hz * _SHINE_SECONDS)
        left = Signal(range(most + 1))
        works = Signal()
        m.d.sync += [
            left.eq(Mux(serial.busy, most, left - works)),
            works.eq(serial.busy | (left > 1)),
        ]
        leds = {
            "led_idle": ~works & ~serial.error,
            "led_busy": works & ~serial.error,
            "led_error": serial.error,
        }
        m.d.comb += [serial.rx.eq(self.rx), self.tx.eq(serial.tx)]
        for name, shining in leds.items():
            # Registers, so that the pins need no constraints.
            m.d.start += getattr(self, name).eq((shining & ~is_reset) ^ (name in self._inverted))
        m.d.comb += [getattr(self, port).eq(1) for port in board.high]
        return m

    def _level(self, port: str):
        level = getattr(self, port)
        return ~level if port in self._inverted else level
