"""All components of the gateware side by side in one design, so that one build serves all benches.

Each component is a member of the top module: its ports are named ``<member>__<port>``, and its
clock and reset ``<member>_clk`` and ``<member>_rst``, so that only what is tested runs.
"""

from __future__ import annotations

from amaranth.hdl import DomainRenamer, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out, connect, flipped

from celosia_hw.accelerator import Accelerator, PacketMerge
from celosia_hw.accumulator import AccumulatorLane
from celosia_hw.config import AcceleratorConfig, preset
from celosia_hw.mask_memory import MaskMemory
from celosia_hw.normalizer import Normalizer
from celosia_hw.payload import QUERY_BUFFERS
from celosia_hw.pipeline import EventDelay, Steps
from celosia_hw.reciprocal import Reciprocal
from celosia_hw.row_memory import FactorMemory, RowMemory
from celosia_hw.score_array import ScoreArray
from celosia_hw.sequencer import Sequencer
from celosia_hw.softmax_lane import SoftmaxLane
from celosia_hw.tile_list import TileList
from celosia_hw.value_array import ValueArray
from celosia_hw.verilog import Target, convert

__all__ = ["CONFIGS", "DELAYS", "TOP", "Testbed", "testbed_verilog"]

TOP = "testbed"
CONFIGS = {
    "tiny": preset("tiny"),
    # More lanes than rows, three banks, rows wider than the link, the shortest multiplier.
    "lanes": AcceleratorConfig(
        key_rows=5,
        query_lanes=8,
        max_head_dim=12,
        max_keys=20,
        key_banks=3,
        max_sequence=400,
        probability_bits=9,
        score_fraction_bits=8,
        link_bytes=4,
        multiplier_stages=1,
    ),
    # More rows than lanes, a single bank, a wide link, the longest multiplier.
    "rows": AcceleratorConfig(
        key_rows=12,
        query_lanes=2,
        max_head_dim=9,
        max_keys=264,
        key_banks=1,
        probability_bits=8,
        score_fraction_bits=12,
        score_integer_bits=13,
        link_bytes=32,
        multiplier_stages=4,
    ),
}
DELAYS = {"delay_short": (1, 1), "delay_long": (13, 4), "delay_exact": (12, 6)}
"""Delay and spacing of the instances of `EventDelay`; a record has 9 bits."""


class Testbed(wiring.Component):
    """One of each component, none connected to another."""

    __test__ = False  # not a test class of pytest's

    def __init__(self, config: AcceleratorConfig) -> None:
        rows, lanes = config.key_rows, config.query_lanes
        depth = config.slots * config.max_head_dim
        self._components: dict[str, wiring.Component] = {
            "core": Accelerator(config),
            "score_array": ScoreArray(config),
            "softmax_lane": SoftmaxLane(config),
            "value_array": ValueArray(config),
            "accumulator": AccumulatorLane(config),
            "reciprocal": Reciprocal(config),
            "normalizer": Normalizer(config),
            "sequencer": Sequencer(config),
            "merge": PacketMerge(config),
            "key_memory": RowMemory(config, rows, depth),
            "query_memory": RowMemory(config, lanes, QUERY_BUFFERS * config.max_head_dim),
            "key_factors": FactorMemory(config, rows, config.slots),
            "query_factors": FactorMemory(config, lanes, QUERY_BUFFERS),
            "masks": MaskMemory(config),
            "tile_list": TileList(config),
            "steps": Steps(config.max_head_dim),
            **{name: EventDelay(9, *numbers) for name, numbers in DELAYS.items()},
        }
        super().__init__({name: Out(c.signature) for name, c in self._components.items()})

    def elaborate(self, platform) -> Module:
        m = Module()
        for name, component in self._components.items():
            m.submodules[name] = DomainRenamer(name)(component)  # type: ignore[reportArgumentType]
            connect(m, flipped(getattr(self, name)), component)
        return m


def testbed_verilog(config: AcceleratorConfig) -> str:
    """The Verilog of a testbed."""
    return convert(Testbed(config), Target(TOP))
