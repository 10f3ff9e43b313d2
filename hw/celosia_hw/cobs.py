"""Consistent overhead byte stuffing: frames to bytes on a line and back."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .link_protocol import COBS_BLOCK
from .packets import PacketWord
from .ram import ram

__all__ = ["CobsDecoder", "CobsEncoder"]

_RING = 512
"""Bytes of the encoder's memory: two blocks, one that is counted and one that is sent."""


class CobsEncoder(wiring.Component):
    """Encodes frames, and puts a 0 behind each and one before a frame that comes after a pause.

    A code byte comes before the bytes it counts, so they go through a memory. Latency: up to a
    block of 254 bytes. Throughput: a byte in at most 2 clocks, 4 at the end of a frame; out, one
    in 2 clocks. Back-pressure: `i` is held up while the memory is full.

    Members
    -------
    i : In
        Stream of `PacketWord` of one byte, whose packets are frames.
    o : Out
        Stream of bytes.
    idle : Out(1)
        All that has come has been taken.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "i": In(stream.Signature(PacketWord(1))),
                "o": Out(stream.Signature(8)),
                "idle": Out(1, init=1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.ring = ring = ram(8, _RING)
        write, read = ring.write_port(), ring.read_port()

        # The bytes up to `done` may be read; behind come a block's code byte and its bytes.
        done = Signal(range(_RING))
        place = Signal(range(_RING), init=1)
        taken = Signal(range(_RING))
        used = Signal(range(_RING))
        has_room = Signal()
        code = Signal(8, init=1)
        byte = Signal(8)
        last = Signal()
        m.d.sync += [
            used.eq((place - taken)[: len(used)]),
            # Some bytes are written after this is known.
            has_room.eq(used < _RING - 16),
        ]

        with m.FSM() as fsm:
            # Between frames.
            with m.State("FIRST"), m.If(self.i.valid & has_room):
                m.next = "TAKE"
                with m.If(self.idle):
                    m.next = "LEAD"
            with m.State("LEAD"):
                m.d.comb += [write.addr.eq(done), write.en.eq(1)]
                m.d.sync += [done.eq(place), place.eq(place + 1)]
                m.next = "TAKE"
            with m.State("TAKE"):
                m.d.comb += self.i.ready.eq(has_room)
                m.d.sync += [byte.eq(self.i.payload.data), last.eq(self.i.payload.last)]
                with m.If(self.i.valid & has_room):
                    m.next = "STORE"
            with m.State("STORE"):
                is_full = code == COBS_BLOCK + 1
                with m.If(is_full | (byte == 0)):
                    m.d.comb += [write.addr.eq(done), write.data.eq(code), write.en.eq(1)]
                    m.d.sync += [done.eq(place), place.eq(place + 1), code.eq(1)]
                with m.Else():
                    m.d.comb += [write.addr.eq(place), write.data.eq(byte), write.en.eq(1)]
                    m.d.sync += [place.eq(place + 1), code.eq(code + 1)]
                # A full block stands for no 0, so it takes nothing of the byte behind it.
                with m.If(~is_full):
                    m.next = "TAKE"
                    with m.If(last):
                        m.next = "CLOSE"
            with m.State("CLOSE"):
                m.d.comb += [write.addr.eq(done), write.data.eq(code), write.en.eq(1)]
                m.d.sync += [done.eq(place), place.eq(place + 1), code.eq(1)]
                m.next = "DELIMIT"
            with m.State("DELIMIT"):
                m.d.comb += [write.addr.eq(done), write.en.eq(1)]
                m.d.sync += [done.eq(place), place.eq(place + 1)]
                m.next = "FIRST"
            m.d.sync += self.idle.eq(fsm.ongoing("FIRST") & (taken == done) & ~self.o.valid)

        # The memory answers a clock after the address; the answer stays until it is taken.
        m.d.comb += [
            read.addr.eq(taken),
            read.en.eq(~self.o.valid),
            self.o.payload.eq(read.data),
        ]
        with m.If(self.o.valid), m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.Elif(taken != done):
            m.d.sync += [self.o.valid.eq(1), taken.eq(taken + 1)]
        return m


class CobsDecoder(wiring.Component):
    """Decodes the bytes of a line.

    Latency one clock; throughput a byte every clock; all must be taken at once. Frames without a
    byte, between zeros, leave no trace.

    Members
    -------
    i_valid, i_data : In
        Bytes of the line.
    valid, data : Out
        A byte of a frame, for one clock.
    end : Out(1)
        A frame has ended, for one clock; not together with `valid`.
    whole : Out(1)
        With `end`: its last block was complete.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "i_valid": In(1),
                "i_data": In(8),
                "valid": Out(1),
                "data": Out(8),
                "end": Out(1),
                "whole": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        # Bytes until the next code byte; whether that stands for a 0; whether a frame has begun.
        left = Signal(8)
        is_zero = Signal()
        begun = Signal()
        is_delimiter, is_code = self.i_data == 0, left == 0
        m.d.sync += [
            self.valid.eq(self.i_valid & ~is_delimiter & (~is_code | (is_zero & begun))),
            self.data.eq(Mux(is_code, 0, self.i_data)),
            self.end.eq(self.i_valid & is_delimiter & begun),
            self.whole.eq(is_code),
        ]
        with m.If(self.i_valid):
            m.d.sync += begun.eq(~is_delimiter)
            with m.If(is_delimiter):
                m.d.sync += left.eq(0)
            with m.Elif(is_code):
                m.d.sync += [left.eq(self.i_data - 1), is_zero.eq(self.i_data != COBS_BLOCK + 1)]
            with m.Else():
                m.d.sync += left.eq(left - 1)
        return m
