"""The serial link: frames that carry packets over a line of bytes, defined once for both ends.

On the line a frame is its bytes in COBS [1]_ between bytes of 0, so that a receiver finds the next
frame after any garbage. Decoded it is a header of `HEADER_BYTES`, a payload, and the CRC-32 of
both. Numbers are little-endian; `docs/link.md` tells what the two ends do with frames.

The payload of a DATA frame is segments: a byte of which bit 7 says that the segment's last word
ends a packet and the others tell how many words follow, 1 to 127; then these link words.

References
----------
.. [1] S. Cheshire and M. Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM Transactions on
   Networking 7 (1999).
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction

__all__ = [
    "BREAK_BITS",
    "CHARACTER_BITS",
    "CRC_BYTES",
    "HEADER_BYTES",
    "LINK_VERSION",
    "NAK",
    "POLL",
    "SEGMENT_END",
    "SEGMENT_WORDS",
    "SEQUENCE",
    "TOKEN_BYTES",
    "Frame",
    "Kind",
    "LinkConfig",
    "Welcome",
    "bit_rate",
    "cobs_decode",
    "cobs_encode",
    "decode_frame",
    "encode_frame",
    "join_segments",
    "split_segments",
]

LINK_VERSION = 1

HEADER_BYTES, CRC_BYTES, TOKEN_BYTES = 7, 4, 4
SEQUENCE = 256
"""Sequence numbers count modulo this."""
NAK, POLL = 0x10, 0x20
"""Flags beside a frame's kind: a frame is missing, send again from `ack`; answer at once."""
SEGMENT_END, SEGMENT_WORDS = 0x80, 127
COBS_BLOCK = 254
"""Bytes without a zero that one code byte of COBS announces at most."""
CHARACTER_BITS = 10
"""Bit times of a byte on the line: start, 8 data, stop."""
BREAK_BITS = 15
"""Bit times without a stop bit that are a break: one and a half characters."""

_HEADER = struct.Struct("<BBBBBH")
_WELCOME = struct.Struct("<4sBBHB")


class Kind(enum.IntEnum):
    """What a frame is, in the lower 4 bits of its first byte."""

    HELLO = 1
    """Host: open a session. The payload is a token of 4 bytes that tells sessions apart."""
    WELCOME = 2
    """Board: the session is open; see `Welcome`."""
    DATA = 3
    """Segments."""
    ACK = 4
    """Nothing but `ack` and `credit`; `seq` is that of the next DATA."""
    NO_SESSION = 5
    """Board: a frame came that belongs to no open session; `session` is that of this frame."""


@dataclass(frozen=True)
class LinkConfig:
    """Sizes of a board's end of the link.

    Parameters
    ----------
    frames : int
        Frames that each direction holds: what may be on its way unacknowledged. A power of two.
    frame_bytes : int
        Longest payload of a frame, a power of two.
    retry_characters : int
        Character times without progress after which the other end is asked.

    Raises
    ------
    TypeError
        If a parameter is not an integer.
    ValueError
        If it is out of its range.
    """

    frames: int = 8
    frame_bytes: int = 1024
    retry_characters: int = 16384

    def __post_init__(self) -> None:
        for name, low, high in (
            ("frames", 2, 64),
            ("frame_bytes", 32, 4096),
            ("retry_characters", 64, 1 << 24),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {value!r}")
            if not low <= value <= high:
                raise ValueError(f"{name} must be between {low} and {high}, not {value}")
            if name != "retry_characters" and value & (value - 1):
                raise ValueError(f"{name} must be a power of two, not {value}")

    @property
    def ack_frames(self) -> int:
        """Frames received after which an ACK goes out at once.

        Few, so that the sender does not run out of room before it arrives; each costs 14 bytes.
        """
        return max(3 * self.frames // 8, 1)

    @property
    def ack_characters(self) -> int:
        """Character times after which an ACK goes out for fewer."""
        return min(4 * self.frame_bytes, self.retry_characters // 2)


@dataclass(frozen=True)
class Frame:
    """A frame, decoded.

    Attributes
    ----------
    kind : Kind
    session : int
        Not 0.
    seq : int
        Of a DATA frame its own number, of others the number of the next one.
    ack : int
        All DATA frames before this number have arrived.
    credit : int
        Frames from `ack` on that there is room for.
    nak, poll : bool
        Flags.
    payload : bytes
    """

    kind: Kind
    session: int = 0
    seq: int = 0
    ack: int = 0
    credit: int = 0
    nak: bool = False
    poll: bool = False
    payload: bytes = b""


@dataclass(frozen=True)
class Welcome:
    """The payload of a WELCOME frame: what the host has to know of the board's end.

    Attributes
    ----------
    token : bytes
        That of the HELLO.
    version : int
        `LINK_VERSION` of the board.
    frames, frame_bytes : int
        As in `LinkConfig`.
    link_bytes : int
        Bytes of a link word.
    """

    token: bytes
    version: int
    frames: int
    frame_bytes: int
    link_bytes: int

    def encode(self) -> bytes:
        """As it goes over the link."""
        return _WELCOME.pack(
            self.token, self.version, self.frames, self.frame_bytes, self.link_bytes
        )

    @classmethod
    def decode(cls, payload: bytes) -> Welcome | None:
        """From a payload, which later versions may extend; None if it is too short."""
        if len(payload) < _WELCOME.size:
            return None
        return cls(*_WELCOME.unpack_from(payload))


def encode_frame(frame: Frame) -> bytes:
    """A frame's bytes on the line, with the 0 that ends it."""
    flags = NAK * frame.nak | POLL * frame.poll
    header = _HEADER.pack(
        frame.kind | flags,
        frame.session,
        frame.seq % SEQUENCE,
        frame.ack % SEQUENCE,
        frame.credit,
        len(frame.payload),
    )
    body = header + frame.payload
    return cobs_encode(body + zlib.crc32(body).to_bytes(CRC_BYTES, "little")) + b"\0"


def decode_frame(line: bytes) -> Frame | None:
    """The frame between two zeros of the line; None if it is damaged or of an unknown kind."""
    body = cobs_decode(line)
    if body is None or len(body) < HEADER_BYTES + CRC_BYTES:
        return None
    content, crc = body[:-CRC_BYTES], int.from_bytes(body[-CRC_BYTES:], "little")
    kind, session, seq, ack, credit, length = _HEADER.unpack_from(content)
    payload = content[HEADER_BYTES:]
    if zlib.crc32(content) != crc or len(payload) != length or kind & 0xF not in set(Kind):
        return None
    flags = (bool(kind & NAK), bool(kind & POLL))
    return Frame(Kind(kind & 0xF), session, seq, ack, credit, *flags, payload)


def cobs_encode(data: bytes) -> bytes:
    """Bytes without a zero that stand for any bytes; at most one in 254 more, and one."""
    result = bytearray()
    for block in data.split(b"\0"):
        start = 0
        while len(block) - start >= COBS_BLOCK:
            result.append(COBS_BLOCK + 1)
            result += block[start : start + COBS_BLOCK]
            start += COBS_BLOCK
        result.append(len(block) - start + 1)
        result += block[start:]
    return bytes(result)


def cobs_decode(line: bytes) -> bytes | None:
    """The bytes that `cobs_encode` was given; None if these are not of its making."""
    result, position = bytearray(), 0
    if not line or 0 in line:
        return None
    while position < len(line):
        code = line[position]
        block = line[position + 1 : position + code]
        if len(block) != code - 1:
            return None
        result += block
        position += code
        if code <= COBS_BLOCK and position < len(line):
            result.append(0)
    return bytes(result)


def split_segments(
    packets: Iterable[bytes], link_bytes: int, frame_bytes: int
) -> Iterator[tuple[bytes, int]]:
    """Payloads of DATA frames for packets.

    Parameters
    ----------
    packets : iterable of bytes
        Not empty; each is padded with zeros to whole link words.
    link_bytes : int
        Bytes of a link word.
    frame_bytes : int
        Longest payload.

    Yields
    ------
    payload : bytes
    packets : int
        Packets that end in it.
    """
    payload, ends = bytearray(), 0
    for packet in packets:
        data = packet + bytes(-len(packet) % link_bytes)
        start = 0
        while start < len(data):
            words = (frame_bytes - len(payload) - 1) // link_bytes
            if words < 1:
                yield bytes(payload), ends
                payload, ends = bytearray(), 0
                continue
            words = min(words, SEGMENT_WORDS, (len(data) - start) // link_bytes)
            stop = start + words * link_bytes
            is_last = stop == len(data)
            payload.append(words | SEGMENT_END * is_last)
            payload += data[start:stop]
            start, ends = stop, ends + is_last
    if payload:
        yield bytes(payload), ends


def join_segments(payload: bytes, link_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """The segments of a payload: their words, and whether a packet ends with them.

    Raises
    ------
    ValueError
        If the payload does not consist of whole segments.
    """
    position = 0
    while position < len(payload):
        head = payload[position]
        stop = position + 1 + (head & SEGMENT_WORDS) * link_bytes
        if stop > len(payload) or not head & SEGMENT_WORDS:
            raise ValueError(f"a segment at byte {position} of {len(payload)} that cannot be")
        yield payload[position + 1 : stop], bool(head & SEGMENT_END)
        position = stop


def bit_rate(clock_hz: int, baud: int) -> Fraction:
    """Clocks per bit of a line.

    Raises
    ------
    ValueError
        If a bit takes fewer than 2 clocks.
    """
    clocks = Fraction(clock_hz, baud)
    if clocks < 2:
        raise ValueError(f"{baud} baud need a clock of {2 * baud} Hz at least, not {clock_hz}")
    return clocks
