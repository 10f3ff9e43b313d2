"""The accelerator behind a serial line: what every board's top consists of."""

from __future__ import annotations

from fractions import Fraction

from amaranth.hdl import ClockDomain, ClockSignal, DomainRenamer, Module, ResetSignal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .accelerator import Accelerator
from .config import AcceleratorConfig
from .link import SerialLink
from .link_protocol import LinkConfig
from .packets import CommandWord, PacketWord
from .register_slice import RegisterSlice

__all__ = ["SerialAccelerator"]


class SerialAccelerator(wiring.Component):
    """An `Accelerator` behind a `SerialLink`, in the domain ``sync``.

    Parameters
    ----------
    config : AcceleratorConfig
    link : LinkConfig
    clocks_per_bit : int or Fraction
        Of the line; `link_protocol.bit_rate` gives it.

    Members
    -------
    rx, tx : In(1), Out(1)
        The line; `rx` may change at any time, `tx` is a register.
    busy, error, line_break : Out(1)
        As of `SerialLink`.
    """

    def __init__(
        self, config: AcceleratorConfig, link: LinkConfig, clocks_per_bit: int | Fraction
    ) -> None:
        self.config = config
        self.link = link
        self._serial = SerialLink(link, config.link_bytes, clocks_per_bit)
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "busy": Out(1),
                "error": Out(1),
                "line_break": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.link = link = self._serial
        # The accelerator is reset by its own register, since that reaches every part of the chip.
        m.domains.core = core = ClockDomain(local=True)
        m.domains.core_reset = core_reset = ClockDomain(reset_less=True, local=True)
        m.d.comb += [core.clk.eq(ClockSignal()), core_reset.clk.eq(ClockSignal())]
        m.d.core_reset += core.rst.eq(ResetSignal() | link.reset_core)

        in_core = DomainRenamer("core")
        accelerator = Accelerator(self.config)
        command = RegisterSlice(CommandWord(self.config))
        result = RegisterSlice(PacketWord(self.config.link_bytes))
        m.submodules.accelerator = in_core(accelerator)
        m.submodules.command = in_core(command)
        m.submodules.result = in_core(result)
        wiring.connect(m, command.o, accelerator.command)
        wiring.connect(m, accelerator.result, result.i)
        wiring.connect(m, result.o, link.replies)
        m.d.comb += [
            command.i.valid.eq(link.commands.valid),
            command.i.payload.data.eq(link.commands.payload.data),
            command.i.payload.last.eq(link.commands.payload.last),
            link.commands.ready.eq(command.i.ready),
            link.rx.eq(self.rx),
            self.tx.eq(link.tx),
            self.busy.eq(link.busy),
            self.error.eq(link.error),
            self.line_break.eq(link.line_break),
        ]
        return m
