"""Lines and signals of the exported Verilog that the benches reach, as Verilator counts them."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from celosia_hw.config import preset
from celosia_hw.verilog import export
from celosia_sim.model_device import ModelTransport
from cocotb_build import build_folder, run_bench
from random_packets import Packets, recorded_packets
from test_model_device import malformed

pytestmark = pytest.mark.coverage
BENCH = "benches.axi_stream"
LEAST_LINES = 0.95


def record(config) -> dict:
    """Long programs of everything, malformed packets, missing and surplus mask tiles."""
    packets, replies = [], []
    for seed in range(8):
        more, answers = recorded_packets(config, seed, count=20)
        packets += more
        replies += answers
    broken = Packets(config, 5)
    whole = [broken.attend(kinds, least=3) for kinds in (("mask",), ("bias",), ("mask", "bias"))]
    cuts = [attend[: -cut * config.link_bytes] for attend in whole for cut in (1, 2)]
    cuts += [attend + bytes(config.link_bytes) for attend in whole]
    singles = [(broken.load(0, config.slots), 0), *((packet, 2) for packet in cuts)]
    singles += [(packet, 1) for packet, _ in malformed(config)]
    with ModelTransport(config) as model:
        pairs = [(packet, model.exchange([packet], count)) for packet, count in singles]
    return {
        "in": [packet.hex() for packet in packets],
        "out": [reply.hex() for reply in replies],
        "pairs": [(packet.hex(), [reply.hex() for reply in answers]) for packet, answers in pairs],
    }


def points(path: Path) -> dict[str, dict[tuple, int]]:
    """Counts of the points of a Verilator coverage file, by kind."""
    found: dict[str, dict[tuple, int]] = defaultdict(lambda: defaultdict(int))
    for line in path.read_text().splitlines():
        entry = re.fullmatch(r"C '(.*)' (\d+)", line)
        if entry is None:
            continue
        fields = dict(field.split("\2", 1) for field in entry[1].split("\1") if field)
        kind, _, module = fields["page"].partition("/")
        lines = fields.get("S", fields["l"])
        place = (module, lines, fields.get("o", ""), fields.get("n", ""))
        found[kind][place] += int(entry[2])
    return found


def line_numbers(text: str) -> set[int]:
    numbers: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        numbers |= set(range(int(first), int(last or first) + 1))
    return numbers


def test_lines_and_toggles(tmp_path: Path) -> None:
    config = preset("tiny")
    parameters = json.dumps(config.to_dict())
    folder = build_folder(
        *("verilator", "coverage-tiny", "celosia", lambda: export(config)),
        *(["coverage", parameters], ["--coverage-line", "--coverage-toggle"]),
    )
    (tmp_path / "packets.json").write_text(json.dumps(record(config)))
    environment = {
        "CELOSIA_BENCH_CONFIG": parameters,
        "CELOSIA_BENCH_PACKETS": str(tmp_path / "packets.json"),
    }
    run_bench("verilator", folder, "celosia", BENCH, tmp_path, environment)
    found = points(tmp_path / "coverage.dat")

    reached, all_lines = set(), set()
    for kind in ("v_line", "v_branch"):
        for (_, lines, *_), count in found[kind].items():
            all_lines |= line_numbers(lines)
            reached |= line_numbers(lines) if count else set()
    toggles = found["v_toggle"]
    toggled = sum(count > 0 for count in toggles.values())
    verilog = (folder / "celosia.v").read_text().splitlines()
    print(f"lines {len(reached)} of {len(all_lines)}, {len(reached) / len(all_lines):.3f}")
    print(f"toggles {toggled} of {len(toggles)}, {toggled / len(toggles):.3f}")
    module = ""
    for number, text in enumerate(verilog, start=1):
        if text.startswith("module "):
            module = text.split("(")[0]
        if number in all_lines - reached:
            print(f"not reached: {module}: {number}: {text.strip()}")
    assert len(reached) / len(all_lines) >= LEAST_LINES
