"""Formal proofs of components by k-induction, with SymbiYosys and Z3.

A property is a function that takes a `Proof` and a component's class: it builds hardware beside the
component that claims something about it, for all inputs that it does not assume away. `prove`
registers it with the intact class and with broken ones (`mutant`), of which it must not hold. What
one property assumes of a component's surroundings another one claims; it says which.
"""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import Assert, Assume, Fragment, Module, ResetSignal, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.fifo import FIFOInterface
from amaranth.lib.wiring import In, Out

__all__ = [
    "PROPERTIES",
    "Inside",
    "Proof",
    "Property",
    "is_steady",
    "keeps_to",
    "mutant",
    "prove",
    "run",
    "total",
    "unused",
]

TOOLS = Path(sys.executable).parent
TIME_LIMIT = 240
"""Seconds of one proof."""


class Inside:
    """The inside of an elaborated component: what its methods called local variables."""

    def __init__(
        self, component: Any, fragment: Fragment | None, frames: list[tuple[str, dict]]
    ) -> None:
        self._component = component
        self._fragment: Any = fragment
        self._frames = frames

    def __getitem__(self, name: str) -> Any:
        """A local variable of the component's methods, or of ``method.variable``."""
        method, _, name = name.rpartition(".")
        own = [
            frame
            for code, frame in self._frames
            if frame["self"] is self._component and method in ("", code)
        ]
        found = {id(frame[name]): frame[name] for frame in own if name in frame}
        assert len(found) == 1, f"{len(found)} variables are called {name}"
        (value,) = found.values()
        return value

    def of(self, component: Any) -> Inside:
        """The local variables of another component in the same proof."""
        return Inside(component, None, self._frames)

    def submodule(self, name: str) -> Inside:
        """The inside of a component of this one, by its variable."""
        component = self[name]
        (fragment,) = [
            fragment
            for fragment, _, _ in self._fragment.subfragments
            if component in (fragment.origins or ())
        ]
        return Inside(component, fragment, self._frames)

    def named(self, pattern: str) -> dict[str, Signal]:
        """Its driven signals whose names match, by what the first group matched."""
        found = {}
        for lines in self._fragment.statements.values():
            for signal in lines._lhs_signals():
                if match := re.fullmatch(pattern, signal.name):
                    found[match[1]] = signal
        assert found, f"no signal is called {pattern}"
        return found

    def line(self, name: str) -> list[Signal]:
        """Signals that are called this with a number, as those of `celosia_hw.pipeline.delayed`."""
        found = self.named(rf"{name}_(\d+)")
        return [found[number] for number in sorted(found, key=int)]

    def state(self, name: str) -> Value:
        """Whether its state machine is in this state."""
        fsm = self._fragment.find_generated("fsm")
        (signal,) = self.named("(fsm_state)").values()
        return signal == fsm.encoding[name]


def elaborate(component: Any) -> tuple[Fragment, Inside]:
    """Elaborate a component and keep the local variables of all methods that took part."""
    frames: list[tuple[str, dict]] = []

    def keep(frame: Any, event: str, _: Any) -> None:
        if event == "return" and isinstance(
            frame.f_locals.get("self"), wiring.Component | FIFOInterface
        ):
            frames.append((frame.f_code.co_name, dict(frame.f_locals)))

    before = sys.getprofile()
    sys.setprofile(keep)
    try:
        fragment = Fragment.get(component, None)
    finally:
        sys.setprofile(before)
    return fragment, Inside(component, fragment, frames)


class _Empty(wiring.Component):
    def elaborate(self, platform: Any) -> Module:
        return Module()


def unused(component: Any) -> Any:
    """A component that is not elaborated, of which Amaranth would warn."""
    component._MustUse__used = True
    return component


class Proof:
    """A component with what is assumed and claimed about it.

    Everything starts from reset and may be reset again at any time. A lemma is proved like a claim,
    but says only what induction needs to know of the inside: of a broken component the claims alone
    are checked.
    """

    def __init__(self, is_broken: bool) -> None:
        self.m: Any = Module()
        # Registers that go on whatever `If` of `m` they are asked for in.
        self._always: Any = Module()
        self.m.submodules.always = self._always
        self._past: dict[tuple[int, bool], tuple[Any, Signal]] = {}
        self._is_broken = is_broken
        self._free: list[Any] = []

    def add(self, component: Any, name: str = "dut") -> Inside:
        """Put a component in; those of its inputs that nothing drives are arbitrary."""
        for _, member, port in component.signature.flatten(component):
            if member.flow is In and isinstance(Value.cast(port), Signal):  # always ready: 1
                self._free.append(Value.cast(port))
        fragment, inside = elaborate(component)
        self.m.submodules[name] = fragment
        return inside

    def stand_in(self, component: Any) -> Any:
        """A component of the same ports whose outputs are arbitrary: it stands for any other."""
        empty = _Empty(dict(unused(component).signature.members))
        for _, member, port in empty.signature.flatten(empty):
            if member.flow is Out:
                self.set_free(port)
        return empty

    def free(self, shape: Any, name: str) -> Any:
        """An arbitrary signal."""
        return self.set_free(Signal(shape, name=name))

    def set_free(self, signal: Any) -> Any:
        """Make a signal that nothing drives arbitrary."""
        self._free.append(Value.cast(signal))
        return signal

    def constant(self, shape: Any, name: str) -> Any:
        """An arbitrary number, the same in all clocks but those after a reset."""
        signal = self.free(shape, name)
        held, is_held = Signal.like(signal, name=f"{name}_held"), Signal(name=f"{name}_is_held")
        self._always.d.sync += [held.eq(signal), is_held.eq(1)]
        self.assume(~is_held | (held == signal))
        return signal

    def past(self, value: Any, clocks: int = 1, *, reset_less: bool = False) -> Any:
        """A value so many clocks ago; zero before that, and after a reset.

        The registers of one object are made only once.
        """
        for _ in range(clocks):
            key = id(value), reset_less
            if key not in self._past:
                shape = Value.cast(value).shape()
                register = Signal(shape, name="past", reset_less=reset_less)
                self._always.d.sync += register.eq(value)
                self._past[key] = value, register
            _, value = self._past[key]
        return value

    def count(self, up: Any, down: Any, limit: int, name: str, init: int = 0) -> Signal:
        """Events less others; wide enough for twice `limit`."""
        counter = Signal(range(2 * limit + 2), init=init, name=name)
        self._always.d.sync += counter.eq(counter + up - down)
        return counter

    def assume(self, condition: Any) -> None:
        self.m.d.comb += Assume(condition)

    def never_reset(self) -> None:
        """Reset at the start only: what is under way does not outlive another one."""
        self.assume(~ResetSignal())

    def claim(self, condition: Any) -> None:
        self.m.d.comb += Assert(condition, src_loc_at=1)

    def lemma(self, condition: Any) -> None:
        if not self._is_broken:
            self.m.d.comb += Assert(condition, src_loc_at=1)

    def hint(self, condition: Any) -> None:
        """Assume this of a broken component, so that its counterexample is found sooner."""
        if self._is_broken:
            self.assume(condition)

    def rtlil(self) -> str:
        top = Fragment.get(self.m, None)
        driven: Any = [s for lines in top.statements.values() for s in lines._lhs_signals()]
        kept = {id(signal) for signal in driven}
        ports = [port for port in self._free if id(port) not in kept]
        return rtlil.convert(top, name="top", ports=ports)


@dataclass(frozen=True)
class Property:
    """A property that is to hold, and components of which it must not.

    Attributes
    ----------
    build : callable
        Takes a `Proof` and a component's class, or whatever it makes its component from.
    intact : object
        What `build` takes.
    broken : dict
        What makes a broken one of it, by what is wrong with it.
    depth : int
        Clocks of the induction.
    trace : int
        Clocks in which a broken component is caught.
    """

    build: Callable[[Proof, Any], None]
    intact: Any
    broken: dict[str, Callable[[], Any]]
    depth: int
    trace: int

    @property
    def name(self) -> str:
        return self.build.__name__


PROPERTIES: list[Property] = []


def prove(
    intact: Any,
    broken: dict[str, Callable[[], Any]],
    *,
    depth: int = 1,
    trace: int | None = None,
) -> Callable[[Callable[[Proof, Any], None]], Callable[[Proof, Any], None]]:
    """Register a `Property`."""
    assert broken, "a proof that cannot fail proves nothing"

    def register(build: Callable[[Proof, Any], None]) -> Callable[[Proof, Any], None]:
        clocks = depth if trace is None else trace
        PROPERTIES.append(Property(build, intact, broken, depth, clocks))
        return build

    return register


_MUTANTS: dict[Any, tuple[str, dict]] = {}


def mutant(thing: Any, *edits: tuple[str, str], **names: Any) -> Any:
    """A class or function with changes in its source, or with other things behind its names.

    Parameters
    ----------
    edits : tuple of str
        What is there, exactly once, and what takes its place.
    names : dict
        Globals of its module to replace.
    """
    if thing in _MUTANTS:
        source, scope = _MUTANTS[thing]
    else:
        source, scope = inspect.getsource(thing), vars(sys.modules[thing.__module__])
    for old, new in edits:
        assert source.count(old) == 1, f"{thing.__name__} has {source.count(old)} times: {old}"
        source = source.replace(old, new)
    scope = {**scope, **names}
    exec(source, scope)
    result = scope[thing.__name__]
    _MUTANTS[result] = source, scope
    return result


def total(values: Any) -> Value:
    return sum(values, start=Value.cast(0))


def is_steady(p: Proof, stream: Any) -> Value:
    """The rule of streams: a word that is offered stays as it is until it is taken."""
    payload = Value.cast(stream.payload)
    waiting = p.past(stream.valid & ~stream.ready)
    return ~waiting | stream.valid & (payload == p.past(payload))


def keeps_to(limit: int, counter: Any, up: Any, down: Any) -> Value:
    """A counter of events less others stays from 0 to `limit`."""
    return ((counter != 0) | up | ~down) & ((counter != limit) | down | ~up)


def run(one: Property, variant: str | None, folder: Path) -> tuple[str, list[str], str]:
    """Run a proof.

    Parameters
    ----------
    variant : str or None
        Key of `Property.broken`, or ``None`` for the intact component.
    folder : Path
        For the files, among them the trace of a failure.

    Returns
    -------
    status : str
        Of SymbiYosys.
    failed : list of str
        Places of the assertions that failed.
    log : str
    """
    component = one.intact if variant is None else one.broken[variant]()
    p = Proof(variant is not None)
    one.build(p, component)
    p.hint(~ResetSignal())
    (folder / "top.il").write_text(p.rtlil())
    mode, depth = ("prove", one.depth) if variant is None else ("bmc", one.trace)
    script = f"""
        [options]
        mode {mode}
        depth {depth}
        timeout {TIME_LIMIT}
        [engines]
        smtbmc z3
        [script]
        read_rtlil top.il
        hierarchy -top top
        proc
        flatten
        opt_clean -purge
        prep -top top
        [files]
        top.il
    """
    (folder / "proof.sby").write_text(textwrap.dedent(script))
    options = {name: f"yowasp-{name}" for name in ("yosys", "yosys-smtbmc", "yosys-witness")}
    result = subprocess.run(
        [
            *(TOOLS / "yowasp-sby", "--yosys", options["yosys"]),
            *("--smtbmc", options["yosys-smtbmc"], "--witness", options["yosys-witness"]),
            *("-f", "proof.sby"),
        ],
        cwd=folder,
        env={**os.environ, "PATH": os.pathsep.join([str(TOOLS), os.environ["PATH"]])},
        capture_output=True,
        text=True,
        timeout=2 * TIME_LIMIT,
    )
    log = result.stdout + result.stderr
    status_file = folder / "proof" / "status"
    status = status_file.read_text().split()[0] if status_file.exists() else "ERROR"
    failed = re.findall(r"Assert failed in top: (\S+)", log)
    return status, failed, log
