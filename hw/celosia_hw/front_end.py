"""The packet front end: takes command packets apart."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, fifo, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .config import AcceleratorConfig
from .packets import PacketWord, header_layout
from .payload import QUERY_BUFFERS, MemoryWrite, PayloadWriter
from .protocol import (
    ATTEND_FIELDS,
    COMMAND_BYTES,
    COUNTER_NAMES,
    COUNTERS_FIELDS,
    ErrorCode,
    Opcode,
    Reply,
)
from .responder import COUNTER_BITS, Responder
from .sequencer import QueryJob

__all__ = ["FrontEnd"]


class FrontEnd(wiring.Component):
    """Parses command packets in order.

    LOAD payloads go straight into the memories, ATTEND payloads into one of two query buffers
    and, once complete, as a job to the sequencer, so that loads overlap the computation. A LOAD
    waits while an earlier query tile still reads one of its banks, an ATTEND while both query
    buffers are taken, a reply while the result stream is busy: that is all the back-pressure on
    `command`. Throughput: a payload word every clock; a packet takes two clocks more. A malformed
    packet is skipped up to its last word and answered with an ERROR.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    command : In
        Stream of `PacketWord`.
    reply : Out
        Stream of `PacketWord`: everything but RESULT packets.
    write_valid, write : Out
        Strobe and `MemoryWrite`.
    job : Out
        Stream of `QueryJob`.
    buffer_done, banks_done : In
        Strobes from the conductor.
    counters : In
        As in `protocol.COUNTER_NAMES`.
    clear_counters : Out(1)
        Strobe.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        word = PacketWord(config)
        super().__init__(
            {
                "command": In(stream.Signature(word)),
                "reply": Out(stream.Signature(word)),
                "write_valid": Out(1),
                "write": Out(MemoryWrite(config)),
                "job": Out(stream.Signature(QueryJob(config))),
                "buffer_done": In(1),
                "banks_done": In(config.key_banks),
                "counters": In(data.ArrayLayout(COUNTER_BITS, len(COUNTER_NAMES))),
                "clear_counters": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        config = self._config
        m.submodules.writer = writer = PayloadWriter(config)
        m.submodules.responder = responder = Responder(config)
        connect(m, responder.reply, flipped(self.reply))
        m.d.comb += responder.counters.eq(self.counters)

        # Cuts the path from the state machine's `ready` to the sender.
        m.submodules.input = buffer = fifo.SyncFIFOBuffered(width=PacketWord(config).size, depth=4)
        word = data.View(PacketWord(config), buffer.r_data)
        take, taken = buffer.r_en, Signal()
        m.d.comb += [
            buffer.w_data.eq(self.command.payload),
            buffer.w_en.eq(self.command.valid),
            self.command.ready.eq(buffer.w_rdy),
            taken.eq(take & buffer.r_rdy),
        ]

        raw = Signal(8 * COMMAND_BYTES)
        header = data.View(header_layout(ATTEND_FIELDS), raw)
        chunk = min(config.link_bits, len(raw))
        chunks = len(raw) // chunk
        place = Signal(range(max(chunks, 2)))
        is_load, is_attend = header.opcode == Opcode.LOAD, header.opcode == Opcode.ATTEND
        counters_header = header_layout(COUNTERS_FIELDS)
        answers = {Opcode.IDENTIFY: Reply.IDENTITY, Opcode.COUNTERS: Reply.STATISTICS}
        unknown = ~is_load & ~is_attend
        for opcode in answers:
            unknown &= header.opcode != opcode

        base, bad_field, banks = self._decode(m, header, is_attend)
        blocked, buffer_index = self._occupancy(m, is_load, banks)
        ended, error = Signal(), Signal(ErrorCode)

        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += take.eq(1)
                m.d.sync += error.eq(ErrorCode.NONE)
                with m.If(taken):
                    m.d.sync += [
                        raw.word_select(place, chunk).eq(word.data),
                        place.eq(place + 1),
                        ended.eq(word.last),
                    ]
                    with m.If(place == chunks - 1):
                        m.d.sync += place.eq(0)
                        m.next = "DECODE"
                    with m.Elif(word.last):
                        m.d.sync += [place.eq(0), error.eq(ErrorCode.TRUNCATED)]
                        m.next = "REPLY"

            with m.State("DECODE"):  # the registers of _decode take the header
                m.next = "JUDGE"

            with m.State("JUDGE"):
                with m.If(unknown):
                    m.d.sync += error.eq(ErrorCode.UNKNOWN_OPCODE)
                    m.next = "SKIP"
                with m.Elif((is_load | is_attend) & bad_field):
                    m.d.sync += error.eq(ErrorCode.BAD_FIELD)
                    m.next = "SKIP"
                with m.Elif((is_load | is_attend) & ended):
                    m.d.sync += error.eq(ErrorCode.TRUNCATED)
                    m.next = "REPLY"
                with m.Elif(is_load | is_attend):
                    m.d.comb += writer.start.eq(1)
                    with m.If(~blocked):
                        m.next = "PAYLOAD"
                with m.Elif(~ended):
                    m.d.sync += error.eq(ErrorCode.OVERLONG)
                    m.next = "SKIP"
                with m.Else():
                    m.next = "REPLY"

            with m.State("PAYLOAD"):
                m.d.comb += [
                    take.eq(1),
                    writer.take.eq(taken),
                    self.job.valid.eq(taken & writer.end & word.last & is_attend),
                ]
                with m.If(taken):
                    m.d.sync += ended.eq(word.last)
                    with m.If(writer.end & word.last):
                        m.next = "HEADER"
                    with m.Elif(writer.end):
                        m.d.sync += error.eq(ErrorCode.OVERLONG)
                        m.next = "SKIP"
                    with m.Elif(word.last):
                        m.d.sync += error.eq(ErrorCode.TRUNCATED)
                        m.next = "REPLY"

            with m.State("SKIP"):
                m.d.comb += take.eq(~ended)
                with m.If(taken):
                    m.d.sync += ended.eq(word.last)
                with m.If(ended):
                    m.next = "REPLY"

            with m.State("REPLY"):
                m.d.comb += responder.valid.eq(1)
                with m.If(responder.ready):
                    clear = data.View(counters_header, raw[: counters_header.size]).clear
                    m.d.comb += self.clear_counters.eq(
                        clear & (responder.opcode == Reply.STATISTICS)
                    )
                    m.next = "HEADER"

        reply = Signal(Reply)
        m.d.comb += [
            reply.eq(Reply.ERROR),
            responder.opcode.eq(reply),
            responder.tag.eq(header.tag),
            responder.code.eq(error),
        ]
        with m.If(error == ErrorCode.NONE), m.Switch(header.opcode):
            for opcode, answer in answers.items():
                with m.Case(opcode):
                    m.d.comb += reply.eq(answer)

        m.d.comb += [
            writer.queries.eq(is_attend),
            writer.group.eq(Mux(is_attend, buffer_index, header.slot)),
            writer.base.eq(Mux(is_attend, Mux(buffer_index, config.max_head_dim, 0), base)),
            writer.last_tile.eq(header.tiles - 1),
            writer.last_dim.eq(header.last_dim),
            writer.last_value_dim.eq(header.last_value_dim),
            writer.data.eq(word.data),
            self.write_valid.eq(writer.write_valid),
            self.write.eq(writer.write),
        ]
        self._job(m, header, base, banks, buffer_index)
        return m

    def _decode(self, m: Module, header, is_attend) -> tuple[Signal, Signal, Signal]:
        """First row, whether a field is out of range, and banks touched; a clock later."""
        config = self._config
        end = Signal(17)
        m.d.comb += end.eq(header.slot + header.tiles)
        dims, slots = config.max_head_dim, config.slots_per_bank
        base, bad_field = Signal(range(config.slots * dims)), Signal()
        banks = Signal(config.key_banks)
        m.d.sync += [
            base.eq(header.slot * dims),
            bad_field.eq(
                (header.tiles == 0)
                | (end > config.slots)
                | (header.last_dim >= dims)
                | (header.last_value_dim >= dims)
                | is_attend & (header.reserved.any() | header.load_state | header.store_state)
            ),
            banks.eq(
                Cat(
                    (header.slot < (bank + 1) * slots) & (end > bank * slots)
                    for bank in range(config.key_banks)
                )
            ),
        ]
        return base, bad_field, banks

    def _occupancy(self, m: Module, is_load: Value, banks: Signal) -> tuple[Value, Signal]:
        """Whether the packet at hand must wait, and the query buffer to fill next."""
        committed = self.job.valid
        buffers, index = Signal(range(QUERY_BUFFERS + 1)), Signal(range(QUERY_BUFFERS))
        m.d.sync += [
            buffers.eq(buffers + committed - self.buffer_done),
            index.eq(index ^ committed),
        ]
        # Query tiles that still read a bank: buffered ones and those in the pipeline.
        reading = []
        for bank in range(self._config.key_banks):
            count = Signal(range(32), name=f"reading_{bank}")
            m.d.sync += count.eq(count + (committed & banks[bank]) - self.banks_done[bank])
            reading.append(count != 0)
        return Mux(is_load, (Cat(reading) & banks).any(), buffers == QUERY_BUFFERS), index

    def _job(self, m: Module, header, base: Signal, banks: Signal, buffer_index: Signal) -> None:
        config, job = self._config, self.job.payload
        pitch = config.pitch(1, 1) - 1
        dim = Mux(header.last_dim > header.last_value_dim, header.last_dim, header.last_value_dim)
        last_clock = Signal.like(job.last_clock)
        m.d.sync += last_clock.eq(Mux(dim > pitch, dim, pitch))
        m.d.comb += [
            job.base.eq(base),
            job.banks.eq(banks),
            job.query_buffer.eq(buffer_index),
            job.last_tile.eq(header.tiles - 1),
            job.last_clock.eq(last_clock),
        ]
        copied = (
            "tag slot last_dim last_value_dim score_shift result_fraction "
            "low_step high_step low high limit"
        )
        m.d.comb += [job[name].eq(header[name]) for name in copied.split()]
