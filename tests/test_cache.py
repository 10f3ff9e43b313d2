import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from celosia_hw.config import AcceleratorConfig
from celosia_sim import cache, export

# Appends its process id to the file "log" whenever it builds; dies while building if told to.
BUILDER = """
import os, sys, time
from pathlib import Path
from celosia_sim import cache

def build(path):
    with open(sys.argv[1], "a") as log:
        log.write("built\\n")
    path.write_text("half")
    if sys.argv[2] == "die":
        os._exit(1)
    time.sleep(0.5)
    path.write_text("whole")

print(cache.cached("verilog-test.v", build).read_text())
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("CELOSIA_CACHE_DIR", str(folder))
    return folder


def writing(text: str) -> Callable[[Path], None]:
    def build(path: Path) -> None:
        path.write_text(text)

    return build


def builder(log: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILDER, str(log), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_location_follows_the_environment(monkeypatch):
    monkeypatch.setenv("CELOSIA_CACHE_DIR", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    monkeypatch.setenv("HOME", "/c")
    assert cache.location() == Path("/a")
    monkeypatch.delenv("CELOSIA_CACHE_DIR")
    assert cache.location() == Path("/b/celosia")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.location() == Path("/c/.cache/celosia")


def test_a_file_is_built_once(folder):
    assert cache.entries() == []
    for text in ("first", "second"):
        path = cache.cached("verilog-test.v", writing(text))
        assert path == folder / "verilog-test.v"
        assert path.read_text() == "first"


def test_a_failed_build_leaves_nothing(folder):
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cache.cached("verilog-test.v", fail)
    assert cache.entries() == []
    assert not list(folder.glob("*.partial"))


def test_entries_and_clear(folder):
    cache.cached("verilog-test.v", writing("12345"))
    cache.cached("simulation-test.so", writing("123"))
    os.utime(folder / "verilog-test.v", (0, 0))
    (folder / "diary.txt").write_text("not ours")
    assert [(entry.name, entry.size) for entry in cache.entries()] == [
        ("simulation-test.so", 3),
        ("verilog-test.v", 5),
    ]
    assert cache.entries()[1].modified.year in (1969, 1970)
    assert cache.clear() == 8
    assert cache.clear() == 0
    assert [path.name for path in folder.iterdir()] == ["diary.txt"]


def test_two_processes_build_once(folder, tmp_path):
    log = tmp_path / "log"
    processes = [builder(log, "live") for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["whole\n"] * 2
    assert log.read_text() == "built\n"


def test_a_process_that_died_does_not_block(folder, tmp_path):
    log = tmp_path / "log"
    assert builder(log, "die").wait() == 1
    assert builder(log, "live").communicate()[0] == "whole\n"
    assert log.read_text() == "built\nbuilt\n"


def test_waiting_is_reported(folder, tmp_path):
    log = tmp_path / "log"
    messages: list[str] = []
    with builder(log, "live") as process:
        while not log.exists():
            assert process.poll() is None
            time.sleep(0.01)
        cache.cached("verilog-test.v", lambda path: None, messages.append)
    assert messages == ["waiting for another process that builds the same"]


def test_an_unwritable_cache_falls_back_with_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CELOSIA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(UserWarning, match=r"cannot write the cache .*file/cache"):
        path = cache.cached("verilog-test.v", writing("text"))
    assert path.read_text() == "text"
    assert cache.entries() == []
    assert cache.clear() == 0


def test_digest_separates_its_parts():
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
    assert cache.digest("ab") == cache.digest(b"ab")


def test_verilog_is_exported_once_per_configuration(folder, monkeypatch):
    exported: list[AcceleratorConfig] = []

    class Gateware:
        @staticmethod
        def export(config: AcceleratorConfig) -> str:
            exported.append(config)
            return f"// {len(exported)}"

    import celosia_hw

    monkeypatch.setattr(celosia_hw, "verilog", Gateware, raising=False)
    monkeypatch.setitem(sys.modules, "celosia_hw.verilog", Gateware)
    wide, narrow = AcceleratorConfig(), AcceleratorConfig(key_rows=8)
    messages: list[str] = []
    assert export.accelerator_verilog(wide, messages.append) == "// 1"
    assert export.accelerator_verilog(narrow) == "// 2"
    assert export.accelerator_verilog(wide, messages.append) == "// 1"
    assert exported == [wide, narrow]
    assert messages == ["building the simulation of 16x16: Amaranth"]
