"""`celosia bench`: its rows and its table."""

import dataclasses
import json

import pytest

import celosia
from celosia import bench, cli
from celosia_hw.boards import BOARDS

SMALL = [
    dataclasses.replace(
        case, queries=min(case.queries, 20), keys=20 if case.keys < 2000 else 60, dim=8
    )
    for case in bench.CASES
]


def test_every_case_runs_on_the_hardware(hardware):
    with celosia.open_device(hardware) as device:
        rows = bench.bench(device, SMALL, heads=2)
    assert [row["case"] for row in rows] == [case.name for case in bench.CASES]
    chunks, resent = rows[-3:-1]
    assert chunks["link_bytes"] < resent["link_bytes"]
    for row in rows:
        assert row["model_mismatches"] == 0
        if hardware.startswith("sim"):  # a board does not tell its clocks
            assert row["clocks"] > 0
            assert 0 < row["utilization"] < 1
        assert row["sqnr_db"] > 30


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_leaves_out_what_it_cannot_hold(name):
    config = BOARDS[name].config
    with celosia.open_device("model", config=config) as device:
        for case in bench.CASES:
            # Few queries: the limits are the keys' and the dimension's.
            (row,) = bench.bench(device, [dataclasses.replace(case, queries=1, mask=None)], heads=1)
            fits = case.dim <= config.max_head_dim and case.keys <= config.max_sequence
            assert ("left_out" in row) == (not fits)
    left_out = {"case": "long", "left_out": "max_sequence is 1024"}
    assert "| long: left out, max_sequence is 1024 |" in bench.format_table([left_out])


def test_table_and_json(monkeypatch, capsys):
    monkeypatch.setattr(bench, "CASES", SMALL[:2])
    assert cli.main(["bench", "--device", "model:tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| 64 tokens |  |  | 0.01 | ")
    assert cli.main(["bench", "--device", "model:tiny", "--json"]) == 0
    assert [row["case"] for row in json.loads(capsys.readouterr().out)] == [
        case.name for case in SMALL[:2]
    ]
    assert cli.main(["bench", "--device", "nowhere"]) == 2
    assert "unknown device" in capsys.readouterr().err
