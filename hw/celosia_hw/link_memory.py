"""The frames that the serial link keeps: those received, and those to be sent."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .link_protocol import SEGMENT_END, SEGMENT_WORDS, SEQUENCE, LinkConfig
from .packets import PacketWord
from .ram import ram

__all__ = ["CommandFrames", "ReplyFrames"]

_NUMBER = range(SEQUENCE)


class CommandFrames(wiring.Component):
    """Keeps the payloads of received frames and takes their words out.

    A payload is written into the room of the next frame and counts once it is committed. Latency:
    6 clocks and 3 for each byte of the first word. Throughput: a word in 1 + 3 `link_bytes` clocks,
    and 3 for each segment. Back-pressure on `words` leaves frames where they are; there is room
    while `received` - `freed` is less than `LinkConfig.frames`.

    Parameters
    ----------
    link : LinkConfig
    link_bytes : int

    Members
    -------
    write, position, data : In
        A byte of the next frame.
    commit, length : In
        The next frame is complete, with this many bytes; only while there is room.
    received, freed : Out
        Frames committed and frames that have been taken out, modulo `SEQUENCE`.
    has_room : Out(1)
    words : Out
        Stream of `PacketWord`.
    """

    def __init__(self, link: LinkConfig, link_bytes: int) -> None:
        self._link = link
        self._link_bytes = link_bytes
        super().__init__(
            {
                "write": In(1),
                "position": In(range(link.frame_bytes)),
                "data": In(8),
                "commit": In(1),
                "length": In(range(link.frame_bytes + 1)),
                "received": Out(_NUMBER),
                "freed": Out(_NUMBER),
                "has_room": Out(1, init=1),
                "words": Out(stream.Signature(PacketWord(link_bytes))),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        link, size = self._link, self._link_bytes
        slot = range(link.frames)
        m.submodules.bytes = store = ram(8, link.frames * link.frame_bytes)
        m.submodules.lengths = lengths = ram(range(link.frame_bytes + 1), link.frames)
        write, read = store.write_port(), store.read_port()
        length_write, length_read = lengths.write_port(), lengths.read_port()
        newest, oldest = self.received[: len(slot).bit_length() - 1], self.freed
        oldest = oldest[: len(newest)]
        held = Signal(_NUMBER)
        position = Signal(range(link.frame_bytes + 1))
        at_end = Signal()
        m.d.comb += [
            write.addr.eq(Cat(self.position, newest)),
            write.data.eq(self.data),
            write.en.eq(self.write & self.has_room),
            length_write.addr.eq(newest),
            length_write.data.eq(self.length),
            length_write.en.eq(self.commit),
            length_read.addr.eq(oldest),
            length_read.en.eq(1),
            read.addr.eq(Cat(position[: len(self.position)], oldest)),
            read.en.eq(1),
            held.eq(self.received - self.freed),
        ]
        m.d.sync += [
            self.has_room.eq(held < link.frames),
            at_end.eq(position >= length_read.data),
        ]
        with m.If(self.commit):
            m.d.sync += self.received.eq(self.received + 1)

        # Block RAM alone takes half a clock, so its output gets a register.
        byte = Signal(8)
        m.d.sync += byte.eq(read.data)
        words = Signal(7)
        is_end = Signal()
        left = Signal(range(size + 1))
        shift = self.words.payload.data
        with m.FSM():
            with m.State("WAIT"):
                m.d.sync += position.eq(0)
                with m.If(self.received != self.freed):
                    m.next = "LENGTH"
            with m.State("LENGTH"):
                m.next = "SETTLE"
            with m.State("SETTLE"):
                m.next = "HEAD"
            with m.State("HEAD"):
                m.next = "ARRIVES"
                with m.If(at_end):
                    m.d.sync += self.freed.eq(self.freed + 1)
                    m.next = "WAIT"
            with m.State("ARRIVES"):  # what `position` points to
                m.next = "SEGMENT"
            with m.State("SEGMENT"):
                m.d.sync += [
                    words.eq(byte[:7]),
                    is_end.eq(byte[7]),
                    position.eq(position + 1),
                    left.eq(size),
                ]
                m.next = "FETCH"
                with m.If(byte[:7] == 0):
                    m.next = "SETTLE"
            with m.State("FETCH"):
                m.next = "COMES"
            with m.State("COMES"):
                m.next = "BYTE"
            with m.State("BYTE"):
                m.d.sync += [
                    shift.eq(Cat(shift[8:], byte)),
                    position.eq(position + 1),
                    left.eq(left - 1),
                ]
                m.next = "FETCH"
                with m.If(left == 1):
                    m.d.sync += [
                        self.words.valid.eq(1),
                        self.words.payload.last.eq(is_end & (words == 1)),
                    ]
                    m.next = "OFFER"
            with m.State("OFFER"):
                m.d.sync += left.eq(size)
                with m.If(self.words.ready):
                    m.d.sync += [self.words.valid.eq(0), words.eq(words - 1)]
                    m.next = "FETCH"
                    with m.If((words == 1) | at_end):
                        m.next = "HEAD"
        return m


class ReplyFrames(wiring.Component):
    """Puts the words of packets into frames and keeps these until they have arrived.

    Throughput: a word in 3 + `link_bytes` clocks, one more for a segment and 3 for a frame. A frame
    is closed when no other word fits, or when `flush` is set and there is something in it.
    Back-pressure: `words` are not taken while `closed` - `oldest` is `LinkConfig.frames`.

    Parameters
    ----------
    link : LinkConfig
    link_bytes : int

    Members
    -------
    words : In
        Stream of `PacketWord`.
    flush : In(1)
        Close the present frame, once the word that is being written is in it.
    closed : Out
        Frames closed, modulo `SEQUENCE`: the number of the frame that is being filled.
    oldest : In
        All before this frame have arrived.
    is_empty : Out(1)
        The frame that is being filled has nothing in it.
    frame, position : In
        Number of a frame, and of a byte of it to read.
    data, length : Out
        This byte, and the bytes of the frame: one clock later.
    """

    def __init__(self, link: LinkConfig, link_bytes: int) -> None:
        self._link = link
        self._link_bytes = link_bytes
        super().__init__(
            {
                "words": In(stream.Signature(PacketWord(link_bytes))),
                "flush": In(1),
                "closed": Out(_NUMBER),
                "oldest": In(_NUMBER),
                "is_empty": Out(1, init=1),
                "frame": In(_NUMBER),
                "position": In(range(link.frame_bytes)),
                "data": Out(8),
                "length": Out(range(link.frame_bytes + 1)),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        link, size = self._link, self._link_bytes
        bits = (link.frames - 1).bit_length()
        m.submodules.bytes = store = ram(8, link.frames * link.frame_bytes)
        m.submodules.lengths = lengths = ram(range(link.frame_bytes + 1), link.frames)
        write, read = store.write_port(), store.read_port()
        length_write, length_read = lengths.write_port(), lengths.read_port()
        place = Signal(range(link.frame_bytes + 1))
        slot = self.closed[:bits]
        address = Signal(range(link.frame_bytes))
        m.d.comb += [
            read.addr.eq(Cat(self.position, self.frame[:bits])),
            read.en.eq(1),
            self.data.eq(read.data),
            length_read.addr.eq(self.frame[:bits]),
            length_read.en.eq(1),
            self.length.eq(length_read.data),
            write.addr.eq(Cat(address, slot)),
            length_write.addr.eq(slot),
            length_write.data.eq(place),
        ]

        held = Signal(_NUMBER)
        is_full = Signal()
        # `is_filled`: not even a segment of one word fits; `is_last`: not another word.
        head = Signal(range(link.frame_bytes))
        words = Signal(7)
        is_open = Signal()
        no_word = Signal()
        no_segment = Signal()
        ends = Signal()
        shift = Signal(8 * size)
        left = Signal(range(size + 1))
        m.d.comb += held.eq(self.closed - self.oldest)
        m.d.sync += [
            is_full.eq(held >= link.frames),
            no_word.eq(place > link.frame_bytes - size),
            no_segment.eq(place > link.frame_bytes - size - 1),
            self.is_empty.eq(place == 0),
        ]
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += self.words.ready.eq(~is_full)
                m.d.sync += [
                    shift.eq(self.words.payload.data),
                    ends.eq(self.words.payload.last),
                    left.eq(size),
                ]
                with m.If(self.words.valid & ~is_full):
                    m.next = "WRITE"
                    with m.If(~is_open):
                        m.d.sync += [
                            head.eq(place),
                            place.eq(place + 1),
                            words.eq(0),
                            is_open.eq(1),
                        ]
                with m.Elif(self.flush & ~self.is_empty):
                    m.d.sync += ends.eq(0)
                    m.next = "CLOSE"
                    with m.If(is_open):
                        m.next = "HEAD"
            with m.State("WRITE"):
                m.d.comb += [
                    address.eq(place),
                    write.data.eq(shift[:8]),
                    write.en.eq(1),
                ]
                m.d.sync += [shift.eq(shift >> 8), place.eq(place + 1), left.eq(left - 1)]
                with m.If(left == 1):
                    m.d.sync += words.eq(words + 1)
                    m.next = "SETTLE"
            with m.State("SETTLE"):
                m.next = "WORD"
            with m.State("WORD"):
                m.next = "TAKE"
                with m.If(ends | no_word | (words == SEGMENT_WORDS)):
                    m.next = "HEAD"
            with m.State("HEAD"):
                m.d.comb += [
                    address.eq(head),
                    write.data.eq(Cat(words, ends)),
                    write.en.eq(1),
                ]
                m.d.sync += is_open.eq(0)
                m.next = "TAKE"
                with m.If(no_segment | self.flush):
                    m.next = "CLOSE"
            with m.State("CLOSE"):
                m.d.comb += length_write.en.eq(1)
                m.d.sync += [self.closed.eq(self.closed + 1), place.eq(0)]
                m.next = "CLOSED"
            with m.State("CLOSED"):  # until `is_full` tells
                m.next = "AGAIN"
            with m.State("AGAIN"):
                m.next = "TAKE"
        return m


assert SEGMENT_END == 1 << 7
