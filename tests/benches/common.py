"""What the benches share: waveforms in and out of a component, streams, and their rules.

All signals are driven, and all are looked at, in the second half of a clock, before its rising
edge: what is seen there is what that edge takes. Simulators that disagree about the order of
events at the edge give the same results.
"""

from __future__ import annotations

import json
import os
import random
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import cocotb
import numpy as np
import numpy.typing as npt
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly, Timer

from celosia_hw.config import AcceleratorConfig

__all__ = [
    "StreamMonitor",
    "StreamSink",
    "StreamSource",
    "bench",
    "configuration",
    "generator",
    "join",
    "play",
    "port",
    "restart",
    "split",
    "start",
]

CLOCK_NS = 10
SETTLE_CLOCKS = 40
RESET_CLOCKS = 3


def bench(clocks: int = 200_000) -> Callable[..., Any]:
    """A cocotb test that fails after so many clocks."""
    return cocotb.test(timeout_time=clocks * CLOCK_NS, timeout_unit="ns")


def configuration() -> AcceleratorConfig:
    """The configuration of the testbed that is simulated."""
    return AcceleratorConfig(**json.loads(os.environ["CELOSIA_BENCH_CONFIG"]))


def generator(name: str) -> np.random.Generator:
    """Random numbers of one test; their seed is logged."""
    seed = [cocotb.RANDOM_SEED, zlib.crc32(name.encode())]
    cocotb.log.info("%s: random numbers from seed %s", name, seed)
    return np.random.default_rng(seed)


def port(dut: Any, component: str, name: str) -> Any:
    """The handle of a component's port."""
    return getattr(dut, f"{component}__{name}")


async def start(dut: Any, component: str, inputs: Iterable[str]) -> None:
    """Start a component's clock with random inputs, set them to zero, and reset it.

    The noise leaves no part of the design at its initial state: the reset must do that. And
    Icarus leaves an ``always @*`` unknown until one of its inputs has changed.
    """
    noise = random.Random(component)
    clock = getattr(dut, f"{component}_clk")
    handles = [port(dut, component, name) for name in inputs]
    clock.value = getattr(dut, f"{component}_rst").value = 0
    for handle in handles:
        handle.value = noise.getrandbits(len(handle))
    await Timer(CLOCK_NS, unit="ns")  # no edge may see an input that was never driven
    Clock(clock, CLOCK_NS, unit="ns").start(start_high=False)
    for number in range(2 * SETTLE_CLOCKS):
        for handle in handles:
            handle.value = noise.getrandbits(len(handle)) if number < SETTLE_CLOCKS else 0
        await FallingEdge(clock)
    await restart(dut, component)


async def restart(dut: Any, component: str) -> None:
    """Reset a component; on return its first clock is in its second half."""
    clock, reset = (getattr(dut, f"{component}_{name}") for name in ("clk", "rst"))
    reset.value = 1
    for _ in range(RESET_CLOCKS):
        await FallingEdge(clock)
    reset.value = 0


async def play(
    dut: Any,
    component: str,
    inputs: Mapping[str, Sequence[int]],
    outputs: Sequence[str],
    clocks: int | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Reset a component and record its outputs while its inputs follow given waveforms.

    Parameters
    ----------
    inputs : mapping
        Unsigned value of each of the component's inputs in each clock; zero after its end.
    outputs : sequence of str
    clocks : int, optional
        As many as the longest waveform if absent.

    Returns
    -------
    dict of arrays
        Unsigned value of each output in each clock, beside the inputs of that clock: Python
        integers of any width. The runner has unknown bits read as random ones.
    """
    clocks = clocks or max(len(values) for values in inputs.values())
    await start(dut, component, inputs)
    clock = getattr(dut, f"{component}_clk")
    handles = [port(dut, component, name) for name in outputs]
    records: list[list[int]] = [[] for _ in outputs]
    changes = _changes(dut, component, inputs)
    for number in range(clocks):
        for handle, value in changes.get(number, ()):
            handle.value = value
        await ReadOnly()
        for handle, record in zip(handles, records, strict=True):
            record.append(int(handle.value))
        await FallingEdge(clock)
    return {name: np.array(r, object) for name, r in zip(outputs, records, strict=True)}


def _changes(
    dut: Any, component: str, inputs: Mapping[str, Sequence[int]]
) -> dict[int, list[tuple[Any, int]]]:
    """The assignments due in each clock."""
    changes: dict[int, list[tuple[Any, int]]] = {}
    for name, values in inputs.items():
        handle, before = port(dut, component, name), 0
        for number, value in enumerate(map(int, values)):
            if value != before:
                changes.setdefault(number, []).append((handle, value))
            before = value
        if before:
            changes.setdefault(len(values), []).append((handle, 0))
    return changes


def join(values: Iterable[int], bits: int) -> int:
    """The unsigned value of an array of elements of `bits` bits, signed or not."""
    total = 0
    for place, value in enumerate(values):
        total |= (int(value) & ((1 << bits) - 1)) << (place * bits)
    return total


def split(value: Any, bits: int, count: int, *, signed: bool = False) -> list[int]:
    """The elements of an array."""
    elements = [(value >> (place * bits)) & ((1 << bits) - 1) for place in range(count)]
    return [e - (1 << bits) if signed and e >> (bits - 1) else e for e in elements]


class _Stream:
    def __init__(self, dut: Any, component: str, name: str) -> None:
        self.clock = getattr(dut, f"{component}_clk")
        self.reset = getattr(dut, f"{component}_rst")
        self.payload, self.valid, self.ready = (
            port(dut, component, f"{name}__{part}") for part in ("payload", "valid", "ready")
        )


class StreamSource(_Stream):
    """Sends words, with random idle clocks before each."""

    async def send(self, words: Iterable[int], rng: np.random.Generator, idle: float = 0.0) -> None:
        """Return in the clock after the one that accepts the last word.

        Parameters
        ----------
        idle : float
            Probability of an idle clock.
        """
        for word in words:
            while idle and rng.random() < idle:
                await FallingEdge(self.clock)
            self.valid.value = 1
            self.payload.value = word
            await ReadOnly()
            while not self.ready.value:
                await FallingEdge(self.clock)
                await ReadOnly()
            await FallingEdge(self.clock)
            self.valid.value = 0


class StreamSink(_Stream):
    """Takes words as its pattern of readiness allows.

    Attributes
    ----------
    words : list of int
        Accepted so far.
    clocks : list of int
        The clock of each, from the sink's first.
    stall : float
        Probability with which a clock is not ready.
    shy : bool
        Whether to be ready only after a word has been offered.
    """

    def __init__(self, dut: Any, component: str, name: str) -> None:
        super().__init__(dut, component, name)
        self.words: list[int] = []
        self.clocks: list[int] = []
        self.stall, self.shy = 0.0, False

    async def run(self, rng: np.random.Generator) -> None:
        """Run until cancelled."""
        clock, offered = 0, False
        while True:
            busy = self.stall > 0 and rng.random() < self.stall
            ready = not busy and (offered or not self.shy)
            self.ready.value = int(ready)
            await ReadOnly()
            offered = bool(self.valid.value) and not ready
            if ready and self.valid.value and not self.reset.value:
                self.words.append(int(self.payload.value))
                self.clocks.append(clock)
            await FallingEdge(self.clock)
            clock += 1


class StreamMonitor(_Stream):
    """Fails the test if a word that was offered is withdrawn or changes before it is accepted."""

    def __init__(self, dut: Any, component: str, name: str) -> None:
        super().__init__(dut, component, name)
        self._name = f"{component}.{name}"
        self.offers = 0
        """Words that had to wait."""

    async def run(self) -> None:
        """Run until cancelled."""
        offered: int | None = None
        while True:
            await ReadOnly()
            if self.reset.value:
                offered = None
            else:
                valid = bool(self.valid.value)
                payload = int(self.payload.value) if valid else None
                if offered is not None:
                    assert valid, f"{self._name}: valid dropped before the word was accepted"
                    assert payload == offered, f"{self._name}: the payload changed while waiting"
                offered = payload if valid and not self.ready.value else None
                self.offers += offered is not None
            await FallingEdge(self.clock)
