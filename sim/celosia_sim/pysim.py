"""Cycle-accurate simulation in Amaranth's own simulator: slow, but needs no compiler."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from celosia_hw.config import AcceleratorConfig

from .errors import SimulationError
from .transport import Slice, StreamTransport, patience

if TYPE_CHECKING:
    from amaranth.sim import Simulator, SimulatorContext

__all__ = ["ComponentTransport", "PysimTransport"]

_SLICE_SECONDS = 0.1


class ComponentTransport(StreamTransport):
    """A transport to any Amaranth component with the ports of an accelerator.

    Parameters
    ----------
    component : amaranth.lib.wiring.Component
        With the streams ``command`` (in) and ``result`` (out), whose payloads have a bit more
        than the word, which is ``last``.
    idle_clocks : int
        Clocks without a word in either direction after which an exchange is given up.

    Notes
    -----
    `reset` returns to power-on and clears memories too.

    Raises
    ------
    SimulationError
        If Amaranth is missing.
    """

    def __init__(self, component: Any, *, idle_clocks: int = 20_000) -> None:
        hdl, _ = _amaranth()
        self._command_payload = hdl.Value.cast(component.command.payload)
        self._result_payload = hdl.Value.cast(component.result.payload)
        super().__init__((len(self._command_payload) - 1) // 8, idle_clocks)
        self._component: Any = component
        self._simulator: Simulator | None = None
        self._reset()

    def close(self) -> None:
        """Drop the simulation; closing twice does nothing."""
        self._simulator = self._component = None

    def _clear(self) -> None:
        self._words: list[int] = []
        self._sent = self._wanted = self._idle = 0
        self._received: list[int] = []
        self._first_command = self._last_command = self._last_result = 0

    def _reset(self) -> None:
        if self._component is None:
            raise SimulationError("the simulation is closed")
        self._clear()
        self._simulator = None

    async def _drive(self, ctx: SimulatorContext) -> None:
        """Moves words; takes its orders from the attributes that `_run` sets."""
        command, result = self._component.command, self._component.result
        end = 1 << (8 * self.link_bytes)
        ctx.set(result.ready, 1)
        while True:
            valid = self._sent < len(self._words)
            ctx.set(command.valid, valid)
            if valid:
                ctx.set(self._command_payload, self._words[self._sent])
            sample = ctx.tick().sample(command.ready, result.valid, self._result_payload)
            _, _, ready, result_valid, word = await sample
            sending = valid and ready
            if sending:
                if not self._sent:
                    self._first_command = self.total_clocks
                self._last_command = self.total_clocks
                self._sent += 1
            if result_valid:
                self._received.append(word)
                self._last_result = self.total_clocks
                if word & end:
                    self._wanted -= 1
            self._idle = 0 if sending or result_valid else self._idle + 1
            self.total_clocks += 1

    def _run(self, data: bytes, ends: bytes, replies: int) -> Generator[Slice, None, None]:
        if self._component is None:
            raise SimulationError("the simulation is closed")
        simulator = self._simulator
        if simulator is None:
            simulator = _amaranth()[1].Simulator(self._component)
            simulator.add_clock(1e-8)
            simulator.add_testbench(self._drive)
            self._simulator = simulator
        size = self.link_bytes
        self._clear()
        self._words = [
            int.from_bytes(data[size * i : size * (i + 1)], "little") | last << (8 * size)
            for i, last in enumerate(ends)
        ]
        self._wanted = replies
        while self._busy():
            deadline = time.perf_counter() + _SLICE_SECONDS
            while self._busy() and self._idle < self.idle_clocks:
                simulator.advance()
                if time.perf_counter() > deadline:
                    break
            words = [word.to_bytes(size + 1, "little") for word in self._received]
            self._received.clear()
            last = self._last_result if replies > 0 else self._last_command
            yield Slice(
                b"".join(word[:size] for word in words),
                bytes(word[size] for word in words),
                self._sent,
                self._idle,
                max(last - self._first_command + 1, 0) if self._sent else 0,
            )

    def _busy(self) -> bool:
        return self._sent < len(self._words) or self._wanted > 0


class PysimTransport(ComponentTransport):
    """A transport to an accelerator in Amaranth's simulator.

    Parameters
    ----------
    config : AcceleratorConfig
    idle_clocks : int, optional
        Clocks without a word after which an exchange is given up; by default more than twice what
        the longest computation takes.

    Raises
    ------
    SimulationError
        If Amaranth is missing.
    """

    def __init__(self, config: AcceleratorConfig, *, idle_clocks: int | None = None) -> None:
        _amaranth()
        from celosia_hw.accelerator import Accelerator

        idle_clocks = patience(config) if idle_clocks is None else idle_clocks
        super().__init__(Accelerator(config), idle_clocks=idle_clocks)


def _amaranth() -> tuple[Any, Any]:
    try:
        from amaranth import hdl, sim
    except ModuleNotFoundError as error:
        raise SimulationError(
            f'the package {error.name} is missing: pip install "celosia[sim]"'
        ) from None
    return hdl, sim
