"""A design with the ports of an accelerator that sends packets back; for tests of transports."""

from typing import Any

from amaranth.back import verilog
from amaranth.hdl import ClockDomain, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

SWALLOW, HANG = 0, 255


class Loopback(wiring.Component):
    """Echoes packets, unless the first byte is `SWALLOW`: no reply, or `HANG`: deaf until reset.

    Hangs too if the command stream breaks its rules: valid, once raised, must stay, and the
    payload with it, until the word is accepted. Every eighth clock is not ready.
    """

    command: Any
    result: Any

    def __init__(self, link_bytes: int) -> None:
        words = stream.Signature(data.StructLayout({"data": 8 * link_bytes, "last": 1}))
        super().__init__({"command": In(words), "result": Out(words)})

    def elaborate(self, platform):
        m: Any = Module()
        payload = self.command.payload.as_value()
        width = len(payload)
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=width, depth=5)
        command = self.command
        inside, swallowing, hung = Signal(), Signal(), Signal()
        waiting, waiting_payload = Signal(), Signal(width)
        phase = Signal(3)
        first = command.payload.data[:8]
        swallow = Signal()
        m.d.comb += [
            swallow.eq((inside & swallowing) | (~inside & (first == SWALLOW))),
            command.ready.eq((fifo.w_rdy | swallow) & (phase != 7) & ~hung),
            fifo.w_data.eq(payload),
            fifo.w_en.eq(command.valid & (phase != 7) & ~hung & ~swallow),
            self.result.payload.eq(fifo.r_data),
            self.result.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.result.ready),
        ]
        m.d.sync += [
            phase.eq(phase + 1),
            waiting.eq(command.valid & ~command.ready),
            waiting_payload.eq(payload),
        ]
        with m.If(waiting & (~command.valid | (waiting_payload != payload))):
            m.d.sync += hung.eq(1)
        with m.If(command.valid & command.ready):
            m.d.sync += [inside.eq(~command.payload.last), swallowing.eq(swallow)]
            with m.If(~inside & (first == HANG)):
                m.d.sync += hung.eq(1)
        return m


class AxiLoopback(wiring.Component):
    """A `Loopback` with the ports of the accelerator's block."""

    def __init__(self, link_bytes: int) -> None:
        self._loopback = Loopback(link_bytes)
        names = {"tdata": 8 * link_bytes, "tkeep": link_bytes, "tlast": 1, "tvalid": 1}
        super().__init__(
            {
                "aclk": In(1),
                "aresetn": In(1),
                **{f"s_axis_{name}": In(bits) for name, bits in names.items()},
                "s_axis_tready": Out(1),
                **{f"m_axis_{name}": Out(bits) for name, bits in names.items()},
                "m_axis_tready": In(1),
            }
        )

    def elaborate(self, platform):
        m: Any = Module()
        own: Any = self
        m.domains.sync = sync = ClockDomain()
        m.submodules.loopback = loopback = self._loopback
        m.d.comb += [
            sync.clk.eq(own.aclk),
            sync.rst.eq(~own.aresetn),
            loopback.command.valid.eq(own.s_axis_tvalid),
            loopback.command.payload.data.eq(own.s_axis_tdata),
            # A byte that is missing makes it hang: no packet ends.
            loopback.command.payload.last.eq(own.s_axis_tlast & own.s_axis_tkeep.all()),
            own.s_axis_tready.eq(loopback.command.ready),
            own.m_axis_tvalid.eq(loopback.result.valid),
            own.m_axis_tdata.eq(loopback.result.payload.data),
            own.m_axis_tlast.eq(loopback.result.payload.last),
            own.m_axis_tkeep.eq(-1),
            loopback.result.ready.eq(own.m_axis_tready),
        ]
        return m


def loopback_verilog(link_bytes: int) -> str:
    return verilog.convert(
        AxiLoopback(link_bytes), name="celosia", emit_src=False, strip_internal_attrs=True
    )
