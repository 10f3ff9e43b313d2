"""Errors of the simulation."""

__all__ = ["SimulationError"]


class SimulationError(RuntimeError):
    """A simulation that cannot be built or run; the message says what to install or do."""
