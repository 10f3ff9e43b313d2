"""Frames of the serial link: their headers, and from bytes on the line to bytes in memory."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc.catalog import CRC32_ISO_HDLC
from amaranth.lib.wiring import In, Out, connect, flipped

from .cobs import CobsDecoder, CobsEncoder
from .link_protocol import CRC_BYTES, HEADER_BYTES, LINK_VERSION, TOKEN_BYTES, LinkConfig, Welcome

__all__ = ["FrameHeader", "FrameReceiver", "FrameSender"]


class FrameHeader(data.StructLayout):
    """The header of a frame; members as in `link_protocol.Frame`, and `length` of the payload."""

    def __init__(self) -> None:
        super().__init__(
            {
                "kind": 4,
                "nak": 1,
                "poll": 1,
                "reserved": 2,
                "session": 8,
                "seq": 8,
                "ack": 8,
                "credit": 8,
                "length": 16,
            }
        )


class FrameReceiver(wiring.Component):
    """Finds frames in the bytes of a line and checks them.

    Latency: 6 clocks from the zero that ends a frame to `good` or `bad`. Bytes must be 8 clocks
    apart, and are taken at once.

    Parameters
    ----------
    link : LinkConfig

    Members
    -------
    i_valid, i_data : In
        Bytes of the line.
    write, position, data : Out
        A byte of the present frame's payload, before it is known to be good. Up to 4 bytes behind
        the payload are given too, but none beyond `LinkConfig.frame_bytes`.
    header : Out
        `FrameHeader`, from `good` or `bad` to the next frame.
    token : Out
        The first 4 bytes of the payload.
    good, bad : Out(1)
        A frame has ended, for one clock.
    """

    def __init__(self, link: LinkConfig) -> None:
        self._link = link
        super().__init__(
            {
                "i_valid": In(1),
                "i_data": In(8),
                "write": Out(1),
                "position": Out(range(link.frame_bytes)),
                "data": Out(8),
                "header": Out(FrameHeader()),
                "token": Out(8 * TOKEN_BYTES),
                "good": Out(1),
                "bad": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.decoder = decoder = CobsDecoder()
        m.submodules.crc = crc = CRC32_ISO_HDLC(data_width=8).create()
        m.d.comb += [
            decoder.i_valid.eq(self.i_valid),
            decoder.i_data.eq(self.i_data),
            crc.valid.eq(decoder.valid),
            crc.data.eq(decoder.data),
        ]

        header_left = Signal(range(HEADER_BYTES + 1), init=HEADER_BYTES)
        # Bytes behind the header; more than the longest frame has look like one more.
        longest = self._link.frame_bytes + CRC_BYTES
        size = Signal(range(longest + 2))
        overlong = Signal()
        ending = Signal(4)
        whole = Signal()
        fits = Signal()
        matches = Signal()
        expected = Signal(17)
        header = self.header.as_value()
        m.d.sync += [
            self.write.eq(0),
            self.good.eq(0),
            self.bad.eq(0),
            overlong.eq(size == longest + 1),
            expected.eq(self.header.length + CRC_BYTES),
            fits.eq((size == expected) & (header_left == 0) & ~overlong),
            matches.eq(crc.match_detected),
            # What is registered above is settled when the last of these comes.
            ending.eq(Cat(decoder.end, ending)[: len(ending)]),
        ]
        with m.If(decoder.end):
            m.d.sync += whole.eq(decoder.whole)
        with m.If(decoder.valid & (header_left != 0)):
            m.d.sync += [
                header.eq(Cat(header[8:], decoder.data)),
                header_left.eq(header_left - 1),
            ]
        with m.Elif(decoder.valid & ~overlong):
            m.d.sync += [
                size.eq(size + 1),
                self.write.eq(size < self._link.frame_bytes),
                self.position.eq(size),
                self.data.eq(decoder.data),
            ]
            with m.If(size < TOKEN_BYTES):
                m.d.sync += self.token.eq(Cat(self.token[8:], decoder.data))
        with m.If(ending[-1]):
            good = fits & matches & whole
            m.d.sync += [
                self.good.eq(good),
                self.bad.eq(~good),
                header_left.eq(HEADER_BYTES),
                size.eq(0),
            ]
            m.d.comb += crc.start.eq(1)
        return m


class FrameSender(wiring.Component):
    """Sends frames: header, payload and CRC, encoded.

    Latency: 4 clocks and that of `CobsEncoder`. Throughput: 3 clocks a byte. Back-pressure on `o`
    holds up everything once the encoder's memory is full.

    Parameters
    ----------
    link : LinkConfig
    link_bytes : int
        What a WELCOME tells.

    Members
    -------
    header : In
        Stream of `FrameHeader`. It is taken when the frame before is in the encoder.
    token : In
        For a WELCOME: its payload is `Welcome`. Other payloads come from the memory.
    is_welcome : In(1)
        With `header`.
    position : Out
        Byte of the payload to read; `data` must follow it by one clock. Which frame it is of, is to
        be kept until the next header is taken.
    data : In(8)
    o : Out
        Stream of bytes for the line.
    idle : Out(1)
        Nothing is left to send.

    Attributes
    ----------
    welcome_bytes : int
        `length` of a WELCOME.
    """

    def __init__(self, link: LinkConfig, link_bytes: int) -> None:
        sizes = (link.frames, link.frame_bytes, link_bytes)
        welcome = Welcome(bytes(TOKEN_BYTES), LINK_VERSION, *sizes).encode()
        self._welcome = welcome[TOKEN_BYTES:]
        self.welcome_bytes = len(welcome)
        super().__init__(
            {
                "header": In(stream.Signature(FrameHeader())),
                "token": In(8 * TOKEN_BYTES),
                "is_welcome": In(1),
                "position": Out(range(link.frame_bytes)),
                "data": In(8),
                "o": Out(stream.Signature(8)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        m.submodules.encoder = encoder = CobsEncoder()
        m.submodules.crc = crc = CRC32_ISO_HDLC(data_width=8).create()
        connect(m, encoder.o, flipped(self.o))

        token = [self.token.word_select(i, 8) for i in range(TOKEN_BYTES)]
        answer = Array([*token, *(Const(byte, 8) for byte in self._welcome)])

        shift = Signal(8 * HEADER_BYTES)
        left = Signal(range(8))
        remaining = Signal(16)
        is_welcome = Signal()
        byte = Signal(8)
        out = encoder.i
        is_checked = Signal()
        m.d.comb += [
            crc.valid.eq(is_checked & out.ready),
            crc.data.eq(out.payload.data),
        ]
        with m.FSM() as fsm:
            with m.State("IDLE"):
                m.d.comb += [self.header.ready.eq(1), crc.start.eq(1)]
                m.d.sync += [
                    shift.eq(self.header.payload),
                    remaining.eq(self.header.payload.length),
                    is_welcome.eq(self.is_welcome),
                    left.eq(HEADER_BYTES - 1),
                    self.position.eq(0),
                ]
                with m.If(self.header.valid):
                    m.next = "HEADER"
            with m.State("HEADER"):
                m.d.comb += [out.valid.eq(1), out.payload.data.eq(shift[:8]), is_checked.eq(1)]
                with m.If(out.ready):
                    m.d.sync += [shift.eq(shift >> 8), left.eq(left - 1)]
                    with m.If(left == 0):
                        m.next = "FETCH"
            with m.State("FETCH"):
                m.next = "CHECK"
                with m.If(remaining != 0):
                    m.next = "READ"
            with m.State("READ"):
                m.d.sync += byte.eq(Mux(is_welcome, answer[self.position[:4]], self.data))
                m.next = "PAYLOAD"
            with m.State("PAYLOAD"):
                m.d.comb += [out.valid.eq(1), out.payload.data.eq(byte), is_checked.eq(1)]
                with m.If(out.ready):
                    m.d.sync += [
                        self.position.eq(self.position + 1),
                        remaining.eq(remaining - 1),
                    ]
                    m.next = "FETCH"
            with m.State("CHECK"):
                m.d.sync += [shift.eq(crc.crc), left.eq(CRC_BYTES - 1)]
                m.next = "CRC"
            with m.State("CRC"):
                m.d.comb += [
                    out.valid.eq(1),
                    out.payload.data.eq(shift[:8]),
                    out.payload.last.eq(left == 0),
                ]
                with m.If(out.ready):
                    m.d.sync += [shift.eq(shift >> 8), left.eq(left - 1)]
                    with m.If(left == 0):
                        m.next = "IDLE"
            m.d.comb += self.idle.eq(fsm.ongoing("IDLE") & encoder.idle)
        return m
