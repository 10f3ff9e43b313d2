"""The serial link: packet streams of an accelerator over a UART."""

from __future__ import annotations

from fractions import Fraction

from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from .link_control import LinkControl
from .link_frames import FrameReceiver, FrameSender
from .link_memory import CommandFrames, ReplyFrames
from .link_protocol import CHARACTER_BITS, TOKEN_BYTES, Kind, LinkConfig
from .packets import PacketWord
from .uart import UartReceiver, UartTransmitter

__all__ = ["SerialLink"]

_RESET_CLOCKS = 15
_FLUSH_CHARACTERS = 8
"""Character times without a reply word after which a frame is sent that is not full."""


class SerialLink(wiring.Component):
    """The board's end of the link of `link_protocol`.

    Nothing passes until a host opens a session, which resets the accelerator; a break on the line
    closes it. Throughput: at least 90 % of the line's rate in each direction at once, if frames are
    long. Back-pressure on `commands` reaches the host as credit that does not come; `replies` are
    taken while there is room in memory.

    Parameters
    ----------
    link : LinkConfig
    link_bytes : int
        Bytes of a word of the packet streams.
    clocks_per_bit : int or Fraction
        Of the line, at least 2.

    Members
    -------
    rx, tx : In(1), Out(1)
        The line; `rx` may change at any time.
    commands : Out
        Stream of `PacketWord`, to the accelerator.
    replies : In
        Stream of `PacketWord`, from it.
    reset_core : Out(1)
        Reset the accelerator: a register, high for at least 14 clocks. No word passes meanwhile.
    busy : Out(1)
        Commands or replies are in the link.
    error : Out(1)
        Something damaged has come within the last `LinkConfig.retry_characters` character times.
    line_break : Out(1)
        The line is in a break.

    Raises
    ------
    ValueError
        If a frame is too short for a word, or a bit too short.
    """

    def __init__(self, link: LinkConfig, link_bytes: int, clocks_per_bit: int | Fraction) -> None:
        if link.frame_bytes < 1 + link_bytes:
            raise ValueError(
                f"frame_bytes must be at least 1 + link_bytes, {1 + link_bytes}, "
                f"not {link.frame_bytes}"
            )
        self.link = link
        self._link_bytes = link_bytes
        self._clocks = Fraction(clocks_per_bit)
        self._receiver = UartReceiver(clocks_per_bit)
        self._transmitter = UartTransmitter(clocks_per_bit)
        words = stream.Signature(PacketWord(link_bytes))
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "commands": Out(words),
                "replies": In(words),
                "reset_core": Out(1, init=1),
                "busy": Out(1),
                "error": Out(1),
                "line_break": Out(1),
            }
        )

    def elaborate(self, platform) -> Module:
        m = Module()
        link = self.link
        m.submodules.uart_receiver = uart_receiver = self._receiver
        m.submodules.uart_transmitter = uart_transmitter = self._transmitter
        m.submodules.frame_receiver = frames = FrameReceiver(link)
        # All that belongs to a session begins anew with each.
        reset = ResetInserter(self.reset_core)
        sender = FrameSender(link, self._link_bytes)
        commands = CommandFrames(link, self._link_bytes)
        replies = ReplyFrames(link, self._link_bytes)
        control = LinkControl(link)
        m.submodules.sender = reset(sender)
        m.submodules.commands = reset(commands)
        m.submodules.replies = reset(replies)
        m.submodules.control = reset(control)

        tick = self._tick(m)
        session = Signal(8)
        is_ours = Signal()
        m.d.comb += [
            uart_receiver.rx.eq(self.rx),
            self.tx.eq(uart_transmitter.tx),
            self.line_break.eq(uart_receiver.line_break),
            frames.i_valid.eq(uart_receiver.valid),
            frames.i_data.eq(uart_receiver.data),
            commands.write.eq(frames.write),
            commands.position.eq(frames.position),
            commands.data.eq(frames.data),
            commands.commit.eq(control.commit),
            commands.length.eq(frames.header.length),
            control.session.eq(session),
            control.bad.eq((frames.bad | uart_receiver.framing_error) & (session != 0)),
            control.header.eq(frames.header),
            control.received.eq(commands.received),
            control.freed.eq(commands.freed),
            control.has_room.eq(commands.has_room),
            control.closed.eq(replies.closed),
            control.length.eq(replies.length),
            control.tick.eq(tick),
            replies.oldest.eq(control.oldest),
            replies.frame.eq(control.frame),
            replies.position.eq(sender.position),
            sender.data.eq(replies.data),
        ]
        connect(m, sender.o, uart_transmitter.i)
        connect(m, commands.words, flipped(self.commands))
        connect(m, flipped(self.replies), replies.words)
        self._sessions(m, frames, sender, control, session, is_ours)
        self._flush(m, tick, replies, control)
        self._lamps(m, tick, frames, commands, replies)
        return m

    def _tick(self, m: Module) -> Signal:
        """High for a clock in each character time."""
        period = int(CHARACTER_BITS * self._clocks)
        count = Signal(range(period))
        tick = Signal()
        m.d.sync += [count.eq(count + 1), tick.eq(0)]
        with m.If(count == period - 1):
            m.d.sync += [count.eq(0), tick.eq(1)]
        return tick

    def _sessions(self, m: Module, frames, sender, control, session, is_ours) -> None:
        token = Signal(8 * TOKEN_BYTES)
        resets = Signal(range(_RESET_CLOCKS + 1))
        welcome = Signal()
        stranger = Signal(8)
        is_strange = Signal()
        header = frames.header
        # Two clocks to compare, one to act.
        judging = Signal()
        judged = Signal()
        is_hello = Signal()
        is_known = Signal()
        is_traffic = Signal()
        m.d.sync += [
            judging.eq(frames.good),
            judged.eq(judging),
            is_hello.eq((header.kind == Kind.HELLO) & (header.length >= TOKEN_BYTES)),
            is_known.eq((frames.token == token) & (header.session == session)),
            is_traffic.eq((header.kind == Kind.DATA) | (header.kind == Kind.ACK)),
            is_ours.eq((header.session == session) & (session != 0)),
            control.good.eq(judging & is_ours),
            self.reset_core.eq((resets != 0) | self.line_break),
        ]
        with m.If(judged & is_hello & (header.session != 0)):
            m.d.sync += welcome.eq(1)
            with m.If(~is_known):
                m.d.sync += [
                    session.eq(header.session),
                    token.eq(frames.token),
                    resets.eq(_RESET_CLOCKS),
                ]
        with m.If(judged & is_traffic & ~is_ours):
            m.d.sync += [stranger.eq(header.session), is_strange.eq(1)]
        with m.If(resets != 0):
            m.d.sync += resets.eq(resets - 1)
        with m.If(self.line_break):
            m.d.sync += [session.eq(0), welcome.eq(0), is_strange.eq(0)]

        # The two answers that belong to no session go before everything else.
        answer = sender.header
        answers = (welcome | is_strange) & ~self.reset_core & (resets == 0)
        m.d.comb += sender.token.eq(token)
        with m.If(answers):
            m.d.comb += [
                answer.valid.eq(1),
                sender.is_welcome.eq(welcome),
                answer.payload.kind.eq(Kind.WELCOME),
                answer.payload.session.eq(session),
                answer.payload.length.eq(sender.welcome_bytes),
            ]
            with m.If(~welcome):
                m.d.comb += [
                    answer.payload.kind.eq(Kind.NO_SESSION),
                    answer.payload.session.eq(stranger),
                    answer.payload.length.eq(0),
                ]
            with m.If(answer.ready):
                m.d.sync += welcome.eq(0)
                with m.If(~welcome):
                    m.d.sync += is_strange.eq(0)
        with m.Else():
            connect(m, control.send, sender.header)

    def _flush(self, m: Module, tick, replies, control) -> None:
        """A frame that is not full goes out once the line has nothing else to do."""
        waited = Signal(range(_FLUSH_CHARACTERS + 1))
        m.d.sync += replies.flush.eq((waited == _FLUSH_CHARACTERS) & control.all_sent)
        with m.If(self.replies.valid):
            m.d.sync += waited.eq(0)
        with m.Elif(tick & (waited != _FLUSH_CHARACTERS)):
            m.d.sync += waited.eq(waited + 1)

    def _lamps(self, m: Module, tick, frames, commands, replies) -> None:
        lasts = Signal(range(self.link.retry_characters + 1))
        m.d.sync += [
            self.busy.eq(
                (commands.received != commands.freed)
                | (replies.closed != replies.oldest)
                | ~replies.is_empty
            ),
            self.error.eq(lasts != 0),
        ]
        with m.If(frames.bad | self._receiver.framing_error):
            m.d.sync += lasts.eq(self.link.retry_characters)
        with m.Elif(tick & (lasts != 0)):
            m.d.sync += lasts.eq(lasts - 1)
