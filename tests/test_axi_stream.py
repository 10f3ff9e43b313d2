"""The exported Verilog block against parts written by others: cocotbext-axi, Verilator's lint."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import re
import subprocess
import tempfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import celosia
from celosia import cli
from celosia_hw.axi_stream import ports
from celosia_hw.block import write_block
from celosia_hw.config import AcceleratorConfig, ConfigError, preset
from celosia_hw.verilog import export
from celosia_sim import toolchain
from celosia_sim.model_device import ModelTransport
from celosia_sim.transport import Slice, StreamTransport
from cocotb_build import TESTS, build_folder, needs_icarus, run_bench
from random_packets import recorded_packets

BENCH = "benches.axi_stream"
CONFIGS = {
    "tiny": preset("tiny"),
    # The widest link.
    "wide": AcceleratorConfig(
        key_rows=2, query_lanes=2, max_head_dim=6, max_keys=8, max_sequence=64, link_bytes=64
    ),
    "eight": dataclasses.replace(preset("small"), max_keys=64),
}
SIMULATIONS = [
    pytest.param("verilator", "tiny"),
    pytest.param("verilator", "wide"),
    pytest.param("verilator", "eight"),
    pytest.param("icarus", "tiny", marks=needs_icarus),
    pytest.param("icarus", "wide", marks=needs_icarus),
]


def built(simulator: str, name: str) -> Path:
    config = CONFIGS[name]
    made_from = ["axi", json.dumps(config.to_dict())]
    return build_folder(simulator, f"axi-{name}", "celosia", lambda: export(config), made_from)


def environment(name: str, **values: object) -> dict[str, str]:
    values["CELOSIA_BENCH_CONFIG"] = json.dumps(CONFIGS[name].to_dict())
    return {key: str(value) for key, value in values.items()}


@pytest.mark.parametrize(("simulator", "name"), SIMULATIONS)
def test_recorded_packets_with_pauses(simulator: str, name: str, tmp_path: Path) -> None:
    packets, replies = recorded_packets(CONFIGS[name], seed=1)
    record = tmp_path / "packets.json"
    record.write_text(
        json.dumps(
            {"in": [p.hex() for p in packets], "out": [r.hex() for r in replies], "pairs": []}
        )
    )
    run_bench(
        *(simulator, built(simulator, name), "celosia", BENCH, tmp_path),
        environment(name, CELOSIA_BENCH_PACKETS=record),
    )


class AxiTransport(StreamTransport):
    """A transport to a block that `benches.axi_stream.serve` simulates in another process."""

    def __init__(self, simulator: str, name: str, work: Path) -> None:
        super().__init__(CONFIGS[name].link_bytes, 1)
        address = str(Path(tempfile.mkdtemp(dir=work)) / "socket")
        self._executor = ThreadPoolExecutor(1)
        folder = built(simulator, name)
        with Listener(address) as listener:
            self._bench = self._executor.submit(
                run_bench,
                *(simulator, folder, "celosia", BENCH, work),
                environment(name, CELOSIA_BENCH_SOCKET=address),
            )
            # A bench that fails does not call; this then ends the wait.
            self._bench.add_done_callback(lambda _: _knock(address))
            self._connection = listener.accept()

    def _run(self, data: bytes, ends: bytes, replies: int) -> Generator[Slice, None, None]:
        size = self.link_bytes
        stops = [size * (word + 1) for word, last in enumerate(ends) if last]
        packets = [data[a:b] for a, b in zip([0, *stops], stops, strict=False)]
        self._connection.send((packets, replies))
        received, clocks = self._connection.recv()
        self.total_clocks += clocks
        lasts = b"".join(bytes(len(r) // size - 1) + b"\1" for r in received)
        yield Slice(b"".join(received), lasts, len(ends), 0, clocks)

    def _reset(self) -> None:
        raise AssertionError("the accelerator has to be reset")

    def close(self) -> None:
        self._connection.send(None)
        self._connection.close()
        self._bench.result()
        self._executor.shutdown()


def _knock(address: str) -> None:
    with contextlib.suppress(OSError):
        Client(address).close()


@pytest.mark.parametrize(
    ("simulator", "name"),
    [
        pytest.param("verilator", "eight"),
        pytest.param("icarus", "tiny", marks=needs_icarus),
    ],
)
def test_the_driver_runs_on_it(simulator: str, name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    sample = np.load(str(Path(celosia.__file__).parent / "data" / "smollm2_layer17.npz"))
    dim = min(config.max_head_dim, sample["query"].shape[-1])
    query, key, value = (sample[part][:3, :20, :dim] for part in ("query", "key", "value"))
    arguments: dict[str, Any] = {"is_causal": True, "enable_gqa": True}
    with celosia.Device(AxiTransport(simulator, name, tmp_path)) as device:
        assert device.config == config
        result = celosia.run_attention(query, key, value, device=device, **arguments)
    with celosia.Device(ModelTransport(config)) as model:
        expected = celosia.run_attention(query, key, value, device=model, **arguments)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_lint(name: str, tmp_path: Path) -> None:
    """Nothing but what the waivers say; of the classes that matter none is waived."""
    files = write_block(CONFIGS[name], tmp_path, "block")
    waivers = next(path for path in files if path.suffix == ".vlt").read_text()
    rules = re.findall("^lint_off .*$", waivers, re.MULTILINE)
    assert rules
    assert all(rule.endswith(' -file "*block.v"') for rule in rules)  # none for others' files
    for rule in (
        *("WIDTHTRUNC", "LATCH", "MULTIDRIVEN", "UNOPTFLAT"),
        *("CASEINCOMPLETE", "COMBDLY", "PINMISSING"),
    ):
        assert rule not in waivers
    tools = toolchain.find_toolchain()
    command = [
        *(*tools.verilator, "--lint-only", "-Wall", "--language", "1364-2005"),
        *("--top-module", "block", "block.vlt", "-f", "block.f"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"VERILATOR_ROOT": tools.root}
    )
    assert "%" not in done.stdout + done.stderr  # what its messages begin with
    assert done.returncode == 0


@needs_icarus
def test_two_configurations_in_one_design(tmp_path: Path) -> None:
    tops = {"first": preset("tiny"), "second": CONFIGS["wide"]}
    for name, config in tops.items():
        write_block(config, tmp_path, name)
    (tmp_path / "both.v").write_text("module both; first a (); second b (); endmodule\n")
    command = [
        "iverilog",
        "-g2005",
        "-s",
        "both",
        "-o",
        "both.vvp",
        "both.v",
        "first.v",
        "second.v",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_block(preset("tiny"), tmp_path / folder)
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {
        *("celosia.v", "celosia.md", "celosia.json", "celosia.f", "celosia.vlt"),
        *("protocol.md", "arithmetic.md"),
    }
    for name in names:
        text = (tmp_path / "one" / name).read_text()
        assert text == (tmp_path / "two" / name).read_text()
        assert str(TESTS.parent) not in text
    verilog = (tmp_path / "one" / "celosia.v").read_text()
    assert verilog.startswith("// SPDX-License-Identifier: BSD-2-Clause\n")
    assert "\\" not in verilog


@pytest.mark.parametrize("name", ["", "a-b", "1a", "a b", "module.v", "aé", "module", "logic"])
def test_bad_names_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"plain identifier|no keyword"):
        write_block(preset("tiny"), tmp_path / "block", name)
    block = tmp_path / "block"
    assert cli.main(["verilog", "--config", "tiny", "--name", name, "-o", str(block)]) == 2
    assert repr(name) in capsys.readouterr().err
    assert not block.exists()


@needs_icarus
def test_a_memory_is_replaced_by_a_macro(tmp_path: Path) -> None:
    write_block(preset("tiny"), tmp_path)
    verilog = (tmp_path / "celosia.v").read_text()
    memories = re.findall(r"^module (celosia_ram_\w+)", verilog, re.MULTILINE)
    assert memories
    page = (tmp_path / "celosia.md").read_text()
    modules = re.findall(r"^module celosia_ram_.*?^endmodule\n", verilog, re.DOTALL | re.MULTILINE)
    (tmp_path / "celosia_memories.v").write_text("".join(modules))
    defines = [f"-D{name}" for name in memories]
    command = ["iverilog", "-g2005", "-s", "celosia", "-o", "block.vvp", *defines, "celosia.v"]
    alone = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert alone.returncode != 0
    both = subprocess.run([*command, "celosia_memories.v"], cwd=tmp_path, capture_output=True)
    assert both.returncode == 0
    for name in memories:
        assert f"| `{name}` |" in page


@needs_icarus
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("is_wrong", [False, True])
def test_hand_written_bench(seed: int, is_wrong: bool, tmp_path: Path) -> None:
    """A bench without Python plays recorded packets; a wrong reply is told."""
    config = preset("tiny")
    write_block(config, tmp_path)
    counts = {}
    packets, replies = recorded_packets(config, seed)
    if is_wrong:
        replies[3] = replies[3][:-1] + bytes([replies[3][-1] ^ 1])
    for name, parts in (("commands", packets), ("replies", replies)):
        words = [
            f"{int(end == len(part))}{part[end - 4 : end][::-1].hex()}"
            for part in parts
            for end in range(4, len(part) + 1, 4)
        ]
        (tmp_path / f"{name}.hex").write_text("\n".join(words) + "\n")
        counts[name] = len(words)
    command = ["iverilog", "-g2005", "-Wall", "-o", "replay", "-s", "replay"]
    command += [f"-Preplay.{name.upper()}={count}" for name, count in counts.items()]
    command += ["celosia.v", str(TESTS / "verilog" / "replay.v")]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    done = subprocess.run(
        ["vvp", "replay", f"+seed={seed}"], cwd=tmp_path, capture_output=True, text=True
    )
    wrong = int(is_wrong)
    assert f"{counts['replies']} words compared, {wrong} wrong" in done.stdout


@pytest.mark.parametrize("file", ["celosia.sdc", "celosia.xdc"])
def test_constraints_name_ports_that_exist(file: str) -> None:
    text = (TESTS.parent / "constraints" / file).read_text()
    named = re.findall(r"\[get_ports (\S+)\]", text)
    assert named
    for pattern in named:
        assert any(fnmatch.fnmatch(port, pattern) for port in ports(preset("default"))), pattern
    commands = {line.split()[0] for line in text.splitlines() if line and line[0] != "#"}
    assert commands <= {"create_clock", "set_false_path"}
