"""What the serial link sends and when: acknowledgement, retry and credit."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from .link_frames import FrameHeader
from .link_protocol import SEQUENCE, Kind, LinkConfig

__all__ = ["LinkControl"]

_NUMBER = range(SEQUENCE)
_HALF = SEQUENCE // 2


class LinkControl(wiring.Component):
    """Go-back-N in both directions, within a session.

    DATA frames go out in order while the other end has room for them. A frame out of order or
    damaged is answered by one NAK, in whatever frame goes out next; on a NAK everything from `ack`
    on is sent again. What arrives is acknowledged by the next frame that goes out; if none does, by
    an ACK after `LinkConfig.ack_frames` frames, once half of the room has become free, or after
    `LinkConfig.ack_characters` character times.
    After `LinkConfig.retry_characters` without progress, a POLL asks the other end how far it is.

    Latency: 3 clocks from `good` to `commit` or to what a frame acknowledges; 4 clocks from a
    reason to send to a header. Back-pressure on `send` makes reasons wait; the header tells what is
    so 2 clocks before it is offered.

    Parameters
    ----------
    link : LinkConfig

    Members
    -------
    session : In
        Number of the session.
    good, bad : In(1)
        A frame of this session has come, or something damaged, for one clock, 8 clocks apart.
    header : In
        `FrameHeader` of the frame, which stays.
    commit : Out(1)
        This frame is the next one of the commands.
    received, freed, has_room : In
        Of `CommandFrames`.
    closed, length : In
        Of `ReplyFrames`.
    oldest, frame : Out
        For `ReplyFrames`; `frame` changes only while `send` is ready.
    send : Out
        Stream of `FrameHeader`.
    tick : In(1)
        A character time has passed.
    all_sent : Out(1)
        Every reply frame closed has been sent, though it may not have arrived.
    """

    def __init__(self, link: LinkConfig) -> None:
        self._link = link
        super().__init__(
            {
                "session": In(8),
                "good": In(1),
                "bad": In(1),
                "header": In(FrameHeader()),
                "commit": Out(1),
                "received": In(_NUMBER),
                "freed": In(_NUMBER),
                "has_room": In(1),
                "closed": In(_NUMBER),
                "length": In(range(link.frame_bytes + 1)),
                "oldest": Out(_NUMBER),
                "frame": Out(_NUMBER),
                "send": Out(stream.Signature(FrameHeader())),
                "tick": In(1),
                "all_sent": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        # Frames from `oldest` to before `highest` have been sent, and go from `next` on; the other
        # end has room up to before `limit`.
        self._highest, self._next, self._limit = Signal(8), Signal(8), Signal(8)
        self._go_back = Signal()
        # Reasons to send.
        self._answer, self._nak, self._nak_sent, self._poll = (Signal() for _ in range(4))
        self._progress, self._sent, self._told = Signal(), Signal(), Signal()
        # Where one sends for a reason and another gives a new one, the new one counts: it is last.
        self._send(m)
        self._receive(m)
        self._time(m)
        return m

    def _receive(self, m: Module) -> None:
        header = self.header
        # Two clocks to compare the numbers of a frame with ours.
        judging = Signal()
        judged = Signal()
        m.d.sync += [judging.eq(self.good), judged.eq(judging)]
        ahead = Signal(8)
        advance = Signal(8)
        outstanding = Signal(8)
        limit = Signal(8)
        is_data = Signal()
        is_ack = Signal()
        m.d.sync += [
            ahead.eq(header.seq - self.received),
            advance.eq(header.ack - self.oldest),
            outstanding.eq(self._highest - self.oldest),
            limit.eq(header.ack + header.credit),
        ]
        is_next = Signal()
        is_missing = Signal()
        is_known = Signal()
        m.d.sync += [
            is_data.eq(header.kind == Kind.DATA),
            is_ack.eq(header.kind == Kind.ACK),
            is_next.eq(ahead == 0),
            is_missing.eq((ahead != 0) & (ahead < _HALF)),
            is_known.eq(advance <= outstanding),
        ]
        is_taken = is_next & self.has_room
        is_lacking = Signal()
        m.d.comb += [
            self.commit.eq(judged & is_data & is_taken),
            is_lacking.eq(Mux(is_data, is_missing | (is_next & ~self.has_room), is_missing)),
        ]
        m.d.sync += self._progress.eq(judged & is_known & (advance != 0))
        with m.If(judged & (is_data | is_ack)):
            with m.If(is_known):
                m.d.sync += [self.oldest.eq(header.ack), self._limit.eq(limit)]
                with m.If(header.nak):
                    m.d.sync += self._go_back.eq(1)
            with m.If(header.poll | (is_data & ~is_taken)):
                m.d.sync += self._answer.eq(1)
            with m.If(is_lacking & (header.poll | ~self._nak_sent)):
                m.d.sync += self._nak.eq(1)
        with m.If(self.commit):
            m.d.sync += [self._nak.eq(0), self._nak_sent.eq(0)]
        with m.If(self.bad & ~self._nak_sent):
            m.d.sync += self._nak.eq(1)

    def _send(self, m: Module) -> None:
        header = self.send.payload
        is_behind = Signal()
        has_frame = Signal()
        has_room = Signal()
        room = Signal(8)
        behind = Signal(8)
        m.d.comb += [behind.eq(self._next - self.oldest), room.eq(self._limit - self.frame)]
        m.d.sync += [
            is_behind.eq(behind[-1]),
            has_frame.eq(self.frame != self.closed),
            has_room.eq((room != 0) & ~room[-1]),
            self.all_sent.eq(self._next == self.closed),
            self._sent.eq(0),
        ]
        self._told_ack, self._told_limit = Signal(8), Signal(8, init=self._link.frames)
        with m.FSM():
            with m.State("CHOOSE"):
                start = Mux(self._go_back | is_behind, self.oldest, self._next)
                with m.If(self.send.ready):
                    m.d.sync += [self.frame.eq(start), self._next.eq(start), self._go_back.eq(0)]
                    m.next = "LOOK"
            with m.State("LOOK"):
                m.next = "DECIDE"
            with m.State("DECIDE"):
                is_data = has_frame & has_room
                m.next = "CHOOSE"
                with m.If(is_data | self._answer | self._nak | self._poll):
                    m.d.comb += self._told.eq(1)
                    m.d.sync += [
                        self.send.valid.eq(1),
                        header.kind.eq(Mux(is_data, Kind.DATA, Kind.ACK)),
                        header.nak.eq(self._nak),
                        header.poll.eq(self._poll),
                        header.session.eq(self.session),
                        header.seq.eq(self.frame),
                        header.ack.eq(self.received),
                        header.credit.eq(self.freed + self._link.frames - self.received),
                        header.length.eq(Mux(is_data, self.length, 0)),
                        self._told_ack.eq(self.received),
                        self._told_limit.eq(self.freed + self._link.frames),
                        self._answer.eq(0),
                        self._nak.eq(0),
                        self._poll.eq(0),
                        self._sent.eq(is_data | self._poll),
                    ]
                    with m.If(self._nak):
                        m.d.sync += self._nak_sent.eq(1)
                    m.next = "OFFER"
                with m.If(is_data):
                    m.d.sync += self._next.eq(self.frame + 1)
                    with m.If(self.frame == self._highest):
                        m.d.sync += self._highest.eq(self.frame + 1)
            with m.State("OFFER"), m.If(self.send.ready):
                m.d.sync += self.send.valid.eq(0)
                m.next = "CHOOSE"

    def _time(self, m: Module) -> None:
        link = self._link
        acks = Signal(8)
        frees = Signal(8)
        is_due = Signal()
        is_urgent = Signal()
        # These take two clocks to see that a frame has told.
        settling = Signal(3)
        m.d.sync += [
            acks.eq(self.received - self._told_ack),
            frees.eq(self.freed + link.frames - self._told_limit),
            is_due.eq((acks != 0) | (frees != 0)),
            is_urgent.eq((acks >= link.ack_frames) | (frees >= link.frames // 2)),
            settling.eq(Cat(self._told, settling)[: len(settling)]),
        ]
        waited = Signal(range(link.ack_characters + 1))
        is_settled = ~(self._told | settling.any())
        with m.If(~is_due | ~is_settled):
            m.d.sync += waited.eq(0)
        with m.Elif(self.tick & (waited != link.ack_characters)):
            m.d.sync += waited.eq(waited + 1)
        with m.If(is_settled & is_due & (is_urgent | (waited == link.ack_characters))):
            m.d.sync += self._answer.eq(1)

        stuck = Signal(range(link.retry_characters + 1))
        with m.If((self.oldest == self.closed) | self._progress | self._sent):
            m.d.sync += stuck.eq(0)
        with m.Elif(self.tick):
            m.d.sync += stuck.eq(stuck + 1)
            with m.If(stuck == link.retry_characters):
                m.d.sync += [stuck.eq(0), self._poll.eq(1)]
