"""Measure area and speed of a ladder of configurations: ``python docs/measure_area.py``.

Prints the tables of docs/area.md; takes about an hour on two cores. Arguments restrict it to rows
whose configuration or target they name.
"""

from __future__ import annotations

import dataclasses
import sys

from celosia.text import markdown, markdown_row
from celosia_hw.boards import BOARDS
from celosia_hw.config import AcceleratorConfig, preset
from celosia_hw.estimate import TARGETS, Estimate, estimate

FOUR = dataclasses.replace(
    preset("small"), key_rows=4, query_lanes=4, max_keys=256, link_bytes=4, normalizer_lanes=1
)
LADDER: tuple[tuple[str, AcceleratorConfig, str], ...] = (
    # `tiny` would take 80 % of the flip-flops of Gowin's part.
    ("2 x 2", BOARDS["tang-primer-20k"].config, "gowin"),
    *(("`tiny`, 4 x 3", preset("tiny"), target) for target in TARGETS if target != "gowin"),
    ("4 x 4", FOUR, "ecp5"),
    *(("`small`, 8 x 8", preset("small"), target) for target in ("ecp5", "xilinx7", "asic")),
)
COMPONENTS = (preset("small"), "ecp5")
KINDS = ("LUT", "FF", "LUT RAM", "DSP", "block RAM")


def row(name: str, result: Estimate) -> str:
    """A line of the table."""
    total, macs = result.total, result.multipliers
    cells = [str(total[kind]) if total[kind] else "-" for kind in KINDS]
    if total["area"]:
        cells[0] = f"{total['area'] / 1e6:.2f} mm²"
    per_mac = [f"{total[kind] / macs:.0f}" if total[kind] else "-" for kind in ("LUT", "FF")]
    fmax = f"{result.fmax:.1f}" if result.fmax else result.remark
    path = ", ".join(f"{place} {delay:.1f}" for place, delay in result.critical_path)
    fields = [name, TARGETS[result.target].name, *cells, *per_mac, fmax, path or "-"]
    return markdown_row(fields)


def components(result: Estimate) -> str:
    """The table by component."""

    def size(name: str) -> int:
        return result.cells[name]["LUT"] + result.cells[name]["FF"]

    rows = []
    for name in sorted(result.cells, key=size, reverse=True):
        mhz = result.component_fmax.get(name)
        counts = (result.cells[name][kind] or "-" for kind in KINDS)
        rows.append((f"`{name}`", *counts, f"{mhz:.0f}" if mhz else "-"))
    return markdown(["component", *KINDS, "slowest path into it, MHz"], rows)


def main() -> None:
    """Measure, and print a line as soon as it is known."""
    head = ["configuration", "target", *KINDS, "LUT per MAC", "FF per MAC", "MHz"]
    head.append("critical path, ns in each component")
    print(markdown(head, []))
    by_component = ""
    for name, config, target in LADDER:
        wanted = sys.argv[1:]
        if wanted and not any(word in (name, target) or word in name for word in wanted):
            continue
        result = estimate(
            config, target, lambda line: print(f"\r\x1b[K{line}"[:120], end="", file=sys.stderr)
        )
        print("\r\x1b[K", end="", file=sys.stderr)
        print(row(name, result), flush=True)
        if (config, target) == COMPONENTS:
            by_component = components(result)
    if by_component:
        print(f"\n{by_component}")


if __name__ == "__main__":
    main()
