"""The documentation against the code."""

import argparse
import dataclasses
import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from celosia import cli
from celosia_hw import link_protocol
from celosia_hw.arithmetic import Exp2Table, Widths
from celosia_hw.boards import BOARDS
from celosia_hw.config import PRESETS, AcceleratorConfig
from celosia_hw.protocol import (
    APPEND_FIELDS,
    ATTEND_FIELDS,
    COMMAND_BYTES,
    COUNTER_NAMES,
    COUNTERS_FIELDS,
    EXTENSION_FIELDS,
    IDENTITY_FIELDS,
    LOAD_FIELDS,
    PROTOCOL_VERSION,
    REPLY_FIELDS,
    ErrorCode,
    Opcode,
    Reply,
    identity_payload,
    query_tile_words,
    result_tile_words,
)
from celosia_hw.timing import Timing
from celosia_sim.model_device import ModelTransport

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.glob("*.md")]


def read(name):
    return (DOCS / name).read_text()


def rows(text):
    """Rows of tables, without their back quotes; an empty cell is ""."""
    return [
        [cell.strip().replace("`", "") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def section(text, title):
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def test_api_page_is_up_to_date():
    render = runpy.run_path(str(DOCS / "generate_api.py"))["render"]
    assert read("api.md") == render(), "write it anew: python docs/generate_api.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    text = page.read_text()
    headings = {}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            headings = {re.sub(r"[^\w\- ]", "", t).lower().replace(" ", "-") for t in titles}
            assert anchor in headings, target


# Boards.


def test_boards():
    """Arrays, keys, clock and peak are those of the boards, in their order."""
    page = read("boards.md").replace("\N{MULTIPLICATION SIGN}", "x")
    first = [row for row in rows(page) if len(row) == 10][2:]
    readme = rows(section((DOCS.parent / "README.md").read_text(), "Boards"))[2:]
    for board, row, short in zip(BOARDS.values(), first, readme, strict=True):
        config, mhz = board.config, f"{board.clock_hz / 1e6:g}"
        peak = f"{config.multipliers * board.clock_hz / 1e9:.2f}"
        keys = f"{config.max_keys} x {config.max_head_dim}"
        banks = f"{config.key_banks} x " if config.key_banks > 1 else ""
        assert row[0].startswith(board.name)
        assert row[1] == f"two of {config.key_rows} x {config.query_lanes}"
        assert (row[2], row[3], row[5]) == (banks + keys, mhz, peak)
        assert (short[1], short[2].split()[0], short[3]) == (str(config.multipliers), mhz, peak)


# Architecture.


def test_presets():
    (header,) = [row for row in rows(read("architecture.md")) if row[0] == "parameter"]
    assert header[1:] == list(PRESETS)
    # The name of a parameter, perhaps with a remark.
    table = {
        row[0].removeprefix("bits of ").split()[0]: row[1:] for row in rows(read("architecture.md"))
    }
    configs = PRESETS.values()
    expected = {name: [c.to_dict()[name] for c in configs] for name in PRESETS["tiny"].to_dict()}
    for name in ("multipliers", "key_capacity"):
        expected[name] = [getattr(c, name) for c in PRESETS.values()]
    for name in PRESETS["tiny"].memory_bits:
        expected[name] = [c.memory_bits[name] for c in PRESETS.values()]
    for name, numbers in expected.items():
        assert table.get(name) == [str(number) for number in numbers], name


def test_timing():
    table = rows(section(read("architecture.md"), "Timing"))[2:]
    text = section(read("architecture.md"), "Timing")
    names = re.findall(r"^\| [^|`]*`(\w+)`", text, re.MULTILINE)
    assert names == ["score", "log_score", "probability", "weight", "value", "partial"]
    for name, (_, formula, *numbers) in zip(names, table, strict=True):
        assert numbers == [str(getattr(Timing(config), name)) for config in PRESETS.values()]
        python = re.sub(r"(\d)([mR])", r"\1 * \2", formula)
        other = AcceleratorConfig(key_rows=5, max_keys=5, multiplier_stages=3)
        for config in (*PRESETS.values(), other):
            scope = {"m": config.multiplier_stages, "R": config.key_rows}
            assert eval(python, scope) == getattr(Timing(config), name), name


# Arithmetic.


def test_widths():
    table = {row[0]: row[1:-1] for row in rows(section(read("arithmetic.md"), "Widths"))}
    for name in vars(Widths(PRESETS["tiny"])):
        assert table.get(name) == [str(vars(Widths(c))[name]) for c in PRESETS.values()], name


@pytest.mark.parametrize(("bits", "bound"), [(16, 4.2), (12, 0.77), (8, 0.62)])
def test_deviation_of_probabilities(bits, bound):
    config = AcceleratorConfig(probability_bits=bits)
    distance = np.arange((bits + 4) << config.score_fraction_bits)
    exact = 2.0 ** (bits - distance / (1 << config.score_fraction_bits))
    error = Exp2Table(config).probability(distance) - np.minimum(exact, 2**bits - 1)
    assert bound - 0.1 < np.abs(error).max() <= bound
    assert str(bound) in section(read("arithmetic.md"), "Deviation")


# Protocol.


def test_headers():
    table = [row[:3] for row in rows(read("protocol.md"))]
    for fields in (
        COUNTERS_FIELDS,
        LOAD_FIELDS,
        APPEND_FIELDS,
        ATTEND_FIELDS,
        EXTENSION_FIELDS,
        REPLY_FIELDS,
    ):
        offset, expected = 0, []
        for name, bits in fields.items():
            expected.append([name, str(offset), str(bits)])
            offset += bits
        size = len(expected)
        assert any(table[start : start + size] == expected for start in range(len(table))), fields
    for fields in (ATTEND_FIELDS, EXTENSION_FIELDS):
        assert sum(fields.values()) == 8 * COMMAND_BYTES
    assert f"Version {PROTOCOL_VERSION}." in read("protocol.md")
    assert f"Command headers: {COMMAND_BYTES} bytes" in read("protocol.md")


def test_codes():
    table = {tuple(row[:2]) for row in rows(read("protocol.md"))}
    for kind in (Opcode, Reply, ErrorCode):
        assert {(str(int(item)), item.name) for item in kind} <= table
    fields = {str(4 * i): name for i, name in enumerate(IDENTITY_FIELDS)}
    counters = {str(8 * i): name for i, name in enumerate(COUNTER_NAMES)}
    assert {*fields.items(), *counters.items()} <= table


@pytest.mark.parametrize("config", PRESETS.values(), ids=list(PRESETS))
def test_reply_sizes(config):
    """The column `words` of the replies."""
    dim = config.max_head_dim
    identity = len(identity_payload(config, (0, 0, 0)))
    table = {row[1]: row[3] for row in rows(read("protocol.md")) if len(row) == 4}
    assert table["IDENTITY"] == f"words(4) + words({identity})"
    assert table["STATISTICS"] == f"words(4) + words({8 * len(COUNTER_NAMES)})"
    assert table["RESULT"] == "words(4) + Ev · words(2C)"
    assert result_tile_words(config, dim) == dim * config.words(2 * config.query_lanes)
    lanes = config.query_lanes
    assert query_tile_words(config, dim) == config.words(2 * lanes) + dim * config.words(lanes)


def test_example_packets():
    blocks = re.findall(r"^```\n(.*?)^```$", section(read("protocol.md"), "Example"), re.M | re.S)
    packets = [
        bytes.fromhex("".join(re.split(r"\s{3,}", line)[0] for line in block.splitlines()))
        for block in blocks
    ]
    load, attend, result = packets
    assert ModelTransport(PRESETS["tiny"]).exchange([load, attend], 1) == [result]
    values = np.frombuffer(result, "<i2")[2:5] / 256
    assert [f"{value:.2f}".removesuffix(".00") for value in values] == ["26.71", "29.19", "25"]


# Serial link.


def test_link_kinds_and_sizes():
    text = read("link.md")
    kinds = {row[1]: row[0] for row in rows(section(text, "Frames")) if len(row) == 4}
    assert {kind.name: str(kind.value) for kind in link_protocol.Kind}.items() <= kinds.items()
    sizes = {row[0]: row[1] for row in rows(section(text, "Sizes of a board"))}
    defaults = dataclasses.asdict(link_protocol.LinkConfig())
    assert {name: str(value) for name, value in defaults.items()}.items() <= sizes.items()
    assert f"low for {link_protocol.BREAK_BITS} bit times" in text


def test_link_example():
    (example,) = re.findall(r"```\n(.*?)\n```", section(read("link.md"), "Frames"), re.DOTALL)
    payload = b"\x81" + bytes.fromhex("61626364")
    frame = link_protocol.Frame(link_protocol.Kind.DATA, 7, 1, 2, 3, nak=True, payload=payload)
    assert bytes.fromhex(example) == link_protocol.encode_frame(frame)


# Command line.


def test_options():
    actions = cli._parser()._subparsers._group_actions  # type: ignore[union-attr]
    (commands,) = [a for a in actions if isinstance(a, argparse._SubParsersAction)]
    for name, parser in commands.choices.items():
        documented = {
            option.split()[0]
            for row in rows(section(read("cli.md"), f"`celosia {name}`"))
            for option in row[0].split(", ")
            if re.match("--?[a-z]", option)
        }
        assert documented == {*parser._option_string_actions} - {"-h", "--help"}


def test_json_keys(capsys):
    assert cli.main(["run", "--device", "model:small", "--queries", "4", "--json"]) == 0
    table = rows(section(read("cli.md"), "`celosia run`"))
    documented = {name for row in table for name in row[0].split(", ") if len(row) == 2}
    assert set(json.loads(capsys.readouterr().out)) <= documented


def test_readme_figures_fit_the_architecture_page():
    def figures(text):
        return set(re.findall(r"\| (\d{4,}) \| (0\.\d{3}) \|", text))

    readme, page = (ROOT / "README.md").read_text(), read("architecture.md")
    assert figures(page) < figures(readme)


def test_proofs():
    """Each property is in the table, with the number of its broken variants."""
    import test_formal

    variants = {one.name: len(one.broken) for one in test_formal.PROPERTIES}
    found = []
    for names, _, count in rows(section(read("verilog.md"), "Proofs"))[2:]:
        assert sum(variants[name] for name in names.split(", ")) == int(count), names
        found += names.split(", ")
    assert sorted(found) == sorted(variants)
