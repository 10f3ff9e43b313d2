"""``python -m celosia.accuracy``."""

import subprocess
import sys

import numpy as np
import pytest

from celosia import AttentionOptions
from celosia.accuracy import STEPS, accuracy_table, format_table


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "small.npz"
    query, key, value = (rng.normal(size=(heads, 40, 16)) for heads in (2, 1, 1))
    np.savez(path, query=query, key=key, value=value, is_causal=True)
    return path


def run(*arguments):
    command = [sys.executable, "-m", "celosia.accuracy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_table(file):
    rows = accuracy_table([file])
    assert [row["step"] for row in rows] == list(STEPS)
    assert {row["file"] for row in rows} == {"small"}
    figures = {row["step"]: row["sqnr_db"] for row in rows}
    (default,) = (
        name for name in STEPS if name.startswith("+") and STEPS[name] == AttentionOptions()
    )
    assert figures[default] > figures["one scale per head"] + 3
    for row in rows:
        assert row["sqnr_db"] == pytest.approx(row["ideal_sqnr_db"], abs=0.3)
    lines = format_table(rows).splitlines()
    assert lines[0] == "|  | small |"
    assert len(lines) == len(STEPS) + 2
    result = run(file)
    assert (result.returncode, result.stdout) == (0, format_table(rows) + "\n")
    assert "small: + smooth_keys" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "FILE.npz"),
        (["missing.npz"], "missing.npz"),
        ([__file__], "is no .npz file"),
        (["--unknown"], "FILE.npz"),
    ],
)
def test_errors_are_one_line(arguments, message):
    result = run(*arguments)
    assert result.returncode == 2
    assert not result.stdout
    assert result.stderr.splitlines()[-1].startswith("celosia: error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
