"""Packets over the word streams of a simulated accelerator."""

from __future__ import annotations

import abc
import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

from celosia_hw.config import AcceleratorConfig

from .errors import SimulationError

__all__ = ["Slice", "StreamTransport", "patience"]


class Slice(NamedTuple):
    """What happened in some clocks of an exchange."""

    data: bytes
    """Result words accepted in this slice."""
    ends: bytes
    """For each of these words, 1 if it ends a packet, else 0."""
    sent: int
    """Command words accepted since the exchange began."""
    idle: int
    """Clocks since a word was accepted at either end."""
    clocks: int
    """Clocks of the exchange, as in `StreamTransport.clocks`."""


def patience(config: AcceleratorConfig) -> int:
    """Clocks without a word after which an accelerator is taken for dead.

    A query tile that attends to everything computes without a word moving; twice that, and
    100 000 clocks.
    """
    return 100_000 + 2 * config.slots * config.pitch(config.max_head_dim, config.max_head_dim)


class StreamTransport(abc.ABC):
    """Sends command packets to a simulated accelerator and collects its replies.

    Its state lasts from one exchange to the next; between exchanges its clock stands still.

    Parameters
    ----------
    link_bytes : int
        Bytes of a link word.
    idle_clocks : int
        Clocks without a word in either direction after which an exchange is given up.

    Attributes
    ----------
    clocks : int
        Clocks of the last exchange, from its first command word to its last result word, both
        counted; to the last command word if no replies were asked for.
    total_clocks : int
        Clocks simulated so far.
    seconds : float
        Time spent simulating them, in seconds.
    """

    def __init__(self, link_bytes: int, idle_clocks: int) -> None:
        self.link_bytes = link_bytes
        self.idle_clocks = idle_clocks
        self.clocks = 0
        self.total_clocks = 0
        self.seconds = 0.0
        self._replies: deque[bytes] = deque()
        self._partial = b""

    def exchange(
        self,
        commands: Sequence[bytes],
        replies: int,
        progress: Callable[[int], None] | None = None,
    ) -> list[bytes]:
        """Send packets and collect replies.

        Parameters
        ----------
        commands : sequence of bytes
            Packets, sent back to back, each padded with zeros to whole link words.
        replies : int
            Reply packets to wait for. All commands are delivered, even if the replies arrive
            earlier. Replies beyond this number are returned first by the next exchange.
        progress : callable, optional
            Called now and then, several times a second, with the number of replies so far.

        Returns
        -------
        list of bytes
            `replies` packets of whole link words.

        Raises
        ------
        TimeoutError
            If no word moves for `idle_clocks` clocks.
        ValueError
            If a packet is empty.
        SimulationError
            If the transport is closed.

        Notes
        -----
        An exchange that ends with an exception, Ctrl-C included, resets the accelerator.
        """
        data, ends = self._pack(commands)
        total, sent = len(ends), 0
        if total == 0 and len(self._replies) >= replies:
            self.clocks = 0
            return [self._replies.popleft() for _ in range(replies)]
        try:
            with contextlib.closing(self._run(data, ends, replies - len(self._replies))) as slices:
                while True:
                    start = time.perf_counter()
                    piece = next(slices, None)
                    self.seconds += time.perf_counter() - start
                    if piece is None:
                        break
                    sent, self.clocks = piece.sent, piece.clocks
                    self._collect(piece)
                    if progress is not None:
                        progress(min(len(self._replies), replies))
                    if piece.idle >= self.idle_clocks:
                        raise TimeoutError(
                            f"no word moved for {piece.idle} clocks: {sent} of {total} command "
                            f"words sent, {len(self._replies)} of {replies} replies received"
                        )
        except BaseException:
            with contextlib.suppress(SimulationError):  # closed: that is what is being raised
                self.reset()
            raise
        return [self._replies.popleft() for _ in range(replies)]

    def reset(self) -> None:
        """Reset the accelerator and forget replies that were not asked for."""
        self._replies.clear()
        self._partial = b""
        self._reset()

    def close(self) -> None:
        """Release what the simulation holds; closing twice does nothing."""
        return

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abc.abstractmethod
    def _run(self, data: bytes, ends: bytes, replies: int) -> Generator[Slice, None, None]:
        """Simulate until all words are sent and `replies` packets have arrived.

        Yields at least several times a second, and when `idle_clocks` have passed without a word.
        """

    @abc.abstractmethod
    def _reset(self) -> None: ...

    def _pack(self, commands: Sequence[bytes]) -> tuple[bytes, bytes]:
        """The words of packets, and a flag for each whether it ends one."""
        data, ends = bytearray(), bytearray()
        for number, packet in enumerate(commands):
            if not packet:
                raise ValueError(f"packet {number} is empty")
            data += packet
            data += bytes(-len(packet) % self.link_bytes)
            ends += bytes(len(data) // self.link_bytes - len(ends) - 1)
            ends.append(1)
        return bytes(data), bytes(ends)

    def _collect(self, piece: Slice) -> None:
        data, start = self._partial + piece.data, 0
        offset = len(self._partial)
        word = piece.ends.find(1)
        while word >= 0:
            stop = offset + (word + 1) * self.link_bytes
            self._replies.append(data[start:stop])
            start = stop
            word = piece.ends.find(1, word + 1)
        self._partial = data[start:]
