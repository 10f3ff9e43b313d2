"""The serial link's gateware, compiled, against frames and the driver's engine; in simulated time.

Behind the link is a design that sends packets back.
"""

from __future__ import annotations

import functools
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Module, ResetInserter
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from celosia.serial_link import BoardReset, HostLink
from celosia_hw.link import SerialLink
from celosia_hw.link_protocol import (
    CHARACTER_BITS,
    Frame,
    Kind,
    LinkConfig,
    Welcome,
    decode_frame,
    encode_frame,
    join_segments,
    split_segments,
)
from celosia_hw.verilog import Target, convert
from celosia_sim.board import BoardDesign, SimulatedBoard
from celosia_sim.export import cached_verilog
from celosia_sim.faults import BYTE_FAULTS, FaultyLine
from loopback import HANG, SWALLOW, Loopback

LINK_BYTES, CLOCKS_PER_BIT = 4, 3
CHARACTER = CHARACTER_BITS * CLOCKS_PER_BIT
BAUD = 3_000_000
SMALL = LinkConfig(frames=8, frame_bytes=64, retry_characters=512)
LARGE = LinkConfig()
TOKEN = b"abcd"
SELF = Path(__file__).name


class LinkLoopback(wiring.Component):
    """The link and a loopback behind it."""

    def __init__(self, link: LinkConfig) -> None:
        self.link = link
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "lamps": Out(3)})

    def elaborate(self, platform) -> Module:
        m: Any = Module()
        m.submodules.link = link = SerialLink(self.link, LINK_BYTES, CLOCKS_PER_BIT)
        loopback = Loopback(LINK_BYTES)
        m.submodules.loopback = ResetInserter(link.reset_core)(loopback)
        pins: Any = self
        m.d.comb += [link.rx.eq(pins.rx), pins.tx.eq(link.tx)]
        m.d.comb += pins.lamps.eq(link.busy | link.error << 1 | link.line_break << 2)
        for a, b in ((link.commands, loopback.command), (loopback.result, link.replies)):
            m.d.comb += [
                b.valid.eq(a.valid),
                b.payload.data.eq(a.payload.data),
                b.payload.last.eq(a.payload.last),
                a.ready.eq(b.ready),
            ]
        return m


@functools.cache
def design(link: LinkConfig) -> BoardDesign:
    def write():
        return convert(LinkLoopback(link), Target())

    sources = [(Path(__file__).with_name(name)).read_text() for name in ("loopback.py", SELF)]
    made_from = [repr(link), *sources]
    name = f"loopback-{link.frames}x{link.frame_bytes}"
    return BoardDesign(
        name, cached_verilog(name, made_from, write), Fraction(CLOCKS_PER_BIT), resets={"rst": 1}
    )


class Host:
    """The other end of the line, frame by frame."""

    def __init__(self, link: LinkConfig = SMALL) -> None:
        self.board = SimulatedBoard(design(link))
        self._line = b""

    def send(self, *frames: Frame) -> None:
        for frame in frames:
            self.board.to_board += b"\0" + encode_frame(frame)

    def frames(self, characters: float) -> list[Frame | None]:
        """What comes within some character times; None for what is damaged."""
        self._line += self.board.run(int(characters * CHARACTER))
        *lines, self._line = self._line.split(b"\0")
        return [decode_frame(line) for line in lines if line]

    def open(self, token: bytes = TOKEN, session: int = 7) -> None:
        self.send(Frame(Kind.HELLO, session, payload=token))
        (welcome,) = self.frames(60)
        assert welcome is not None
        assert (welcome.kind, welcome.session) == (Kind.WELCOME, session)
        assert welcome.payload[:4] == token


def data(seq: int, ack: int = 0, payload: bytes = b"", **fields: Any) -> Frame:
    payload = payload or b"\x81" + bytes([seq + 1]) * LINK_BYTES
    return Frame(Kind.DATA, 7, seq, ack, 8, payload=payload, **fields)


@pytest.fixture
def host():
    host = Host()
    yield host
    host.board.close()


def test_welcome_tells_the_sizes(host):
    host.send(Frame(Kind.HELLO, 9, payload=TOKEN))
    (frame,) = host.frames(60)
    assert frame == Frame(Kind.WELCOME, 9, payload=frame.payload)
    assert Welcome.decode(frame.payload) == Welcome(TOKEN, 1, 8, 64, LINK_BYTES)


def test_without_a_session(host):
    host.send(
        data(0), Frame(Kind.ACK, 8), Frame(Kind.WELCOME, 7), Frame(Kind.HELLO, 0, payload=TOKEN)
    )
    frames = host.frames(200)
    assert [(frame.kind, frame.session) for frame in frames] == [
        (Kind.NO_SESSION, 7),
        (Kind.NO_SESSION, 8),
    ]
    host.board.to_board += b"garbage\0" + bytes(9) + b"\xff" * 99 + b"\0"
    assert host.frames(300) == []


def test_a_repeated_hello_changes_nothing(host):
    host.open()
    host.send(data(0))
    (reply,) = host.frames(80)
    assert (reply.seq, reply.ack, reply.payload) == (0, 1, data(0).payload)
    host.open()
    host.send(Frame(Kind.ACK, 7, 1, 1, 8, poll=True))
    (answer,) = host.frames(60)
    assert (answer.kind, answer.seq, answer.ack, answer.credit) == (Kind.ACK, 1, 1, 8)


def test_a_new_session_resets(host):
    host.open()
    host.send(data(0, payload=b"\x81" + bytes([HANG] * 4)), data(1), data(2))
    frames = host.frames(200)
    # Nothing but the packet that makes it deaf comes back.
    payloads = [frame.payload for frame in frames if frame.kind is Kind.DATA]
    assert payloads == [b"\x81" + bytes([HANG] * 4)]
    host.open(b"efgh")
    host.send(data(0))
    (reply,) = host.frames(80)
    assert reply.payload == data(0).payload


def test_another_session_is_refused(host):
    host.open()
    host.send(Frame(Kind.DATA, 8, 0, 0, 8, payload=data(0).payload))
    (refusal,) = host.frames(80)
    assert (refusal.kind, refusal.session) == (Kind.NO_SESSION, 8)
    host.send(data(0))
    (reply,) = host.frames(80)
    assert (reply.kind, reply.ack) == (Kind.DATA, 1)


@pytest.mark.parametrize("how", ["break", "reset"])
def test_a_break_and_a_reset_end_the_session(host, how):
    host.open()
    if how == "break":
        host.board.send_break()
        host.frames(10)
    else:
        host.board.reset()
    host.send(data(0))
    # A break begins as a byte without a stop bit; the answer to that is cut off.
    frames = [frame for frame in host.frames(80) if frame is not None]
    assert [frame.kind for frame in frames] == [Kind.NO_SESSION]
    host.open()


def test_acknowledgements(host):
    """At once for a POLL, after `ack_frames` frames, after `ack_characters`, or with a reply."""
    host.open()
    swallowed = b"\x81" + bytes([SWALLOW] * 4)
    host.send(data(0, payload=swallowed, poll=True))
    (ack,) = host.frames(45)
    assert (ack.kind, ack.ack, ack.credit) == (Kind.ACK, 1, 7)
    assert SMALL.ack_frames == 3
    host.send(*(data(seq, payload=swallowed) for seq in (1, 2, 3)))
    (ack,) = host.frames(100)
    assert (ack.kind, ack.ack, ack.credit) == (Kind.ACK, 4, 7)
    # That there is room again for the last of them is told later.
    assert host.frames(SMALL.ack_characters - 60) == []
    (ack,) = host.frames(90)
    assert (ack.kind, ack.ack, ack.credit) == (Kind.ACK, 4, 8)
    assert host.frames(4 * SMALL.retry_characters) == []


def test_a_missing_frame_is_missed_once(host):
    host.open()
    host.send(data(1), data(2), data(3))
    frames = host.frames(200)
    assert all(frame.kind is Kind.ACK and frame.ack == 0 for frame in frames)
    assert sum(frame.nak for frame in frames) == 1
    host.send(data(0))
    (reply,) = host.frames(80)
    assert (reply.nak, reply.ack) == (False, 1)
    # It is missed again, since something arrived in between; and when a POLL asks.
    host.send(data(2, ack=1))
    assert [frame.nak for frame in host.frames(60)] == [True]
    host.send(Frame(Kind.ACK, 7, 3, 1, 8, poll=True))
    assert [frame.nak for frame in host.frames(60)] == [True]


def test_damage_is_answered_at_once(host):
    host.open()
    line = bytearray(encode_frame(data(0)))
    line[5] ^= 4
    host.board.to_board += b"\0" + line
    (frame,) = host.frames(50)
    assert (frame.kind, frame.nak, frame.ack) == (Kind.ACK, True, 0)


def test_duplicates_are_acknowledged_and_ignored(host):
    host.open()
    host.send(data(0))
    (reply,) = host.frames(80)
    host.send(data(0, ack=1))
    (ack,) = host.frames(60)
    assert (ack.kind, ack.ack, ack.nak) == (Kind.ACK, 1, False)
    host.send(data(1, ack=1))
    (second,) = host.frames(80)
    assert second.payload == data(1).payload
    assert reply.payload == data(0).payload


def test_what_is_not_acknowledged_is_asked_for_and_sent_again(host):
    host.open()
    host.send(data(0))
    (reply,) = host.frames(80)
    assert host.frames(SMALL.retry_characters - 100) == []
    (poll,) = host.frames(130)
    assert (poll.kind, poll.poll, poll.seq) == (Kind.ACK, True, 1)
    host.send(Frame(Kind.ACK, 7, 1, 0, 8, nak=True))
    (again,) = host.frames(60)
    assert again.payload == reply.payload
    host.send(Frame(Kind.ACK, 7, 1, 1, 8))
    assert host.frames(3 * SMALL.retry_characters) == []


def test_no_more_than_there_is_room_for(host):
    """What a deaf accelerator does not take keeps its room; what is sent all the same is lost."""
    host.open()
    host.send(data(0, payload=b"\x81" + bytes([HANG] * 4)))
    host.frames(100)
    host.send(*(data(seq) for seq in range(1, 13)))
    frames = host.frames(900)
    last = frames[-1]
    assert last.credit == 0
    # One is in the hands of the deaf; those before have been taken out.
    assert 8 <= last.ack <= 10
    host.send(Frame(Kind.ACK, 7, 13, 0, 8, poll=True))
    (answer,) = host.frames(60)
    assert (answer.ack, answer.credit, answer.nak) == (last.ack, 0, True)


def test_replies_wait_for_credit(host):
    host.open()
    host.send(Frame(Kind.ACK, 7, 0, 0, 1))
    host.frames(30)
    packet = bytes(range(1, 101))
    for seq, (payload, _) in enumerate(split_segments([packet], LINK_BYTES, 64)):
        host.send(Frame(Kind.DATA, 7, seq, 0, 1, payload=payload))
    frames = [frame for frame in host.frames(400) if frame.kind is Kind.DATA]
    assert [frame.seq for frame in frames] == [0]
    host.send(Frame(Kind.ACK, 7, 2, 1, 5))
    frames += [frame for frame in host.frames(100) if frame.kind is Kind.DATA]
    assert [frame.seq for frame in frames] == [0, 1]
    words = [segment for frame in frames for segment in join_segments(frame.payload, LINK_BYTES)]
    assert b"".join(part for part, _ in words) == packet
    assert [end for _, end in words][-1]


class Timed:
    """The driver's engine and a board, in simulated time."""

    def __init__(self, link: LinkConfig, line: FaultyLine | None = None, step: int = 20) -> None:
        self.board, self._line = SimulatedBoard(design(link)), line
        self._step = step * CLOCKS_PER_BIT
        self.link = HostLink(5, TOKEN, self.now, BAUD)
        self.until(lambda: self.link.welcome is not None)

    @property
    def now(self) -> float:
        return self.board.clocks / (BAUD * CLOCKS_PER_BIT)

    def until(self, is_done, seconds: float = 5.0) -> None:
        end = self.now + seconds
        while not is_done():
            assert self.now < end, "nothing within its time"
            if len(self.board.to_board) < 64:
                out = self.link.transmit(self.now)
                self.board.to_board += self._line.to_board(out) if self._line else out
            received = self.board.run(self._step)
            self.link.receive(self._line.to_host(received) if self._line else received, self.now)

    def echo(self, packets: list[bytes]) -> list[bytes]:
        start = len(self.link.replies)
        self.link.send(packets, self.now)
        self.link.awaiting = True
        self.until(lambda: not self.link.sending and len(self.link.replies) == start + len(packets))
        self.link.awaiting = False
        return [self.link.replies[start + i] for i in range(len(packets))]


def random_packets(dice: random.Random, total: int) -> list[bytes]:
    packets = []
    while total > 0:
        words = min(dice.choice([1, 3, 20, 129, 300]), -(-total // LINK_BYTES))
        packets.append(bytes([1 + dice.randrange(200)]) + dice.randbytes(words * LINK_BYTES - 1))
        total -= words * LINK_BYTES
    return packets


def test_throughput():
    """At least 90 % of the line's bytes are the packets' in both directions at once."""
    timed = Timed(LARGE)
    packets = random_packets(random.Random(3), 150_000)
    start = timed.board.clocks
    assert timed.echo(packets) == packets
    characters = (timed.board.clocks - start) / CHARACTER
    share = sum(map(len, packets)) / characters
    print(f"{share:.4f} of the line's rate in each direction")
    assert share >= 0.9
    assert timed.link.frames_repeated == timed.link.frames_damaged == 0


@pytest.mark.parametrize("kind", BYTE_FAULTS)
@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_lost_on_a_bad_line(kind, seed):
    dice = random.Random(seed)
    line = FaultyLine((kind,), 250, seed)
    line.enabled = False
    timed = Timed(SMALL, line)
    line.enabled = True
    packets = random_packets(dice, 3000)
    assert timed.echo(packets) == packets
    assert line.counts[kind] > 10
    line.enabled = False
    assert timed.echo(packets[:5]) == packets[:5]


def test_a_reset_is_found_out_while_waiting():
    timed = Timed(SMALL)
    timed.link.send([bytes([SWALLOW] * 4)], timed.now)
    timed.until(lambda: not timed.link.sending)
    timed.board.reset()
    timed.link.awaiting = True
    with pytest.raises(BoardReset, match="the board was reset; open it again"):
        timed.until(lambda: False)


@pytest.mark.filterwarnings("ignore:.*created but never used")
def test_a_frame_that_holds_no_word():
    with pytest.raises(
        ValueError, match="frame_bytes must be at least 1 \\+ link_bytes, 65, not 64"
    ):
        SerialLink(SMALL, 64, 4)
