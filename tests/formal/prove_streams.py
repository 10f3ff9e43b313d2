"""Every stream keeps its rules: a word that is offered stays until it is taken."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from amaranth.hdl import Cat, Const, Mux, Signal, Value

from celosia_hw import VERSION
from celosia_hw.accelerator import Accelerator, PacketMerge
from celosia_hw.axi_stream import AxiStreamAccelerator
from celosia_hw.config import AcceleratorConfig
from celosia_hw.drain import Drain, DrainKind
from celosia_hw.front_end import FrontEnd
from celosia_hw.normalizer import Normalizer
from celosia_hw.protocol import Reply, identity_payload
from celosia_hw.register_slice import RegisterSlice
from celosia_hw.responder import Responder
from formal.prover import Inside, Proof, is_steady, mutant, prove

CONFIG = AcceleratorConfig(
    key_rows=2, query_lanes=2, max_head_dim=2, max_keys=4, key_banks=1, max_sequence=4, link_bytes=4
)
WIDE = dataclasses.replace(CONFIG, link_bytes=16)
"""Packets of few words."""
WIDTH = 5


def taken(port: Any) -> Value:
    return port.valid & port.ready


def through_slice(p: Proof, i: Any, o: Any, inside: Inside) -> None:
    """Words come out of a `RegisterSlice` as they came in, each once and in their order."""
    m, mark = p.m, p.free(1, "mark")
    held = p.count(taken(i), taken(o), 2, "held")
    p.claim(o.valid == (held != 0))
    # What was held before this clock decides, so ready does not depend on valid.
    is_started = p.past(1)
    p.claim(i.ready == (is_started & (held != 2)))

    # Any one word, and how many are before it.
    word, ahead, is_inside = Signal(len(Value.cast(i.payload))), Signal.like(held), Signal()
    shown = Value.cast(o.payload)
    with m.If(is_inside):
        m.d.sync += ahead.eq(ahead - taken(o))
        with m.If((ahead == 0) & o.valid):
            p.claim(shown == word)
            m.d.sync += is_inside.eq(~o.ready)
    with m.Elif(mark & taken(i)):
        m.d.sync += [is_inside.eq(1), word.eq(i.payload), ahead.eq(held - taken(o))]
    p.lemma(held == o.valid + inside["is_spare"])
    p.lemma(~is_inside | (ahead < held))
    p.lemma(~is_inside | (ahead != 0) | (shown == word))
    p.lemma(~is_inside | (ahead != 1) | (Value.cast(inside["spare"]) == word))


SLICES = {
    "forgets that a word waits": lambda: mutant(
        RegisterSlice, ("fills = ~moves & (is_spare | arrives)", "fills = ~moves & is_spare")
    ),
    "moves on while not ready": lambda: mutant(
        RegisterSlice,
        ("moves = ~self.o.valid | self.o.ready", "moves = self.o.ready | self.i.valid"),
    ),
    "keeps the word that has left": lambda: mutant(
        RegisterSlice, ("with m.If(~is_spare):", "with m.If(~is_spare & moves):")
    ),
    "shows the new word first": lambda: mutant(
        RegisterSlice, ("Mux(is_spare, spare, self.i.payload)", "self.i.payload")
    ),
}


@prove(RegisterSlice, SLICES, depth=2, trace=6)
def register_slice(p: Proof, component: Any) -> None:
    slice_ = component(WIDTH)
    inside = p.add(slice_)
    p.assume(is_steady(p, slice_.i))
    p.claim(is_steady(p, slice_.o))
    through_slice(p, slice_.i, slice_.o, inside)


@prove(
    PacketMerge,
    {
        "forgets a packet whose last word waits": lambda: mutant(
            PacketMerge, ("locked.eq(~(self.joined.ready & ", "locked.eq(~(")
        ),
        "forgets a packet after its first word": lambda: mutant(
            PacketMerge, (" & self.joined.payload.last)", ")")
        ),
        "keeps no choice": lambda: mutant(
            PacketMerge, ("Mux(locked, held, ~self.first.valid)", "~self.first.valid")
        ),
        "lets the second wait for ever": lambda: mutant(
            PacketMerge, ("Mux(locked, held, ~self.first.valid)", "locked & held")
        ),
    },
    trace=6,
)
def packet_merge(p: Proof, component: Any) -> None:
    merge = component(CONFIG)
    inside = p.add(merge)
    m, first, second, joined = p.m, merge.first, merge.second, merge.joined
    for i in (first, second):
        p.assume(is_steady(p, i))
    p.claim(is_steady(p, joined))

    # A word comes from one of them, and from the same one until a packet's end.
    p.claim(taken(joined) == taken(first) | taken(second))
    p.claim(~(taken(first) & taken(second)))
    for i in (first, second):
        p.claim(~taken(i) | (joined.payload.as_value() == i.payload.as_value()))
    in_packet, source = Signal(), Signal()
    with m.If(taken(joined)):
        m.d.sync += [in_packet.eq(~joined.payload.last), source.eq(taken(second))]
        p.claim(~in_packet | (source == taken(second)))
    # Nothing else holds a word back.
    p.claim(
        joined.valid
        == Mux(in_packet, Mux(source, second.valid, first.valid), first.valid | second.valid)
    )
    locked, held = inside["locked"], inside["held"]
    p.lemma(~in_packet | locked & (held == source))
    p.lemma(~locked | in_packet | Mux(held, second.valid, first.valid))


@prove(
    Responder,
    {
        "goes on with the word while not ready": lambda: mutant(
            Responder, ("with m.If(moves):", "with m.If(1):")
        ),
        "lets the counters go on": lambda: mutant(
            Responder, ("with m.If(~self.valid):", "with m.If(word == 0):")
        ),
        "ends a word early": lambda: mutant(
            Responder, ("last.eq(word == words)", "last.eq(word + 1 == words)")
        ),
    },
    trace=8,
)
def responder(p: Proof, component: Any) -> None:
    dut = component(CONFIG)
    inside = p.add(dut)
    m, reply = p.m, dut.reply
    asked = Cat(dut.opcode, dut.tag, dut.code)
    p.assume(~p.past(dut.valid & ~dut.ready) | dut.valid & (asked == p.past(asked)))
    p.claim(is_steady(p, reply))

    word = Signal(range(64))
    with m.If(taken(reply)):
        m.d.sync += word.eq(Mux(reply.payload.last, 0, word + 1))
    p.claim(dut.ready == (taken(reply) & reply.payload.last))
    counters = Signal.like(Value.cast(dut.counters), reset_less=True)
    with m.If(~dut.valid):
        m.d.sync += counters.eq(dut.counters)
    identity = identity_payload(CONFIG, VERSION)
    payloads = {
        Reply.IDENTITY: Const(int.from_bytes(identity, "little"), 8 * len(identity)),
        Reply.STATISTICS: counters,
        Reply.ERROR: Const(0, 0),
    }
    p.assume(Cat(dut.opcode == opcode for opcode in payloads).any())
    header = Cat(dut.opcode, Const(0, 8))[:8], dut.tag, Cat(dut.code, Const(0, 8))[:8], Const(0, 8)
    for opcode, payload in payloads.items():
        content = Cat(*header, payload)
        with m.If(reply.valid & (dut.opcode == opcode)):
            p.claim(reply.payload.data == content.word_select(word, CONFIG.link_bits))
            p.claim(reply.payload.last == (word == len(content) // CONFIG.link_bits - 1))
    is_last = reply.valid & reply.payload.last
    p.lemma(Mux(is_last, 0, word + reply.valid) == inside["word"])
    p.lemma(counters == inside["counters"])
    p.lemma(dut.valid | ~reply.valid)
    p.lemma(reply.valid | (word == 0))
    for opcode, payload in payloads.items():
        p.lemma((dut.opcode != opcode) | (word <= len(payload) // CONFIG.link_bits))


@prove(
    AxiStreamAccelerator,
    {
        **{
            name: lambda make=make: mutant(AxiStreamAccelerator, RegisterSlice=make())
            for name, make in SLICES.items()
        },
        "takes bytes that are not kept": lambda: mutant(
            AxiStreamAccelerator, ("self.s_axis_tdata & kept", "self.s_axis_tdata")
        ),
        "takes any last word": lambda: mutant(
            AxiStreamAccelerator,
            (
                "Mux(self.s_axis_tlast, is_contiguous, keep.all())",
                "(self.s_axis_tlast | keep.all())",
            ),
        ),
        "is ready for a valid word only": lambda: mutant(
            AxiStreamAccelerator,
            ("eq(command.i.ready)", "eq(command.i.ready & self.s_axis_tvalid)"),
        ),
    },
    depth=2,
    trace=6,
)
def axi_stream(p: Proof, component: Any) -> None:
    """Around any accelerator, whether or not that keeps the rules."""
    core = p.stand_in(Accelerator(CONFIG))
    dut = mutant(component, Accelerator=lambda config: core)(CONFIG)
    inside = p.add(dut)
    p.claim(is_steady(p, axi_master(dut)))
    p.claim(dut.m_axis_tkeep.all())

    # A word reaches the accelerator as it came, with what its TKEEP says.
    p.assume(is_steady(p, axi_slave(dut)))
    through_slice(p, axi_slave(dut), core.command, inside.submodule("command"))


class Port(NamedTuple):
    """Signals that make a stream."""

    payload: Any
    valid: Any
    ready: Any


def axi_master(dut: AxiStreamAccelerator) -> Port:
    payload = Cat(dut.m_axis_tdata, dut.m_axis_tlast, dut.m_axis_tkeep)
    return Port(payload, dut.m_axis_tvalid, dut.m_axis_tready)


def axi_slave(dut: AxiStreamAccelerator) -> Port:
    """With the payload that the accelerator is to get."""
    bytes_, keep = CONFIG.link_bytes, dut.s_axis_tkeep
    kept = [Mux(keep[i], dut.s_axis_tdata.word_select(i, 8), Const(0, 8)) for i in range(bytes_)]
    starts = [(1 << count) - 1 for count in range(bytes_ + 1)]
    is_start = Cat(keep == start for start in starts).any()
    is_good = Mux(dut.s_axis_tlast, is_start, keep == starts[-1])
    payload = Cat(*kept, dut.s_axis_tlast, ~is_good)
    return Port(payload, dut.s_axis_tvalid, dut.s_axis_tready)


@prove(
    Accelerator,
    {
        "command word is lost": lambda: mutant(
            Accelerator,
            FrontEnd=mutant(FrontEnd, RegisterSlice=SLICES["moves on while not ready"]()),
        ),
    },
    depth=2,
    trace=9,
)
def accelerator_streams(p: Proof, component: Any) -> None:
    """All streams between the components of the whole design, whatever comes in."""
    dut = component(WIDE)
    inside = p.add(dut)
    words = inside.submodule("front_end")["buffer"].o
    p.claim(is_steady(p, words))
    p.claim(is_steady(p, inside["sequencer"].job))
    p.claim(is_steady(p, inside["front_end"].reply))
    p.claim(is_steady(p, inside["drain"].result))
    p.claim(is_steady(p, dut.result))


@prove(
    Accelerator,
    {
        name: lambda name=name: mutant(Accelerator, RegisterSlice=SLICES[name]())
        for name in ("moves on while not ready", "shows the new word first")
    },
    depth=2,
    trace=6,
)
def job_queue(p: Proof, component: Any) -> None:
    """The sequencer gets the jobs of any front end, each once and in their order."""
    front_end = p.stand_in(FrontEnd(CONFIG))
    inside = p.add(mutant(component, FrontEnd=lambda config: front_end)(CONFIG))
    i, o = front_end.job, inside["sequencer"].job
    p.assume(is_steady(p, i))
    p.claim(is_steady(p, o))
    through_slice(p, i, o, inside.submodule("jobs"))


@prove(
    Drain,
    {
        "word moves on while not ready": lambda: mutant(
            Drain, RegisterSlice=SLICES["moves on while not ready"](), FIFO_WORDS=4
        ),
    },
    trace=16,
)
def drain_result(p: Proof, component: Any) -> None:
    """Whatever comes out of the normalizer, and whatever goes in."""
    normalizer = p.stand_in(Normalizer(CONFIG))
    normalizer.latency = 2
    drain = mutant(component, Normalizer=lambda config: normalizer)(CONFIG)
    p.add(drain)
    p.claim(is_steady(p, drain.result))
    p.hint(~drain.result.ready & (drain.job.payload.kind == DrainKind.PRODUCT))
