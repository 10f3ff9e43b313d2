"""The packet front end: takes command packets apart."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .arithmetic import MASK_TILES
from .config import AcceleratorConfig
from .packets import CommandWord, PacketWord, header_layout
from .payload import QUERY_BUFFERS, MemoryWrite, PayloadWriter, Target
from .pipeline import delayed
from .protocol import (
    ATTEND_FIELDS,
    COMMAND_BYTES,
    COUNTER_NAMES,
    COUNTERS_FIELDS,
    EXTENSION_FIELDS,
    ErrorCode,
    Opcode,
    Reply,
)
from .register_slice import RegisterSlice
from .responder import COUNTER_BITS, Responder
from .sequencer import QueryJob

__all__ = ["FrontEnd"]


class FrontEnd(wiring.Component):
    """Parses command packets in order.

    LOAD and APPEND payloads go straight into the memories, ATTEND and MULTIPLY payloads into one of
    two query buffers and, once complete but for mask tiles, as a job to the sequencer, so that
    loads overlap the computation. A LOAD or APPEND waits while an earlier query tile still reads
    one of its banks, an ATTEND or MULTIPLY while both query buffers are taken, a state while more
    than one earlier query tile has not been read out, a mask tile while `MASK_TILES` wait for their
    key tile, a reply while the result stream is busy: that is all the back-pressure on `command`.
    Throughput: a payload word every clock, of an APPEND a byte; a packet takes three clocks more. A
    malformed packet is skipped up to its last word and answered with an ERROR; mask tiles that are
    missing are taken for zeros first.

    Parameters
    ----------
    config : AcceleratorConfig

    Members
    -------
    command : In
        Stream of `CommandWord`.
    reply : Out
        Stream of `PacketWord`: everything but RESULT packets.
    write_valid, write : Out
        Strobe and `MemoryWrite`.
    job : Out
        Stream of `QueryJob`.
    mask_arrived : Out(1)
        Strobe: a mask tile is complete.
    mask_done, buffer_done, banks_done : In
        Strobes from the conductor.
    tile_done : In(1)
        Strobe from the drain: a query tile has been read out.
    results_sent : In(1)
        From the drain: all that has been read out has been sent.
    counters : In
        As in `protocol.COUNTER_NAMES`.
    clear_counters : Out(1)
        Strobe.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        word = PacketWord(config.link_bytes)
        super().__init__(
            {
                "command": In(stream.Signature(CommandWord(config))),
                "reply": Out(stream.Signature(word)),
                "write_valid": Out(1),
                "write": Out(MemoryWrite(config)),
                "job": Out(stream.Signature(QueryJob(config))),
                "mask_arrived": Out(1),
                "mask_done": In(1),
                "tile_done": In(1),
                "results_sent": In(1),
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
        m.submodules.input = buffer = RegisterSlice(CommandWord(config))
        connect(m, flipped(self.command), buffer.i)
        word = buffer.o.payload
        take = buffer.o.ready
        taken = Signal()
        step = Signal()
        m.d.comb += taken.eq(take & buffer.o.valid)

        size = 8 * COMMAND_BYTES
        raw = Signal(2 * size, reset_less=True)
        layout = header_layout({**ATTEND_FIELDS, **EXTENSION_FIELDS})
        header = data.View(layout, raw)
        chunk = min(config.link_bits, size)
        chunks = size // chunk
        place = Signal(range(2 * chunks))
        # The header with the word at hand, as far as it has come.
        arriving = Signal(size)
        m.d.comb += arriving.eq(raw)
        with m.If(place == chunks - 1):
            m.d.comb += arriving[-chunk:].eq(word.data)
        begun = data.View(header_layout(ATTEND_FIELDS), arriving)
        is_extended = (begun.opcode == Opcode.ATTEND) & begun.extended
        header_end = (place == 2 * chunks - 1) | (place == chunks - 1) & ~is_extended
        # The opcode is decoded as it comes in, as much depends on it.
        opcodes = {opcode: Signal(name=f"is_{opcode.name.lower()}") for opcode in Opcode}
        is_attend, is_multiply = opcodes[Opcode.ATTEND], opcodes[Opcode.MULTIPLY]
        is_append = opcodes[Opcode.APPEND]
        is_query = is_attend | is_multiply
        has_payload = delayed(m, opcodes[Opcode.LOAD] | is_query | is_append, 1, "has_payload")
        counters_header = header_layout(COUNTERS_FIELDS)
        answers = {
            Opcode.IDENTIFY: Reply.IDENTITY,
            Opcode.COUNTERS: Reply.STATISTICS,
            Opcode.RESET: Reply.IDENTITY,
        }
        unknown = delayed(m, ~Cat(opcodes.values()).any(), 1, "unknown")

        base, bad_field, banks = self._decode(m, header, is_attend, is_append, is_multiply)
        blocked, buffer_index = self._occupancy(m, is_query, banks)
        has_masks = is_attend & (header.mask | header.bias)
        has_room, mask_place = self._mask_room(m)
        unfinished = self._unfinished(m)
        # A clock late: a packet's header takes longer.
        is_crowded = delayed(m, unfinished > 1, 1, "is_crowded")
        waits = writer.is_mask & ~has_room | writer.is_state & is_crowded
        idle = (unfinished == 0) & self.results_sent
        ended = Signal()
        filling = Signal()
        error = Signal(ErrorCode)
        commit = Signal()
        m.d.sync += self.job.valid.eq(commit)

        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += take.eq(1)
                m.d.sync += error.eq(ErrorCode.NONE)
                with m.If(buffer.o.valid):
                    m.d.sync += [
                        raw.word_select(place, chunk).eq(word.data),
                        place.eq(place + 1),
                        ended.eq(word.last),
                    ]
                    with m.If(place == 0):
                        m.d.sync += raw[size:].eq(0)
                        for opcode, flag in opcodes.items():
                            m.d.sync += flag.eq(word.data[:8] == opcode)
                    with m.If(word.bad):
                        m.d.sync += [place.eq(0), error.eq(ErrorCode.BAD_KEEP)]
                        m.next = "SKIP"
                    with m.Elif(header_end):
                        m.d.sync += place.eq(0)
                        m.next = "DECODE"
                    with m.Elif(word.last):
                        m.d.sync += [place.eq(0), error.eq(ErrorCode.TRUNCATED)]
                        m.next = "REPLY"

            with m.State("DECODE"):  # the registers of _decode take the header
                m.next = "PREPARE"

            with m.State("PREPARE"):  # the writer learns what is present
                m.d.comb += writer.start.eq(1)
                m.next = "JUDGE"

            with m.State("JUDGE"):
                with m.If(unknown):
                    m.d.sync += error.eq(ErrorCode.UNKNOWN_OPCODE)
                    m.next = "SKIP"
                with m.Elif(has_payload & bad_field):
                    m.d.sync += error.eq(ErrorCode.BAD_FIELD)
                    m.next = "SKIP"
                with m.Elif(has_payload & ended):
                    m.d.sync += error.eq(ErrorCode.TRUNCATED)
                    m.next = "REPLY"
                with m.Elif(has_payload), m.If(~blocked):
                    m.next = "PAYLOAD"
                with m.Elif(~ended):
                    m.d.sync += error.eq(ErrorCode.OVERLONG)
                    m.next = "SKIP"
                with m.Elif(~opcodes[Opcode.RESET] | idle):
                    m.next = "REPLY"

            with m.State("PAYLOAD"):
                complete = Mux(has_masks, writer.job_end & ~word.last, writer.end & word.last)
                m.d.comb += [
                    step.eq(buffer.o.valid & ~waits),
                    take.eq(step & writer.take),
                    commit.eq(taken & complete & is_query & ~word.bad),
                ]
                with m.If(taken):
                    m.d.sync += ended.eq(word.last)
                    with m.If(word.bad):
                        m.d.sync += error.eq(ErrorCode.BAD_KEEP)
                        m.next = "SKIP"
                        with m.If(writer.is_mask & ~writer.end):
                            m.d.sync += filling.eq(1)
                            m.next = "FILL"
                    with m.Elif(writer.end & word.last):
                        m.next = "HEADER"
                    with m.Elif(writer.end):
                        m.d.sync += error.eq(ErrorCode.OVERLONG)
                        m.next = "SKIP"
                    with m.Elif(word.last):
                        m.d.sync += error.eq(ErrorCode.TRUNCATED)
                        with m.If(writer.is_mask):
                            m.d.sync += filling.eq(1)
                            m.next = "FILL"
                        with m.Else():
                            m.next = "REPLY"

            with m.State("FILL"):  # the job waits for its mask tiles
                m.d.comb += step.eq(~waits)
                with m.If(step & writer.end):
                    m.d.sync += filling.eq(0)
                    m.next = "SKIP"

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
                        | opcodes[Opcode.RESET] & (responder.opcode == Reply.IDENTITY)
                    )
                    m.next = "HEADER"

        present = Signal(len(Target))
        m.d.sync += present.eq(self._present(header, is_attend, is_multiply))
        last_tile = Mux(header.listed != 0, header.listed, header.tiles - 1)
        reply = Signal(Reply)
        m.d.comb += [
            reply.eq(Reply.ERROR),
            responder.opcode.eq(reply),
            responder.tag.eq(header.tag),
            responder.code.eq(error),
        ]
        with m.If(error == ErrorCode.NONE):
            for opcode, answer in answers.items():
                with m.If(opcodes[opcode]):
                    m.d.comb += reply.eq(answer)

        m.d.comb += [
            writer.step.eq(step),
            writer.present.eq(present),
            writer.single.eq(is_append),
            writer.element.eq(header.tiles),
            writer.mask_place.eq(mask_place),
            writer.last_list_word.eq(
                (header.listed - 1) >> (config.link_bytes // 2 - 1).bit_length()
            ),
            self.mask_arrived.eq(step & writer.mask_end),
            writer.group.eq(Mux(is_query, buffer_index, header.slot)),
            writer.base.eq(Mux(is_query, Mux(buffer_index, config.max_head_dim, 0), base)),
            writer.last_tile.eq(
                Mux(is_query | is_append, Mux(has_masks, last_tile, 0), header.tiles - 1)
            ),
            writer.last_dim.eq(header.last_dim),
            writer.last_value_dim.eq(header.last_value_dim),
            writer.data.eq(Mux(filling, 0, word.data)),
            self.write_valid.eq(writer.write_valid),
            self.write.eq(writer.write),
        ]
        self._job(m, header, base, banks, buffer_index, is_attend)
        return m

    def _present(self, header, is_attend: Value, is_multiply: Value) -> Value:
        """The targets of the payload at hand."""
        present = {
            Target.INTERVALS: header.intervals,
            Target.QUERY_FACTORS: 1,
            Target.QUERIES: 1,
            Target.TILE_LIST: header.listed != 0,
            Target.STATE_SUMS: header.load_state,
            Target.STATE_OUTPUTS: header.load_state,
            Target.MASK: header.mask,
            Target.BIAS: header.bias,
        }
        attend = Cat(Value.cast(present.get(target, 0)) for target in Target)
        keys = (1 << (Target.VALUES + 1)) - 1
        return Mux(is_attend, attend, Mux(is_multiply, 1 << Target.QUERIES, keys))

    def _unfinished(self, m: Module) -> Signal:
        """Query tiles that have not been read out."""
        unfinished = Signal(range(8))
        m.d.sync += unfinished.eq(unfinished + self.job.valid - self.tile_done)
        return unfinished

    def _mask_room(self, m: Module) -> tuple[Value, Signal]:
        """Whether a mask tile has a place, and where the next one goes."""
        waiting = Signal(range(MASK_TILES + 1))
        following = Signal.like(waiting)
        place = Signal(range(MASK_TILES))
        has_room = Signal(init=1)
        m.d.comb += following.eq(waiting + self.mask_arrived - self.mask_done)
        m.d.sync += [
            waiting.eq(following),
            has_room.eq(following != MASK_TILES),
            place.eq(place + self.mask_arrived),
        ]
        return has_room, place

    def _decode(
        self, m: Module, header, is_attend, is_append, is_multiply
    ) -> tuple[Signal, Signal, Signal]:
        """First row, whether a field is out of range, and banks touched; a clock later."""
        config = self._config
        end = Signal(17)
        m.d.comb += end.eq(header.slot + Mux(is_append, 1, header.tiles))
        dims, slots = config.max_head_dim, config.slots_per_bank
        base = Signal(range(config.slots * dims))
        bad_field = Signal()
        banks = Signal(config.key_banks)
        m.d.sync += [
            base.eq(header.slot * dims),
            bad_field.eq(
                Mux(is_append, header.tiles >= config.key_rows, header.tiles == 0)
                | (end > config.slots)
                | (header.last_dim >= dims)
                | (header.last_value_dim >= Mux(is_multiply, config.accumulator_depth, dims))
                | is_multiply & (header.tiles > config.product_tiles)
                | is_attend
                & (
                    header.reserved.any()
                    | header.extension_reserved.any()
                    | (header.listed != 0) & (header.listed >= header.tiles)
                )
            ),
            banks.eq(
                Cat(
                    (header.slot < (bank + 1) * slots) & (end > bank * slots)
                    for bank in range(config.key_banks)
                )
            ),
        ]
        return base, bad_field, banks

    def _occupancy(self, m: Module, is_query: Value, banks: Signal) -> tuple[Value, Signal]:
        """Whether the packet at hand must wait, and the query buffer to fill next."""
        committed = self.job.valid
        buffers = Signal(range(QUERY_BUFFERS + 1))
        index = Signal(range(QUERY_BUFFERS))
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
        return Mux(is_query, buffers == QUERY_BUFFERS, (Cat(reading) & banks).any()), index

    def _job(
        self, m: Module, header, base: Signal, banks: Signal, buffer_index: Signal, is_attend
    ) -> None:
        config, job = self._config, self.job.payload
        pitch = config.pitch(1, 1) - 1
        is_value_longer = is_attend & (header.last_value_dim > header.last_dim)
        dim = Mux(is_value_longer, header.last_value_dim, header.last_dim)
        last_clock = Signal.like(job.last_clock)
        m.d.sync += last_clock.eq(Mux(dim > pitch, dim, pitch))
        m.d.comb += [
            job.base.eq(base),
            job.banks.eq(banks),
            job.query_buffer.eq(buffer_index),
            job.last_tile.eq(Mux(header.listed != 0, header.listed, header.tiles - 1)),
            job.is_listed.eq(header.listed != 0),
            job.product.eq(~is_attend),
            job.load_state.eq(is_attend & header.load_state),
            job.store_state.eq(is_attend & header.store_state),
            job.last_clock.eq(last_clock),
        ]
        copied = (
            "tag slot last_dim last_value_dim score_shift result_fraction "
            "low_step high_step low high limit "
            "intervals mask bias bias_shift slope slope_shift anchor"
        )
        m.d.comb += [job[name].eq(header[name]) for name in copied.split()]
