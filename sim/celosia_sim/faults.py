"""What can go wrong between a host and a board."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from .board import SimulatedBoard
from .virtual_board import Line

__all__ = ["BYTE_FAULTS", "FAULTS", "FaultyLine"]

_MOST_DELAYED = 0.4  # seconds


def _flip(data: bytes, dice: random.Random) -> bytes:
    return bytes([data[0] ^ (1 << dice.randrange(8))]) + data[1:]


def _drop(data: bytes, dice: random.Random) -> bytes:
    return data[dice.randint(1, 3) :]


def _duplicate(data: bytes, dice: random.Random) -> bytes:
    return data[: dice.randint(1, 40)] + data


def _insert(data: bytes, dice: random.Random) -> bytes:
    return dice.randbytes(dice.randint(1, 3)) + data


def _burst(data: bytes, dice: random.Random) -> bytes:
    """Garbage, and what was sent meanwhile is lost."""
    size = dice.randint(8, 300)
    garbage = dice.choice([dice.randbytes(size), bytes(size), b"\xff" * size])
    return garbage + data[size:]


BYTE_FAULTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "flip": _flip,
    "drop": _drop,
    "duplicate": _duplicate,
    "insert": _insert,
    "burst": _burst,
}
"""Kinds of faults in the bytes of a line."""

FAULTS = (*BYTE_FAULTS, "delay", "reset", "break")
"""All that may happen between a host and a board."""


class _Direction:
    """One way of the line."""

    def __init__(self, faults: FaultyLine) -> None:
        self._faults = faults
        self._held = b""
        self._held_until = 0.0

    def carry(self, data: bytes) -> bytes:
        data = self._held + data
        self._held = b""
        if time.monotonic() < self._held_until:
            self._held = data
            return b""
        result = b""
        while data and self._faults.enabled:
            sound = min(self._faults.next_fault, len(data))
            result += data[:sound]
            data = data[sound:]
            self._faults.next_fault -= sound
            if not data:
                break
            kind = self._faults.happen()
            if kind in BYTE_FAULTS:
                data = BYTE_FAULTS[kind](data, self._faults.dice)
            elif kind == "delay":
                seconds = self._faults.dice.uniform(0, _MOST_DELAYED)
                self._held, self._held_until = data, time.monotonic() + seconds
                return result
        return result + data


class FaultyLine(Line):
    """A line on which things go wrong, at random bytes.

    Parameters
    ----------
    kinds : sequence of str
        Of `FAULTS`.
    distance : float
        Bytes from one fault to the next, on average, in both directions together.
    seed : int

    Attributes
    ----------
    enabled : bool
        Nothing goes wrong while it is not set.
    counts : dict
        Faults so far, by kind.
    """

    def __init__(self, kinds: tuple[str, ...], distance: float, seed: int) -> None:
        if not kinds or not set(kinds) <= set(FAULTS):
            raise ValueError(f"kinds must be some of {', '.join(FAULTS)}, not {kinds!r}")
        if not distance >= 1:
            raise ValueError(f"distance must be at least 1, not {distance}")
        self.dice = random.Random(seed)
        self._kinds, self._distance = kinds, distance
        self.counts = dict.fromkeys(kinds, 0)
        self.enabled = True
        self.next_fault = self._gap()
        self._pending = ""
        self._ways = _Direction(self), _Direction(self)

    def _gap(self) -> int:
        return 1 + int(self.dice.expovariate(1 / self._distance))

    def happen(self) -> str:
        """A fault happens now: its kind."""
        kind = self.dice.choice(self._kinds)
        self.counts[kind] += 1
        self.next_fault = self._gap()
        if kind not in BYTE_FAULTS:
            self._pending = kind
        return kind

    def to_board(self, data: bytes) -> bytes:
        """Bytes with faults."""
        return self._ways[0].carry(data)

    def to_host(self, data: bytes) -> bytes:
        """Bytes with faults."""
        return self._ways[1].carry(data)

    def step(self, board: SimulatedBoard) -> None:
        """Resets and breaks."""
        pending, self._pending = self._pending, ""
        if pending == "reset":
            board.reset()
        elif pending == "break":
            board.send_break()
