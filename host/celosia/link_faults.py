"""Runs over a serial line on which things go wrong: ``python -m celosia.link_faults --runs 1000``.

Each run computes an attention on a virtual board with faults of some kinds. It may end with the
integer model's result or with a `DeviceError`; a wrong result, another exception, or a run that
takes longer than its limit is a failure. Afterwards the line is sound again, and opening the board
anew must give a right result.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from celosia_hw.config import AcceleratorConfig, preset
from celosia_hw.link_protocol import LinkConfig

from .attention import run_attention
from .commands.common import Parser, Progress, count, guarded, natural
from .device import Device, DeviceError
from .serial_transport import DEFAULT_BAUD, SerialTransport
from .text import markdown

if TYPE_CHECKING:
    from celosia_sim.board import SimulatedBoard

__all__ = ["FAILURES", "SCENARIOS", "Outcome", "run_faults", "summary"]

CONFIG: AcceleratorConfig = preset("tiny")
LINK = LinkConfig(frames=4, frame_bytes=128, retry_characters=1024)
"""Small frames, so that many are on their way in a short run."""
TIMEOUT = 3.0
"""Seconds without progress after which the driver gives up."""
LIMIT = 30.0
"""Seconds that a run may take: several timeouts, since each restarts on progress."""

_BYTES = ("flip", "drop", "duplicate", "insert", "burst")
SCENARIOS: dict[str, tuple[tuple[str, ...], float]] = {
    **{kind: ((kind,), 300.0) for kind in _BYTES},
    "delay": (("delay",), 500.0),
    "reset": (("reset",), 700.0),
    "break": (("break",), 700.0),
    "all": ((*_BYTES, "delay", "reset", "break"), 400.0),
    "storm": (_BYTES, 80.0),
    "kill": (_BYTES, 2000.0),
}
"""Kinds of faults and their mean distance in bytes. ``kill`` kills the process of the host."""
FAILURES = ("wrong", "hang", "raised")
"""Results that must not be: a wrong one, one too late, and another exception than `DeviceError`."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    seed : int
    scenario : str
        Of `SCENARIOS`.
    result : str
        "right", the name of a `DeviceError`, "killed", or one of `FAILURES`.
    is_usable : bool
        Whether the board gave a right result when it was opened anew.
    seconds : float
        Of the run without that.
    faults : int
        That happened.
    repeated : int
        Frames that the host sent again.
    """

    seed: int
    scenario: str
    result: str
    is_usable: bool
    seconds: float
    faults: int
    repeated: int

    @property
    def is_good(self) -> bool:
        """Whether all is as it must be."""
        return self.is_usable and self.result not in FAILURES


def run_faults(
    seeds: Sequence[int],
    scenarios: Sequence[str] = (),
    progress: Callable[[str], None] | None = None,
) -> Iterator[Outcome]:
    """Run with faults, on one virtual board.

    Parameters
    ----------
    seeds : sequence of int
        A run for each.
    scenarios : sequence of str
        Of `SCENARIOS`, in turn; all if empty.

    Yields
    ------
    Outcome
    """
    from celosia_sim.board import plain_board
    from celosia_sim.faults import FaultyLine
    from celosia_sim.virtual_board import Line, VirtualBoard

    class Switched(Line):
        """The line of the present run."""

        present: Line = Line()

        def to_board(self, data: bytes) -> bytes:
            return self.present.to_board(data)

        def to_host(self, data: bytes) -> bytes:
            return self.present.to_host(data)

        def step(self, board: SimulatedBoard) -> None:
            self.present.step(board)

    names = list(scenarios) or list(SCENARIOS)
    line = Switched()
    design = plain_board(CONFIG, LINK, progress=progress)
    with VirtualBoard(design, line, progress) as board:
        for seed in seeds:
            name = names[seed % len(names)]
            faulty = FaultyLine(*SCENARIOS[name], seed)
            tensors = _tensors(seed)
            expected = run_attention(*tensors, device="model:tiny")
            line.present = faulty
            start = time.monotonic()
            if name == "kill":
                result, repeated = _killed(board.path, seed), 0
            else:
                result, repeated = _attempt(board.path, tensors, expected)
            seconds = time.monotonic() - start
            if seconds > LIMIT:
                result = "hang"
            faulty.enabled = False
            again, _ = _attempt(board.path, tensors, expected)
            line.present = Line()
            faults = sum(faulty.counts.values()) + (name == "kill")
            yield Outcome(seed, name, result, again == "right", seconds, faults, repeated)


def summary(outcomes: Sequence[Outcome]) -> str:
    """A Markdown table of runs, by scenario."""
    head = ("scenario", "runs", "faults", "right", "error raised", "failed", "usable again")
    rows = []
    for name in [*SCENARIOS, ""]:
        some = [outcome for outcome in outcomes if name in ("", outcome.scenario)]
        if not some:
            continue
        right = sum(outcome.result == "right" for outcome in some)
        failed = sum(outcome.result in FAILURES for outcome in some)
        cells = (
            name or "all runs",
            len(some),
            sum(outcome.faults for outcome in some),
            right,
            len(some) - right - failed,
            failed,
            sum(outcome.is_usable for outcome in some),
            f"{max(outcome.seconds for outcome in some):.1f}",
        )
        rows.append(cells)
    return markdown([*head, "longest, s"], rows)


def _tensors(seed: int) -> tuple[npt.NDArray[np.float32], ...]:
    """Q, K and V of one head."""
    rng = np.random.default_rng(seed)
    queries, keys, dim = rng.integers(5, 30), rng.integers(5, 40), rng.integers(4, 10)
    return tuple(
        rng.normal(size=(1, length, dim)).astype(np.float32) for length in (queries, keys, keys)
    )


def _attempt(
    path: str, tensors: tuple[npt.NDArray[np.float32], ...], expected: npt.NDArray
) -> tuple[str, int]:
    """Open the board and run once: how it ended, and the frames sent again."""
    link = None
    try:
        transport = SerialTransport(path, DEFAULT_BAUD, timeout=TIMEOUT, open_timeout=TIMEOUT)
        link = transport.link
        with Device(transport) as device:
            output = run_attention(*tensors, device=device)
        result = "right" if np.array_equal(output, expected) else "wrong"
    except DeviceError as error:
        result = type(error).__name__
    except Exception:
        result = "raised"
    return result, link.frames_repeated if link is not None else 0


_HOST = """
import sys
from celosia import open_device, run_attention
from celosia.link_faults import _tensors
print("ready", flush=True)
while True:
    try:
        with open_device("serial:" + sys.argv[1]) as device:
            print("open", flush=True)
            while True:
                run_attention(*_tensors(int(sys.argv[2])), device=device)
    except RuntimeError:
        pass
"""


def _killed(path: str, seed: int) -> str:
    """A host in a process of its own, killed at some time."""
    dice = random.Random(seed)
    with subprocess.Popen(
        [sys.executable, "-c", _HOST, path, str(seed)], stdout=subprocess.PIPE
    ) as host:
        assert host.stdout is not None
        host.stdout.readline()
        time.sleep(dice.uniform(0, 0.5))
        host.kill()
    return "killed"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its status is 1 if anything failed."""
    parser = Parser(prog="python -m celosia.link_faults", description=__doc__, allow_abbrev=False)
    parser.add_argument("--runs", type=count, default=100, help="how many (100)")
    parser.add_argument("--first", type=natural, default=0, help="seed of the first (0)")
    arguments = parser.parse_args(argv)
    return guarded(lambda: _run(arguments))


def _run(arguments: argparse.Namespace) -> int:
    outcomes: list[Outcome] = []
    results: Counter[str] = Counter()
    seeds = range(arguments.first, arguments.first + arguments.runs)
    with Progress() as progress:
        for outcome in run_faults(seeds, progress=progress):
            outcomes.append(outcome)
            results[outcome.result] += 1
            if not outcome.is_good:
                print(f"failed: {outcome}", file=sys.stderr, flush=True)
            if len(outcomes) % 10 == 0:
                progress(f"{len(outcomes)} of {arguments.runs}: {dict(results)}")
    print(summary(outcomes))
    print(f"\nResults: {dict(results)}.")
    return 0 if all(outcome.is_good for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
