"""Rounding, saturation and shifts of `celosia_hw.pipeline` against their mathematical meaning."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Mux, signed, unsigned

from celosia_hw import pipeline
from formal.prover import Proof, mutant, prove

WIDTH = 7
"""Of a number. No code depends on the width but through the number of its bits."""
SHAPES = {"signed": signed(WIDTH), "unsigned": unsigned(WIDTH)}


@prove(
    pipeline.round_shift,
    {
        "rounds down": lambda: mutant(
            pipeline.round_shift, ("(value + (1 << (shift - 1))) >> shift", "value >> shift")
        ),
        "rounds halves downward": lambda: mutant(
            pipeline.round_shift, ("(1 << (shift - 1))", "(1 << (shift - 1)) - 1")
        ),
    },
)
def round_shift(p: Proof, function: Any) -> None:
    """``floor(x / 2^s + 1/2)``, s up to more than the width."""
    for name, shape in SHAPES.items():
        x = p.free(shape, name)
        for shift in range(WIDTH + 3):
            result = function(x, shift)
            p.claim(result << (shift + 1) <= 2 * x + (1 << shift))
            p.claim(2 * x + (1 << shift) < (result + 1) << (shift + 1))


@prove(
    pipeline.clamp,
    {
        "lets negative numbers wrap": lambda: mutant(
            pipeline.clamp,
            ("(dropped == 0) & ~sign | dropped.all() & sign", "(dropped == 0) | sign"),
        ),
        "forgets the new sign bit": lambda: mutant(
            pipeline.clamp, ("value[shape.width - 1 : -1]", "value[shape.width : -1]")
        ),
        "saturates to the other end": lambda: mutant(
            pipeline.clamp,
            (
                "Cat((~sign).replicate(shape.width - 1), sign)",
                "Cat(sign.replicate(shape.width - 1), ~sign)",
            ),
        ),
    },
)
def clamp(p: Proof, function: Any) -> None:
    """``min(max(x, low), high)``, to less, as much and more bits than there are."""
    x = p.free(signed(WIDTH), "x")
    for bits in range(2, WIDTH + 2):
        result = function(x, signed(bits))
        low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        p.claim(result == Mux(x < low, low, Mux(x > high, high, x)))


@prove(
    pipeline.halve_and_clamp,
    {
        "rounds down": lambda: mutant(
            pipeline.halve_and_clamp, ("(value[: width + 1] + 1)", "(value[: width + 1] + 0)")
        ),
        "wraps by rounding up": lambda: mutant(
            pipeline.halve_and_clamp, ("(dropped == 0) & ~result[-1]", "dropped == 0")
        ),
        "lets negative numbers wrap": lambda: mutant(
            pipeline.halve_and_clamp, ("Mux(sign, dropped.all(),", "Mux(sign, 1,")
        ),
        "saturates to the other end": lambda: mutant(
            pipeline.halve_and_clamp,
            (
                "Cat((~sign).replicate(width - 1), sign)",
                "Cat(sign.replicate(width - 1), ~sign)",
            ),
        ),
    },
)
def halve_and_clamp(p: Proof, function: Any) -> None:
    """`clamp` of `round_shift` by one, to less, as much and more bits than there are."""
    x = p.free(signed(WIDTH), "x")
    for bits in range(2, WIDTH + 2):
        expected = pipeline.clamp(pipeline.round_shift(x, 1), signed(bits))
        p.claim(function(x, signed(bits)) == expected)


@prove(
    pipeline.is_greater,
    {
        "compares as unsigned": lambda: mutant(
            pipeline.is_greater,
            ("Cat(a[:-1], ~a[-1]) > Cat(b[:-1], ~b[-1])", "a.as_unsigned() > b.as_unsigned()"),
        ),
        "takes equal ones": lambda: mutant(pipeline.is_greater, (") > Cat", ") >= Cat")),
    },
)
def is_greater(p: Proof, function: Any) -> None:
    """``a > b``."""
    a, b = (p.free(signed(WIDTH), name) for name in "ab")
    p.claim(function(a, b) == (a > b))


@prove(
    pipeline.shift_right_twice,
    {
        "shifts by ones alone": lambda: mutant(
            pipeline.shift_right_twice, ("value >> Cat(Const(0, 3), amount[3:6])", "value")
        ),
        "knows no amount above 31": lambda: mutant(
            pipeline.shift_right_twice, ("amount[3:6]", "amount[3:5]")
        ),
        "takes the next amount": lambda: mutant(
            pipeline.shift_right_twice, ("coarse >> rest", "coarse >> amount[:3]")
        ),
        "is never cleared": lambda: mutant(
            pipeline.shift_right_twice, ("if clear is None", "if True")
        ),
    },
    depth=3,
)
def shift_right_twice(p: Proof, function: Any) -> None:
    """``floor(x / 2^a)`` two clocks later, for every amount of 6 bits, or zero."""
    amount, clear = p.free(6, "amount"), p.free(1, "clear")
    # A reset does not touch the registers.
    a, is_clear = (p.past(one, 2, reset_less=True) for one in (amount, clear))
    for name, shape in SHAPES.items():
        value = p.free(shape, name)
        shifted = function(p.m, value, amount, f"{name}_shifted")
        cleared = function(p.m, value, amount, f"{name}_cleared", clear=clear)
        x = p.past(value, 2, reset_less=True)
        with p.m.Switch(a):
            for constant in range(64):
                with p.m.Case(constant):
                    p.claim((shifted << constant <= x) & (x < (shifted + 1) << constant))
        p.claim(cleared == Mux(is_clear, 0, shifted))
