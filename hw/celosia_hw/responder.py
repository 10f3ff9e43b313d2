"""Replies that need no computation."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from . import VERSION
from .config import AcceleratorConfig
from .packets import PacketWord
from .protocol import COUNTER_NAMES, REPLY_FIELDS, ErrorCode, Reply, identity_payload

__all__ = ["COUNTER_BITS", "Responder"]

COUNTER_BITS = 64


class Responder(wiring.Component):
    """Sends IDENTITY, STATISTICS and ERROR packets.

    Latency one clock, throughput a word every clock; `reply` holds its word while it is not ready.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    valid, ready : In, Out
        A reply to send; it is sent completely once `ready` is set.
    opcode, tag, code : In
        `protocol.Reply`, the command's tag, `protocol.ErrorCode`.
    counters : In
        As in `protocol.COUNTER_NAMES`.
    reply : Out
        Stream of `PacketWord`.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "valid": In(1),
                "ready": Out(1),
                "opcode": In(Reply),
                "tag": In(8),
                "code": In(ErrorCode),
                "counters": In(data.ArrayLayout(COUNTER_BITS, len(COUNTER_NAMES))),
                "reply": Out(stream.Signature(PacketWord(config.link_bytes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        link = self._config.link_bits
        fields = {"opcode": self.opcode, "tag": self.tag, "code": self.code, "last_value_dim": 0}
        header = Cat(
            Const(value, bits) if isinstance(value, int) else Cat(value, Const(0, bits))[:bits]
            for (name, bits) in REPLY_FIELDS.items()
            for value in [fields[name]]
        )
        # The counters go on counting while they are sent, so they are taken beside the header.
        counters = Signal(len(self.counters.as_value()), reset_less=True)
        identity = identity_payload(self._config, VERSION)
        payloads = {
            Reply.IDENTITY: Const(int.from_bytes(identity, "little"), 8 * len(identity)),
            Reply.STATISTICS: counters,
            Reply.ERROR: Const(0, 0),
        }

        word = Signal(range(64))
        last = Signal()
        data_word = Signal(link)
        with m.Switch(self.opcode):
            for opcode, payload in payloads.items():
                words = -(-len(payload) // link)
                padded = Cat(payload, Const(0, words * link - len(payload)))
                choices = [header, *(padded.word_select(i, link) for i in range(words))]
                with m.Case(opcode):
                    m.d.comb += [
                        data_word.eq(Array(choices)[word]),
                        last.eq(word == words),
                    ]
        # Words are chosen a clock before they are sent, as there are many to choose from.
        moves = ~self.reply.valid | self.reply.ready
        ends = self.reply.valid & self.reply.payload.last
        with m.If(moves):
            m.d.sync += [
                self.reply.valid.eq(self.valid & ~ends),
                self.reply.payload.data.eq(data_word),
                self.reply.payload.last.eq(last),
                word.eq(Mux(self.valid & ~ends & ~last, word + 1, 0)),
            ]
        m.d.comb += self.ready.eq(ends & self.reply.ready)
        with m.If(~self.valid):
            m.d.sync += counters.eq(self.counters)
        return m
