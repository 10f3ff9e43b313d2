"""The host's end of the serial link: bytes and the time in, bytes out, and nothing else."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator

from celosia_hw.link_protocol import (
    CHARACTER_BITS,
    CRC_BYTES,
    HEADER_BYTES,
    LINK_VERSION,
    SEQUENCE,
    Frame,
    Kind,
    LinkConfig,
    Welcome,
    decode_frame,
    encode_frame,
    join_segments,
    split_segments,
)

from .device import DeviceError, VersionMismatch

__all__ = ["BoardReset", "CableLost", "DeviceBusy", "HostLink", "LinkTimeout"]

_CREDIT = 64
"""Frames that the board may send ahead; memory is no limit here."""
_HALF = SEQUENCE // 2
_HELLO_SECONDS = 0.2
_ACK_SECONDS = 0.02
_LEAST_WAIT, _LONGEST_WAIT = 0.02, 0.5
_LONGEST_LINE = 1 << 13
"""No frame has more bytes on the line."""


class LinkTimeout(DeviceError):
    """A board that did not answer, or did not go on, in time."""


class BoardReset(DeviceError):
    """A board that was reset while it was in use: what it held is lost."""


class CableLost(DeviceError):
    """A port that was there and is gone."""


class DeviceBusy(DeviceError):
    """A port that another process uses."""


class HostLink:
    """A session of the serial link, from its HELLO on.

    A state machine without input, output or clock of its own: whoever drives it hands it what the
    line brings, asks it what to send, and tells it the time in seconds.

    Parameters
    ----------
    session : int
        1 to 255.
    token : bytes
        4 of them, that no other session has.
    now : float
    baud : int
        Bits per second; the first guess at how long an answer takes.

    Attributes
    ----------
    welcome : Welcome or None
        Once the session is open.
    replies : deque of bytes
        Packets that have arrived.
    delivered : int
        Packets sent that the board has, since the session began.
    awaiting : bool
        Replies are expected: a board that is silent is asked now and then, also when it has
        everything, so that one that was reset is found out.
    progress_at : float
        When anything last went on: a frame arrived that was not there before, or was acknowledged.
    bytes_sent, bytes_received : int
        On the line.
    frames_repeated, frames_damaged : int
        Sent again, and received with an error.
    """

    def __init__(self, session: int, token: bytes, now: float, baud: int) -> None:
        self._session, self._token = session, token
        self.welcome: Welcome | None = None
        self.replies: deque[bytes] = deque()
        self.delivered = 0
        self.awaiting = False
        self.progress_at = now
        self.bytes_sent = self.bytes_received = 0
        self.frames_repeated = self.frames_damaged = 0

        self._line = bytearray()
        self._payloads: Iterator[tuple[bytes, int]] = iter(())
        self._ready: tuple[bytes, int] | None = None  # the next payload, looked at ahead
        self._flying: deque[tuple[bytes, int]] = deque()  # sent from `_oldest` on
        self._oldest = self._next = self._highest = self._limit = 0
        self._received = self._told = 0
        self._ack_frames = 1
        self._partial = bytearray()
        self._answer = self._nak = self._nak_sent = False
        self._follows = False  # the last frame
        self._answer_at = math.inf
        self._ask_at = now
        self._character = CHARACTER_BITS / baud
        # Round trips, as TCP (RFC 6298) measures them.
        self._wait = self._usual_wait = self._first_wait = _LEAST_WAIT
        self._mean: float | None = None
        self._deviation = 0.0
        self._timed: tuple[int, float] | None = None

    def send(self, packets: Iterable[bytes], now: float) -> None:
        """Queue packets, none of them empty; those queued before must have been delivered.

        They are taken one by one when there is room for them. The last frame asks to be
        acknowledged at once.
        """
        assert self.welcome is not None
        assert not self.sending
        self._payloads = split_segments(packets, self.welcome.link_bytes, self.welcome.frame_bytes)
        self._look()
        self.progress_at = now
        self._ask_at = now + self._wait

    @property
    def sending(self) -> bool:
        """Whether anything has been queued that the board has not acknowledged."""
        return self._ready is not None or bool(self._flying)

    @property
    def _is_waiting(self) -> bool:
        return self.sending or self.awaiting

    def transmit(self, now: float) -> bytes:
        """What is to be sent now, a frame at a time; empty if nothing is."""
        frame = self._opening(now) if self.welcome is None else self._session_frame(now)
        if frame is None:
            return b""
        line = encode_frame(frame)
        # What ends a frame begins the next one; after a pause there may be garbage before it.
        line = line if self._follows else b"\0" + line
        self.bytes_sent += len(line)
        return line

    def deadline(self) -> float:
        """When `transmit` is to be asked again, if nothing arrives before."""
        if self.welcome is None:
            return self._ask_at
        return min(self._answer_at, self._ask_at if self._is_waiting else math.inf)

    def receive(self, data: bytes, now: float) -> None:
        """Take bytes that the line has brought.

        Raises
        ------
        VersionMismatch, BoardReset
        """
        self.bytes_received += len(data)
        *lines, rest = data.split(b"\0")
        for line in lines:
            line = bytes(self._line) + line
            self._line.clear()
            if line:
                self._frame(decode_frame(line), now)
        self._line += rest[: max(_LONGEST_LINE - len(self._line), 0)]

    def _opening(self, now: float) -> Frame | None:
        if now < self._ask_at:
            return None
        self._ask_at = now + _HELLO_SECONDS
        return Frame(Kind.HELLO, self._session, payload=self._token)

    def _session_frame(self, now: float) -> Frame | None:
        self._follows = False
        payload, poll = b"", False
        if 0 < (self._limit - self._next) % SEQUENCE < _HALF:
            payload = self._take(now)
        if not payload:
            poll = self._is_waiting and now >= self._ask_at
            if not (poll or self._answer or self._nak or now >= self._answer_at):
                return None
            if poll:
                self._wait = min(2 * self._wait, max(self._wait, _LONGEST_WAIT))
                self._timed = None
        if payload or poll:
            self._ask_at = now + self._wait
        frame = Frame(
            Kind.DATA if payload else Kind.ACK,
            self._session,
            (self._next - bool(payload)) % SEQUENCE,
            self._received,
            _CREDIT,
            self._nak,
            poll or (bool(payload) and self._ready is None and self._next == self._highest),
            payload,
        )
        self._follows = bool(payload)
        self._nak_sent |= self._nak
        self._answer = self._nak = False
        self._answer_at, self._told = math.inf, self._received
        return frame

    def _take(self, now: float) -> bytes:
        """The payload of the next DATA frame: one sent before, or a new one."""
        place = (self._next - self._oldest) % SEQUENCE
        if place < len(self._flying):
            self.frames_repeated += 1
            self._timed = None
        elif self._ready is None:
            return b""
        else:
            self._flying.append(self._ready)
            self._highest = (self._highest + 1) % SEQUENCE
            self._look()
            if self._timed is None:
                self._timed = self._next, now
        self._next = (self._next + 1) % SEQUENCE
        return self._flying[place][0]

    def _look(self) -> None:
        self._ready = next(self._payloads, None)

    def _frame(self, frame: Frame | None, now: float) -> None:
        if self.welcome is None:
            if frame is not None and frame.kind is Kind.WELCOME:
                self._welcomed(Welcome.decode(frame.payload), now)
        elif frame is None:
            self.frames_damaged += 1
            self._nak |= not self._nak_sent
        elif frame.session != self._session:
            pass  # left over from another session
        elif frame.kind is Kind.NO_SESSION:
            raise BoardReset("the board was reset; open it again")
        elif frame.kind in (Kind.DATA, Kind.ACK):
            self._acknowledged(frame, now)
            self._arrived(frame, now)

    def _welcomed(self, welcome: Welcome | None, now: float) -> None:
        if welcome is None or welcome.token != self._token:
            return
        if welcome.version != LINK_VERSION:
            raise VersionMismatch(
                f"the board's link is of version {welcome.version}, this driver's of {LINK_VERSION}"
            )
        self.welcome = welcome
        self._limit = welcome.frames
        self.progress_at = now
        self._ack_frames = LinkConfig(welcome.frames).ack_frames
        # Both ends may have a window of frames to send first.
        frame = welcome.frame_bytes + HEADER_BYTES + CRC_BYTES
        self._first_wait = _LEAST_WAIT + 2 * welcome.frames * frame * self._character
        self._wait = self._usual_wait = self._first_wait

    def _acknowledged(self, frame: Frame, now: float) -> None:
        advance = (frame.ack - self._oldest) % SEQUENCE
        if advance > (self._highest - self._oldest) % SEQUENCE:
            return  # a frame from before
        self._limit = (frame.ack + frame.credit) % SEQUENCE
        if advance:
            self._measure(frame.ack, now)
            for _ in range(advance):
                self.delivered += self._flying.popleft()[1]
            if (self._next - self._oldest) % SEQUENCE < advance:
                self._next = frame.ack
            self._oldest = frame.ack
            self._went_on(now)
        if frame.nak:
            self._next = self._oldest

    def _went_on(self, now: float) -> None:
        self._wait = self._usual_wait
        self.progress_at = now
        self._ask_at = now + self._wait

    def _measure(self, ack: int, now: float) -> None:
        """Time from a frame to what acknowledges it; of frames sent once."""
        if self._timed is None or not 0 < (ack - self._timed[0]) % SEQUENCE < _HALF:
            return
        took, self._timed = now - self._timed[1], None
        if self._mean is None:
            self._mean, self._deviation = took, took / 2
        else:
            self._deviation += (abs(took - self._mean) - self._deviation) / 4
            self._mean += (took - self._mean) / 8
        wait = max(self._mean + 4 * self._deviation, _LEAST_WAIT)
        # To ask too early costs a few bytes, to ask too late costs time.
        self._usual_wait = min(wait, max(self._first_wait, _LONGEST_WAIT))

    def _arrived(self, frame: Frame, now: float) -> None:
        assert self.welcome is not None
        ahead = (frame.seq - self._received) % SEQUENCE
        is_data = frame.kind is Kind.DATA
        if is_data and not ahead:
            self._received = (self._received + 1) % SEQUENCE
            self._nak = self._nak_sent = False
            self._went_on(now)
            self._collect(frame.payload, self.welcome.link_bytes)
        elif is_data:
            self._answer = True
        if 0 < ahead < _HALF and (frame.poll or not self._nak_sent):
            self._nak = True
        self._answer |= frame.poll
        owed = (self._received - self._told) % SEQUENCE
        if owed >= self._ack_frames:
            self._answer = True
        elif owed:
            self._answer_at = min(self._answer_at, now + _ACK_SECONDS)

    def _collect(self, payload: bytes, link_bytes: int) -> None:
        try:
            for words, ends in join_segments(payload, link_bytes):
                self._partial += words
                if ends:
                    self.replies.append(bytes(self._partial))
                    self._partial.clear()
        except ValueError as error:
            raise DeviceError(f"the board sent {error}; open it again") from None
