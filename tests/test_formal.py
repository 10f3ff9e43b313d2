"""Formal proofs (`formal`): each must hold for the gateware and fail for broken variants of it."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from formal.prover import PROPERTIES, Property, run

PROOFS = Path(__file__).parent / "formal"
for path in sorted(PROOFS.glob("prove_*.py")):
    importlib.import_module(f"formal.{path.stem}")

pytestmark = [
    pytest.mark.formal,
    # `AxiStreamAccelerator` brings its own clock domain, which the proof around it uses.
    pytest.mark.filterwarnings("ignore:Domain 'sync' is used:DeprecationWarning"),
]


@pytest.mark.parametrize("one", PROPERTIES, ids=lambda one: one.name)
def test_holds(one: Property, tmp_path: Path) -> None:
    status, failed, log = run(one, None, tmp_path)
    assert (status, failed) == ("PASS", []), log


@pytest.mark.parametrize(
    ("one", "variant"),
    [pytest.param(one, name, id=f"{one.name}-{name}") for one in PROPERTIES for name in one.broken],
)
def test_fails_for_a_broken_one(one: Property, variant: str, tmp_path: Path) -> None:
    """The property says something: a counterexample of a claim is found, starting from reset."""
    status, failed, log = run(one, variant, tmp_path)
    assert status == "FAIL", log
    assert failed, log
    assert all(place.startswith(str(PROOFS)) for place in failed), log
