"""The cocotb benches of ``benches/``: every component and the whole core, in each simulator.

One design holds all components of a configuration (`benches.testbed`), so a configuration is
built once per simulator.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benches.testbed import CONFIGS, TOP, testbed_verilog
from cocotb_build import TESTS, build_folder, needs_icarus, run_bench

BENCHES = TESTS / "benches"
MODULES = sorted(path.stem for path in BENCHES.glob("bench_*.py"))

SIMULATIONS = [
    *(pytest.param("verilator", name, id=f"verilator-{name}") for name in CONFIGS),
    pytest.param("icarus", "tiny", id="icarus-tiny", marks=needs_icarus),
]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(("simulator", "name"), SIMULATIONS)
def test_bench(simulator: str, name: str, module: str, tmp_path: Path) -> None:
    config = json.dumps(CONFIGS[name].to_dict())
    made_from = [config, (BENCHES / "testbed.py").read_bytes()]
    folder = build_folder(simulator, name, TOP, lambda: testbed_verilog(CONFIGS[name]), made_from)
    environment = {"CELOSIA_BENCH_CONFIG": config}
    run_bench(simulator, folder, TOP, f"{BENCHES.name}.{module}", tmp_path, environment)
