"""The accelerator as a block with AXI4-Stream ports."""

from __future__ import annotations

from amaranth.hdl import Cat, ClockDomain, Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Member, Out, connect

from .accelerator import Accelerator
from .config import AcceleratorConfig
from .packets import CommandWord, PacketWord
from .register_slice import RegisterSlice

__all__ = ["AxiStreamAccelerator", "ports"]


def ports(config: AcceleratorConfig) -> dict[str, Member]:
    """The ports of an `AxiStreamAccelerator`, by name."""
    bits, keep = config.link_bits, config.link_bytes
    return {
        "aclk": In(1),
        "aresetn": In(1),
        "s_axis_tdata": In(bits),
        "s_axis_tkeep": In(keep),
        "s_axis_tlast": In(1),
        "s_axis_tvalid": In(1),
        "s_axis_tready": Out(1),
        "m_axis_tdata": Out(bits),
        "m_axis_tkeep": Out(keep, init=(1 << keep) - 1),
        "m_axis_tlast": Out(1),
        "m_axis_tvalid": Out(1),
        "m_axis_tready": In(1),
    }


class AxiStreamAccelerator(wiring.Component):
    """An `Accelerator` between two AXI4-Streams (ARM IHI 0051), all of whose outputs are registers.

    A packet is what TLAST ends. TKEEP of a command must be contiguous from byte 0, and only the
    last beat of a packet may leave bytes out, which count as zeros; anything else is answered with
    an ERROR, `protocol.ErrorCode.BAD_KEEP`. Results keep all bytes. Latency: a clock in each
    direction beside the accelerator's. Back-pressure is that of `Accelerator`.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    aclk, aresetn : In(1)
        Clock, and reset (synchronous, active low, at least two clocks).
    s_axis_tdata, s_axis_tkeep, s_axis_tlast, s_axis_tvalid, s_axis_tready
        Commands: `link_bytes` bytes.
    m_axis_tdata, m_axis_tkeep, m_axis_tlast, m_axis_tvalid, m_axis_tready
        Results: `link_bytes` bytes.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        super().__init__(ports(config))

    def elaborate(self, platform) -> Module:
        m = Module()
        m.domains.sync = sync = ClockDomain()
        # Resets through a register of its own, since it reaches every part of the chip.
        m.domains.reset = reset = ClockDomain(reset_less=True)
        m.d.comb += [sync.clk.eq(self.aclk), reset.clk.eq(self.aclk)]
        m.d.reset += sync.rst.eq(~self.aresetn)
        m.submodules.accelerator = accelerator = Accelerator(self.config)
        m.submodules.command = command = RegisterSlice(CommandWord(self.config))
        m.submodules.result = result = RegisterSlice(PacketWord(self.config.link_bytes))
        connect(m, command.o, accelerator.command)
        connect(m, accelerator.result, result.i)

        keep = self.s_axis_tkeep
        kept = Cat(bit.replicate(8) for bit in keep)
        is_contiguous = (keep & (keep + 1)[: len(keep)]) == 0
        m.d.comb += [
            command.i.valid.eq(self.s_axis_tvalid),
            command.i.payload.data.eq(self.s_axis_tdata & kept),
            command.i.payload.last.eq(self.s_axis_tlast),
            command.i.payload.bad.eq(~Mux(self.s_axis_tlast, is_contiguous, keep.all())),
            self.s_axis_tready.eq(command.i.ready),
            self.m_axis_tvalid.eq(result.o.valid),
            self.m_axis_tdata.eq(result.o.payload.data),
            self.m_axis_tlast.eq(result.o.payload.last),
            result.o.ready.eq(self.m_axis_tready),
        ]
        return m
