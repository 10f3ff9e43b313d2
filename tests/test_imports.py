"""The driver in an environment of NumPy alone."""

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

import celosia
import celosia_hw
import celosia_sim


def run(python, code):
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "module",
    [
        *("celosia", "celosia.cli", "celosia.serial_transport", "celosia_hw.config"),
        *("celosia_hw.arithmetic", "celosia_hw.protocol", "celosia_hw.link_protocol"),
    ],
)
def test_import_is_light(module):
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = set(run(sys.executable, code).split())
    assert not loaded & {"amaranth", "torch", "serial", "celosia_sim", "cocotb"}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python of a virtual environment that has NumPy and this distribution, and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    numpy = Path(np.__file__).parent
    for source in (numpy, numpy.with_name("numpy.libs")):
        if source.exists():
            (packages / source.name).symlink_to(source)
    for package in (celosia, celosia_hw, celosia_sim):
        source = Path(str(package.__file__)).parent
        (packages / source.name).symlink_to(source)
    # The version comes from the distribution's metadata.
    info = packages / "celosia-0.dist-info"
    info.mkdir()
    version = importlib.metadata.version("celosia")
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: celosia\nVersion: {version}\n")
    return folder / "bin" / "python"


def test_numpy_alone_runs_attention(python):
    code = """
import importlib.util, numpy, celosia
assert not any(map(importlib.util.find_spec, ("torch", "amaranth", "serial", "pytest")))
x = numpy.random.default_rng(0).normal(size=(2, 5, 8))
print(celosia.__version__, celosia.run_attention(x, x, x, device="model:tiny").shape)
"""
    assert run(python, code) == f"{celosia.__version__} (2, 5, 8)\n"


@pytest.mark.parametrize("device", ["sim:tiny", "pysim:tiny"])
def test_a_missing_extra_is_named(python, device):
    code = f"import sys, celosia.cli; sys.exit(celosia.cli.main(['run', '--device', '{device}']))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert 'pip install "celosia[sim]"' in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (["run", "--device", "serial:/dev/ttyUSB0"], "serial"),
        (["devices"], "serial"),
        (["devices", "/dev/ttyUSB0"], "serial"),
        (["board-sim", "tiny"], "sim"),
    ],
)
def test_what_a_board_needs_is_named(python, arguments, extra):
    code = f"import sys, celosia.cli; sys.exit(celosia.cli.main({arguments}))"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert f'pip install "celosia[{extra}]"' in done.stderr.splitlines()[-1]


def test_numpy_alone_runs_the_command(python):
    code = """
import sys, celosia.cli
sys.exit(celosia.cli.main(["run", "--device", "model:small"]))
"""
    assert "float32 NumPy" in run(python, code)
