"""What several commands use."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from celosia_hw.config import PRESETS

__all__ = [
    "InputError",
    "Parser",
    "Progress",
    "add_config",
    "count",
    "guarded",
    "import_extra",
    "natural",
    "to_json",
    "write_output",
]


class InputError(ValueError):
    """Input that cannot be run."""


class Parser(argparse.ArgumentParser):
    """Reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"celosia: error: {message}\n")


def guarded(command: Callable[[], int]) -> int:
    """Exit status of a command; an error is told in one line."""
    try:
        return command()
    except (ImportError, MemoryError, OSError, RuntimeError, TypeError, ValueError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"celosia: error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def import_extra(module: str, extra: str) -> Any:
    """A module of ours that needs what an extra installs.

    Raises
    ------
    InputError
        If a package is missing; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("celosia"):
            raise
        raise InputError(
            f'the package {error.name} is missing: pip install "celosia[{extra}]"'
        ) from None


class Progress:
    """One line that changes; in a log file, a line now and then.

    In a ``with`` block the line is removed at the end.

    Parameters
    ----------
    stream : file, optional
        Standard error if absent.
    """

    INTERVAL = 5.0

    def __init__(self, stream: IO[str] | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._printed = -math.inf

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.clear()

    def __call__(self, message: str) -> None:
        if self._terminal:
            self._stream.write(f"\r\x1b[K{message}")
        elif not message.endswith("query tiles"):
            self._stream.write(f"{message}\n")
        elif time.monotonic() - self._printed >= self.INTERVAL:
            self._printed = time.monotonic()
            self._stream.write(f"{message}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Remove the line."""
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()


def add_config(parser: argparse.ArgumentParser, absent: str | None = "default") -> None:
    """Add the option that names a configuration, for `celosia_hw.config.load`.

    Parameters
    ----------
    absent : str or None
        Its value if it is not given; None if that depends on a board.
    """
    otherwise = "default, for a board its own" if absent is None else absent
    parser.add_argument(
        "--config",
        metavar="NAME",
        default=absent,
        help=f"{', '.join(PRESETS)}, or a .json file of parameters ({otherwise})",
    )


def count(text: str) -> int:
    """Type of arguments: an integer of at least 1."""
    return _at_least(text, 1)


def natural(text: str) -> int:
    """Type of arguments: an integer of at least 0."""
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}, not {number}")
    return number


def to_json(result: Any) -> str:
    """One line of JSON, with null for the infinities and NaN that it does not have."""
    return json.dumps(_jsonable(result))


def _jsonable(x: Any) -> Any:
    if isinstance(x, list):
        return [_jsonable(value) for value in x]
    if isinstance(x, dict):
        return {key: _jsonable(value) for key, value in x.items()}
    return None if isinstance(x, float) and not math.isfinite(x) else x


def write_output(path: str, output: npt.NDArray[np.float32]) -> None:
    """Write a result as ``--output`` says."""
    with Path(path).open("wb") as file:
        np.savez(file, output=output)
