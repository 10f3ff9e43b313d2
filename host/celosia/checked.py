"""A device whose results are compared with the integer model's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .device import Device, RunReport, Transport, open_device
from .program import Program

__all__ = ["CheckedDevice"]


class CheckedDevice(Device):
    """A device that runs everything on the integer model as well, and counts what differs.

    Parameters
    ----------
    transport : Transport
        Of the device that is checked.
    progress : callable, optional
        As of `Device`.

    Attributes
    ----------
    compared, mismatches : int
        Integers that both computed (int16 results of attention, int32 products), and those, and
        spilled states, that were not the same.
    """

    def __init__(
        self, transport: Transport, *, progress: Callable[[int, int], None] | None = None
    ) -> None:
        super().__init__(transport, progress=progress)
        self._model = open_device("model", config=self.config)
        self.compared = self.mismatches = 0

    def run(self, program: Program, result: npt.NDArray) -> RunReport:
        """As `Device.run`, and compare; `result` is that of the device."""
        expected = result.copy()
        report = super().run(program, result)
        states = dict(program.states)
        self._model.run(program, expected)
        self.mismatches += int(np.count_nonzero(result != expected))
        self.mismatches += sum(states[key] != state for key, state in program.states.items())
        # What goes on from here goes on from the device's own states.
        program.states.update(states)
        if any(tile.state is None for tile in program.tiles):
            self.compared += result.size
        return report

    def __enter__(self) -> CheckedDevice:
        super().__enter__()
        return self

    def close(self) -> None:
        """Let go of both."""
        super().close()
        if hasattr(self, "_model"):
            self._model.close()
