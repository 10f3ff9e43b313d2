"""The accelerator as a block for other people's designs: Verilog with all that goes with it."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

from . import VERSION
from .arithmetic import Widths
from .axi_stream import AxiStreamAccelerator, ports
from .config import AcceleratorConfig
from .protocol import (
    COUNTER_NAMES,
    PROTOCOL_VERSION,
    REPLY_BYTES,
    identity_payload,
    product_words,
    result_tile_words,
    state_words,
)
from .timing import Timing
from .verilog import Target, convert

__all__ = ["reply_bytes", "write_block"]

LINT_WAIVERS = "lint.vlt"
DOCUMENTS = ("protocol.md", "arithmetic.md")
_SIGNALS = {
    "aclk": "clock; everything happens at its rising edge",
    "aresetn": "reset, active low, synchronous to `aclk`, for at least two clocks",
    "tdata": "a word; the first byte of a packet is in bits 7 to 0 of its first word",
    "tkeep": "1 for each byte that is there",
    "tlast": "1: the packet's last word",
    "tvalid": "1: a word is offered; it stays until `tready`",
    "tready": "1: the word is taken",
}


def write_block(config: AcceleratorConfig, folder: Path, name: str = "celosia") -> list[Path]:
    """Write an accelerator's Verilog, its description, and what tools need to use it.

    Parameters
    ----------
    config : AcceleratorConfig
    folder : Path
        Made if it is absent; files of the same names in it are replaced.
    name : str
        Of the top module and of the files, and prefix of all other modules.

    Returns
    -------
    list of Path
        ``NAME.v``, ``NAME.md`` (ports, packets, sizes), ``NAME.json`` (configuration),
        ``NAME.f`` (file list), ``NAME.vlt`` (lint waivers), ``protocol.md``, ``arithmetic.md``.
        The same configuration and name give the same bytes.

    Raises
    ------
    ConfigError
        If the name is no plain identifier.
    OSError
        If a file cannot be written.
    """
    target = Target(name)
    verilog = convert(AxiStreamAccelerator(config), target)
    contents = {
        f"{name}.v": verilog,
        f"{name}.md": describe(config, name, target),
        f"{name}.json": json.dumps(_facts(config, name, target.memory_bits), indent=2) + "\n",
        f"{name}.f": f"{name}.v\n",
        f"{name}.vlt": _waivers(name),
        **{document: _document(document) for document in DOCUMENTS},
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file, text in contents.items():
        paths.append(folder / file)
        paths[-1].write_bytes(text.encode())
    return paths


def _waivers(name: str) -> str:
    return Path(__file__).with_name(LINT_WAIVERS).read_text().replace("{name}", name)


def reply_bytes(config: AcceleratorConfig, value_dim: int) -> dict[str, int]:
    """Bytes of each reply, header and padding included.

    Parameters
    ----------
    value_dim : int
        Ev, which a RESULT and a STATE depend on. A PRODUCT is taken at its longest.
    """
    payloads = {
        "IDENTITY": config.words(len(identity_payload(config, VERSION))),
        "STATISTICS": config.words(8 * len(COUNTER_NAMES)),
        "RESULT": result_tile_words(config, value_dim),
        "STATE": state_words(config, value_dim),
        "PRODUCT": product_words(config, config.product_tiles * config.key_rows),
        "ERROR": 0,
    }
    header = config.words(REPLY_BYTES)
    return {name: (header + words) * config.link_bytes for name, words in payloads.items()}


def _facts(config: AcceleratorConfig, name: str, memory_bits: int) -> dict:
    others = memory_bits - sum(config.memory_bits.values())
    return {
        "top": name,
        "version": ".".join(map(str, VERSION)),
        "protocol_version": PROTOCOL_VERSION,
        "parameters": config.to_dict(),
        "multipliers": config.multipliers,
        "key_capacity": config.key_capacity,
        "slots": config.slots,
        "memory_bits": {**config.memory_bits, "others": others},
        "accumulator_bits": Widths(config).accumulator,
        "longest_reply_bytes": reply_bytes(config, config.max_head_dim),
    }


def _document(name: str) -> str:
    """A page of the documentation, without links to pages that do not come with it."""
    packaged = Path(__file__).with_name(name)  # in a wheel; in the sources in docs
    path = packaged if packaged.exists() else Path(__file__).parents[2] / "docs" / name
    kept = "|".join(map(re.escape, DOCUMENTS))
    return re.sub(rf"\[([^]]+)\]\((?!{kept}|#)[^)]*\)", r"\1", path.read_text())


def _meanings() -> dict[str, str]:
    """What the parameters of a configuration are, from its docstring."""
    text = inspect.getdoc(AcceleratorConfig) or ""
    found = re.findall(r"^(\w[\w, ]*) : .*\n((?:    .*\n?)+)", text, re.MULTILINE)
    meanings = {}
    for names, lines in found:
        for name in names.split(", "):
            meanings[name] = " ".join(lines.split()).replace("``", "`")
    return meanings


def describe(config: AcceleratorConfig, name: str, target: Target) -> str:
    """The description of a block, as Markdown.

    Parameters
    ----------
    target : Target
        What its Verilog was made for.
    """
    longest = reply_bytes(config, config.max_head_dim)
    timing = Timing(config)
    meanings = _meanings()
    sections = [
        f"# `{name}`: {config.key_rows} x {config.query_lanes} attention accelerator",
        "Computes softmax(Q K^T scale + mask) V in int8. Version "
        f"{'.'.join(map(str, VERSION))}, protocol {PROTOCOL_VERSION}. Commands come in as packets "
        "on one AXI4-Stream, replies leave on another; there is no other interface. `protocol.md` "
        "describes the packets, `arithmetic.md` the numbers.",
        "## Ports",
        _table(
            ("port", "direction", "bits", "meaning"),
            [
                (f"`{port}`", str(member.flow).lower(), member.shape, _meaning(port))
                for port, member in ports(config).items()
            ],
        ),
        "All outputs are registers or constants; inputs pass some gates first. TKEEP of a command "
        "is all ones but in the last word of a packet, where it may lack the last bytes, which "
        "count as zeros. Anything else is answered with an ERROR. Replies have all bytes.",
        "## Instance",
        "```verilog\n" + _instance(config, name) + "```",
        "## Parameters",
        _table(
            ("parameter", "value", "meaning"),
            [(f"`{n}`", v, meanings[n]) for n, v in config.to_dict().items()],
        ),
        f"In `protocol.md` R is {config.key_rows}, C {config.query_lanes}, `slots` {config.slots}, "
        f"that is room for {config.key_capacity} keys.",
        "## Lengths of replies",
        "Packets end with TLAST. A buffer of the longest takes any reply; Ev is the head dimension "
        f"of V, at most {config.max_head_dim}:",
        _table(
            ("reply", f"bytes, Ev = {config.max_head_dim}", "bytes, Ev = 1"),
            [(f"`{r}`", longest[r], least) for r, least in reply_bytes(config, 1).items()],
        ),
        "## Clocks",
        "A key tile takes `max(E, Ev, key_rows, 8)` clocks. The first partial sum is at the "
        f"accumulators {timing.partial} clocks after the last element of the head dimension. "
        "A command word is taken every clock unless the stream has to wait; what waits for what is "
        "in `protocol.md`, Order.",
        "## First steps",
        "1. Hold `aresetn` low for two clocks.\n"
        "2. Send an IDENTIFY: 16 bytes `01 01 00 ... 00`, TLAST in the last word. The reply is an "
        f"IDENTITY of {longest['IDENTITY']} bytes with the parameters above.\n"
        "3. LOAD keys and values, ATTEND with queries, and receive a RESULT: `protocol.md`, "
        "Example.\n"
        "4. After a transfer that was broken off, send one word with TLAST, then a RESET; drop "
        "replies up to the IDENTITY with its tag.",
        "## Memories",
        "Each is a module of its own in the Verilog and may be replaced by a macro with one write "
        "and one read port: the Verilog leaves out a module whose name is defined as a macro "
        "(`-D`). Ports: `clk`; `write_addr`, `write_data` and `write_en`, a bit for each part; "
        "`read_addr`, `read_data` and, where a word is read a clock after the address, `read_en`, "
        "without which `read_data` stays. A word that is read in the clock in which it is written "
        "is not used. Contents at the start do not matter.",
        _table(
            ("module", "instances", "words", "bits", "written in parts of", "read", "block RAM"),
            [
                (
                    f"`{memory.name}`",
                    target.instances[memory.name],
                    memory.depth,
                    memory.width,
                    memory.part,
                    "a clock after the address" if memory.is_clocked else "at once",
                    "yes" if memory.is_block else "",
                )
                for _, memory in sorted(target.memories.items())
            ],
        ),
        "## Files",
        f"`{name}.v` holds all modules, whose names begin with `{name}`; `{name}.f` lists it; "
        f"`{name}.json` has the parameters; `{name}.vlt` what `verilator -Wall` need not say. "
        "Licence: BSD-2-Clause.",
    ]
    return "\n\n".join(sections) + "\n"


def _meaning(port: str) -> str:
    prefix, _, signal = port.rpartition("_")
    stream = {"s_axis": "commands: ", "m_axis": "replies: "}.get(prefix, "")
    return stream + _SIGNALS[signal]


def _instance(config: AcceleratorConfig, name: str) -> str:
    joined = ",\n".join(f"  .{port}({port})" for port in ports(config))
    return f"{name} accelerator (\n{joined}\n);\n"


def _table(head: tuple, rows: list[tuple]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
