"""Pipelined products, in a hard multiplier where the target has one with registers of its own."""

from __future__ import annotations

from typing import NamedTuple

from amaranth.hdl import Cat, ClockSignal, Const, Instance, Module, Signal, Value

from .pipeline import delayed

__all__ = ["Operand", "multiply"]

ECP5_OPERAND_BITS = 18


class Operand(NamedTuple):
    """An operand with the register that it goes through.

    Attributes
    ----------
    source : Value
        Before the register.
    register : Value
        The register's output.
    enable : Value or None
        The register's clock enable.
    """

    source: Value
    register: Value
    enable: Value | None = None


def multiply(
    m: Module, a: Value | Operand, b: Value | Operand, stages: int, name: str, platform=None
) -> Value:
    """The product of two operands, a new one every clock.

    Latency `stages` clocks from the operands, or from their registers if they are `Operand`\\ s. On
    a platform of family ``"ecp5"`` a MULT18X18D computes it, with as many of its own registers in
    use as there are, that of an `Operand` included; elsewhere synthesis finds a multiplier for
    ``a * b`` and the registers behind it.

    Parameters
    ----------
    a, b : Value or Operand
        Both the same kind.
    stages : int
        At least 1.
    name : str
        Of the registers.
    platform : optional
        What `elaborate` got.
    """
    if isinstance(a, Operand) != isinstance(b, Operand):
        raise TypeError("a and b must both be Operands, or neither")
    if getattr(platform, "family", None) == "ecp5" and _fits(a) and _fits(b):
        return _ecp5(m, a, b, stages, name)
    return delayed(m, _register(a) * _register(b), stages, name)


def _register(operand: Value | Operand) -> Value:
    return operand.register if isinstance(operand, Operand) else operand


def _fits(operand: Value | Operand) -> bool:
    return len(_register(operand)) <= ECP5_OPERAND_BITS


def _ecp5(m: Module, a: Value | Operand, b: Value | Operand, stages: int, name: str) -> Value:
    has_register = isinstance(a, Operand)
    registers = stages + has_register
    in_use = {
        "OUTPUT": registers >= 1,
        "INPUTA": registers >= 2,
        "INPUTB": registers >= 2,
        "PIPELINE": registers >= 3,
    }
    options: dict = {}
    for register, used in in_use.items():
        options[f"p_REG_{register}_CLK"] = "CLK0" if used else "NONE"
        options[f"p_REG_{register}_CE"] = "CE0"
        options[f"p_REG_{register}_RST"] = "RST0"
    for number, (port, operand) in enumerate((("A", a), ("B", b)), start=1):
        if isinstance(operand, Operand):
            source, enable = operand.source, operand.enable
        else:
            source, enable = operand, None
        # Zeros below cost no wires, unlike copies of the sign above.
        padded = Cat(Const(0, ECP5_OPERAND_BITS - len(source)), source)
        options |= {f"i_{port}{bit}": padded[bit] for bit in range(ECP5_OPERAND_BITS)}
        options[f"i_SIGNED{port}"] = Const(int(source.shape().signed), 1)
        options[f"i_SOURCE{port}"] = Const(0, 1)
        options[f"i_CE{number}"] = Const(1, 1) if enable is None else enable
        options[f"p_REG_INPUT{port}_CE"] = f"CE{number}"
    shape = (_register(a) * _register(b)).shape()
    product = Signal(shape, name=f"{name}_hard")
    low = 2 * ECP5_OPERAND_BITS - len(_register(a)) - len(_register(b))
    options |= {f"o_P{low + bit}": product[bit] for bit in range(len(product))}
    m.submodules += Instance(
        "MULT18X18D",
        *(("p", "GSR", "DISABLED"), ("p", "RESETMODE", "SYNC")),
        i_CLK0=ClockSignal(),
        i_CE0=Const(1, 1),
        i_RST0=Const(0, 1),
        **options,
    )
    return delayed(m, product, max(registers - 3, 0), name)
