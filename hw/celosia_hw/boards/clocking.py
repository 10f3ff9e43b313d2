"""PLLs: the clock of an accelerator from that of a board."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

from amaranth.hdl import Const, Instance, Module, Signal, Value

from . import BoardError

__all__ = ["PLLS", "Dividers", "Limits", "clock", "dividers"]


@dataclass(frozen=True)
class Limits:
    """What a PLL can do, from its data sheet.

    Attributes
    ----------
    divide, multiply : range
        Dividers of the reference and of the feedback.
    outputs : tuple of int
        Dividers between oscillator and output.
    comparator, oscillator : tuple of int
        Lowest and highest frequency in Hz of the phase comparator and of the oscillator.
    is_fed_by_output : bool
        Whether the feedback comes from the output, else from the oscillator.
    """

    divide: range
    multiply: range
    outputs: tuple[int, ...]
    comparator: tuple[int, int]
    oscillator: tuple[int, int]
    is_fed_by_output: bool = True


@dataclass(frozen=True)
class Dividers:
    """Settings of a PLL, by the names of `Limits`."""

    divide: int
    multiply: int
    output: int


def dividers(limits: Limits, input_hz: int, output_hz: int) -> Dividers:
    """Settings that make exactly a frequency: the fastest comparator, the oscillator mid-range.

    Raises
    ------
    BoardError
        If there are none.
    """

    def settings() -> Iterator[tuple[tuple[int, float], Dividers]]:
        slowest, fastest = limits.comparator
        low, high = limits.oscillator
        for divide, output in product(limits.divide, limits.outputs):
            fed = output_hz if limits.is_fed_by_output else output_hz * output
            multiply = Fraction(fed * divide, input_hz)
            if (
                multiply in limits.multiply
                and slowest * divide <= input_hz <= fastest * divide
                and low <= output_hz * output <= high
            ):
                distance = abs(output_hz * output - (low + high) / 2)
                yield (divide, distance), Dividers(divide, int(multiply), output)

    best = min(settings(), key=lambda setting: setting[0], default=None)
    if best is None:
        raise BoardError(f"no setting of the PLL makes {output_hz} Hz of {input_hz} Hz")
    return best[1]


def _ecp5(m: Module, pin: Value, hz: int, chosen: Dividers) -> tuple[Value, Value]:
    out = Signal()
    locked = Signal()
    m.submodules.pll = Instance(
        "EHXPLLL",
        # The loop filter that Lattice's tools choose; the names are those of their attributes.
        *(("a", "ICP_CURRENT", "12"), ("a", "LPF_RESISTOR", "8")),
        *(("a", "MFG_ENABLE_FILTEROPAMP", "1"), ("a", "MFG_GMCREF_SEL", "2")),
        p_CLKI_DIV=chosen.divide,
        p_CLKFB_DIV=chosen.multiply,
        p_CLKOP_DIV=chosen.output,
        p_CLKOP_ENABLE="ENABLED",
        p_CLKOP_CPHASE=chosen.output // 2,
        p_FEEDBK_PATH="CLKOP",
        i_CLKI=pin,
        i_CLKFB=out,
        i_RST=Const(0),
        i_STDBY=Const(0),
        i_ENCLKOP=Const(0),
        i_PLLWAKESYNC=Const(0),
        i_PHASESEL0=Const(0),
        i_PHASESEL1=Const(0),
        i_PHASEDIR=Const(0),
        i_PHASESTEP=Const(0),
        i_PHASELOADREG=Const(0),
        o_CLKOP=out,
        o_LOCK=locked,
    )
    return out, locked


def _gowin(m: Module, pin: Value, hz: int, chosen: Dividers) -> tuple[Value, Value]:
    out = Signal()
    locked = Signal()
    m.submodules.pll = Instance(
        "rPLL",
        p_FCLKIN=f"{hz / 1e6:g}",
        p_DEVICE="GW2A-18C",
        p_IDIV_SEL=chosen.divide - 1,
        p_FBDIV_SEL=chosen.multiply - 1,
        p_ODIV_SEL=chosen.output,
        i_CLKIN=pin,
        i_CLKFB=Const(0),
        i_RESET=Const(0),
        i_RESET_P=Const(0),
        i_FBDSEL=Const(0, 6),
        i_IDSEL=Const(0, 6),
        i_ODSEL=Const(0, 6),
        i_PSDA=Const(0, 4),
        i_DUTYDA=Const(0, 4),
        i_FDLY=Const(0, 4),
        o_CLKOUT=out,
        o_LOCK=locked,
    )
    return out, locked


def _xilinx7(m: Module, pin: Value, hz: int, chosen: Dividers) -> tuple[Value, Value]:
    unbuffered = Signal()
    feedback = Signal()
    out = Signal()
    locked = Signal()
    m.submodules.pll = Instance(
        "PLLE2_BASE",
        p_CLKIN1_PERIOD=1e9 / hz,
        p_DIVCLK_DIVIDE=chosen.divide,
        p_CLKFBOUT_MULT=chosen.multiply,
        p_CLKOUT0_DIVIDE=chosen.output,
        i_CLKIN1=pin,
        i_CLKFBIN=feedback,
        i_RST=Const(0),
        i_PWRDWN=Const(0),
        o_CLKFBOUT=feedback,
        o_CLKOUT0=unbuffered,
        o_LOCKED=locked,
    )
    m.submodules.global_buffer = Instance("BUFG", i_I=unbuffered, o_O=out)
    return out, locked


_Maker = Callable[[Module, Value, int, Dividers], tuple[Value, Value]]
PLLS: dict[str, tuple[Limits, _Maker]] = {
    # Lattice FPGA-DS-02012.
    "ecp5": (
        Limits(
            range(1, 129),
            range(1, 81),
            tuple(range(1, 129)),
            (3_125_000, 400_000_000),
            (400_000_000, 800_000_000),
        ),
        _ecp5,
    ),
    # Gowin DS102, GW2A C8/I7.
    "gowin": (
        Limits(
            range(1, 65),
            range(1, 65),
            (2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128),
            (3_000_000, 500_000_000),
            (500_000_000, 1_250_000_000),
        ),
        _gowin,
    ),
    # Xilinx DS181, speed grade -1.
    "xilinx7": (
        Limits(
            range(1, 57),
            range(2, 65),
            tuple(range(1, 65)),
            (19_000_000, 450_000_000),
            (800_000_000, 1_600_000_000),
            is_fed_by_output=False,
        ),
        _xilinx7,
    ),
}
"""By family: limits of the PLL, and what makes an instance of it."""


def clock(m: Module, family: str, pin: Value, input_hz: int, output_hz: int) -> tuple[Value, Value]:
    """A PLL.

    Parameters
    ----------
    m : Module
        Where it goes.
    family : str
        One of `PLLS`.
    pin : Value
        Its input.
    input_hz, output_hz : int

    Returns
    -------
    clock, locked : Value

    Raises
    ------
    BoardError
        If it cannot make the frequency.
    """
    limits, make = PLLS[family]
    return make(m, pin, input_hz, dividers(limits, input_hz, output_hz))
