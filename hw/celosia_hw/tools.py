"""Runs synthesis, placement and timing tools, with progress."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["ToolError", "find_tool", "run_tool"]

_TAIL = 200


class ToolError(RuntimeError):
    """A tool that is missing or failed; the message says how to get it, or what it said."""


def find_tool(name: str, package: str) -> str:
    """The path of a tool, from this Python's environment or PATH.

    Parameters
    ----------
    name : str
    package : str
        How to install it, for the message.

    Raises
    ------
    ToolError
        If it is missing.
    """
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ToolError(f"{name} is missing: {package}")
    return found


def run_tool(
    command: Sequence[str],
    folder: Path,
    progress: Callable[[str], None] | None = None,
) -> str:
    """Run a tool in a folder; YoWASP tools see only files below it.

    Parameters
    ----------
    command : sequence of str
        The first is from `find_tool`.
    progress : callable, optional
        Is told what the tool says, line by line.

    Returns
    -------
    str
        What it said.

    Raises
    ------
    ToolError
        If it fails.
    """
    name = Path(command[0]).name
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Compiled once and kept by YoWASP, which says so each time otherwise.
        env={**os.environ, "YOWASP_SILENT": "1"},
    )
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if progress is not None and line.strip():
                progress(f"{name}: {line.strip()[:_TAIL]}")
    except BaseException:
        process.kill()
        raise
    finally:
        process.stdout.close()
        status = process.wait()
    if status:
        errors = [line for line in lines if "error" in line.lower()] or lines[-1:] or [str(status)]
        raise ToolError(f"{name} failed: {errors[0].strip()}")
    return "".join(lines)
