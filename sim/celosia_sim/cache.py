"""The folder of built simulations, shared by all processes of a user.

It is ``$CELOSIA_CACHE_DIR``, else ``$XDG_CACHE_HOME/celosia``, else ``~/.cache/celosia``. The
name of a file is its kind, a label and a hash of everything that it was made from, so that a file
is never outdated, only unused.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

__all__ = ["Entry", "cached", "clear", "digest", "entries", "location"]

_KINDS = ("verilog-", "runtime-", "simulation-")
_AUXILIARY = (".lock", ".partial")


class Entry(NamedTuple):
    """A file of the cache."""

    name: str
    size: int
    """Bytes."""
    modified: datetime
    """Local time at which it was built."""


def location() -> Path:
    """The folder, which need not exist."""
    folder = os.environ.get("CELOSIA_CACHE_DIR")
    if folder:
        return Path(folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "celosia"


def digest(*parts: str | bytes) -> str:
    """A hash of texts for the name of a file: 20 hexadecimal digits."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:20]


def cached(
    name: str, build: Callable[[Path], None], progress: Callable[[str], None] | None = None
) -> Path:
    """The file `name` of the cache, built if it is absent.

    One process builds; others that want the same file wait for it. A process that dies while it
    builds releases its lock and leaves no file of that name.

    Parameters
    ----------
    name : str
        Starts with the kind, "verilog-", "runtime-" or "simulation-".
    build : callable
        Writes the file whose path it is given.
    progress : callable, optional
        Is told if this process has to wait.

    Returns
    -------
    Path
        In a temporary folder, with a warning, if the cache cannot be written.
    """
    assert name.startswith(_KINDS), name
    path = location() / name
    if _is_file(path):  # also in a folder that cannot be written
        return path
    path = _writable_folder() / name
    with _lock(path.with_name(name + ".lock"), progress):
        if not path.is_file():
            partial = path.with_name(f"{name}.{os.getpid()}.partial")
            try:
                build(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    return path


def entries() -> list[Entry]:
    """The files of the cache, the newest first."""
    found = []
    for path in _files():
        if path.suffix not in _AUXILIARY:
            with contextlib.suppress(FileNotFoundError):  # another process clears
                status = path.stat()
                modified = datetime.fromtimestamp(status.st_mtime)
                found.append(Entry(path.name, status.st_size, modified))
    return sorted(found, key=lambda entry: entry.modified, reverse=True)


def clear() -> int:
    """Delete the files of the cache, and nothing else in its folder.

    Returns
    -------
    int
        Bytes freed.

    Raises
    ------
    OSError
        If a file cannot be deleted.
    """
    freed = 0
    for path in _files():
        with contextlib.suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def _files() -> list[Path]:
    try:
        return [path for path in location().iterdir() if path.name.startswith(_KINDS)]
    except OSError:
        return []


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # no permission to look
        return False


def _writable_folder() -> Path:
    folder = location()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        warnings.warn(
            f"cannot write the cache {folder} ({error.strerror}): simulations are built anew in "
            "each process; set CELOSIA_CACHE_DIR to a folder that can be written",
            stacklevel=2,
        )
        return Path(_temporary_folder().name)
    return folder


@functools.cache
def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="celosia-")


@contextlib.contextmanager
def _lock(path: Path, progress: Callable[[str], None] | None) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress is not None:
                progress("waiting for another process that builds the same")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: at worst the same work is done twice
        yield
