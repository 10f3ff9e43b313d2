"""Cells of a synthesised design, by kind and by component."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cell_areas", "component", "count_cells", "port_bits"]

# Cells of Yosys's flows by what they are; two-bit carries are two LUTs, LUT RAM counts in LUTs.
_KINDS = {
    **dict.fromkeys(("LUT4", "SB_LUT4", "LUT1", "LUT2", "LUT3", "LUT5", "LUT6"), ("LUT", 1)),
    "ALU": ("LUT", 1),
    "CCU2C": ("LUT", 2),
    "TRELLIS_DPR16X4": ("LUT RAM", 4),
    "MULT18X18D": ("DSP", 1),
    "SB_MAC16": ("DSP", 1),
    "DSP48E1": ("DSP", 1),
    "DP16KD": ("block RAM", 1),
    "SB_RAM40_4K": ("block RAM", 1),
    "RAMB18E1": ("block RAM", 1),
    "RAMB36E1": ("block RAM", 2),
}
_PATTERNS = (
    (r"TRELLIS_FF|SB_DFF\w*|DFF\w*|FD[RSCP]E?(_1)?", ("FF", 1)),
    (r"MULT\d+X\d+|MULTALU\w*|MULTADDALU\w*", ("DSP", 1)),
    (r"RAM16SDP4|RAM(32|64)M|RAM128X1D", ("LUT RAM", 4)),
    (r"RAM16SDP2|RAM(32|64)X1D", ("LUT RAM", 2)),
    (r"S?DPX?9?B?|SPX?9?", ("block RAM", 1)),
    (r"SRL\w*", ("LUT", 1)),
)
_OUTPUTS = (
    *("Q", "Z", "O", "F", "P0", "DOA0", "DO", "S0", "SUM", "LO", "RDATA", "DOUT", "P"),
    *("Y", "YS", "YC"),  # standard cells'
)


def component(name: str) -> str:
    """The component that a cell or net of a flattened accelerator belongs to."""
    parts = name.lstrip("\\").split(".")
    for whole in ("serial", "accelerator"):
        if parts[0] == whole and len(parts) > 1:
            parts = parts[1:]
    # Several of a kind count as one; what a name is made of beside the hierarchy goes.
    return re.sub(r"(_\d+|\$\d+)+$", "", parts[0]) if len(parts) > 1 else "other"


def count_cells(path: Path, top: str) -> dict[str, Counter[str]]:
    """Cells of each kind in each component.

    Parameters
    ----------
    path : Path
        JSON netlist of Yosys, flattened.
    top : str

    Returns
    -------
    dict of Counter
        By component: LUT, FF, DSP, block RAM, LUT RAM. Cells of other kinds are left out.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for place, cell in _placed(path, top):
        kind = _kind(cell)
        if kind is not None:
            counts[place][kind[0]] += kind[1]
    return dict(counts)


def cell_areas(path: Path, top: str, liberty: Path) -> dict[str, Counter[str]]:
    """Area of standard cells in each component, as ``area``, in the units of the library.

    Parameters
    ----------
    path : Path
        JSON netlist of Yosys, flattened.
    top : str
    liberty : Path
        The library of the cells; others, such as memories, are left out.
    """
    cell = r"^\s*cell\s*\(\"?(\w+)\"?\)\s*{[^{]*?area\s*:\s*([\d.]+)"
    found = re.findall(cell, liberty.read_text(), re.MULTILINE)
    areas = {name: float(area) for name, area in found}
    sums: dict[str, float] = defaultdict(float)
    for place, name in _placed(path, top):
        if name in areas:
            sums[place] += areas[name]
    return {place: Counter(area=round(area)) for place, area in sums.items()}


def _placed(path: Path, top: str) -> Iterator[tuple[str, str]]:
    """Component and type of each cell."""
    module = json.loads(path.read_text())["modules"][top]
    names: dict[int, str] = {}
    for net, info in module["netnames"].items():
        for bit in info["bits"]:
            # Of several names of a net the one deepest in the hierarchy is where it is driven.
            if isinstance(bit, int) and net.count(".") >= names.get(bit, "").count("."):
                names[bit] = net
    for name, cell in module["cells"].items():
        bits = (bit for port in _OUTPUTS for bit in cell["connections"].get(port, ()))
        net = next((names[bit] for bit in bits if bit in names), name)
        yield component(name if name.count(".") > net.count(".") else net), cell["type"]


def port_bits(path: Path, top: str) -> list[str]:
    """Names of the top module's ports in a JSON netlist, of each bit of a wide one."""
    ports = json.loads(path.read_text())["modules"][top]["ports"]
    names = []
    for name, port in ports.items():
        width = len(port["bits"])
        names += [name] if width == 1 else [f"{name}[{bit}]" for bit in range(width)]
    return names


def _kind(cell: str) -> tuple[str, int] | None:
    if cell in _KINDS:
        return _KINDS[cell]
    return next((kind for pattern, kind in _PATTERNS if re.fullmatch(pattern, cell)), None)
