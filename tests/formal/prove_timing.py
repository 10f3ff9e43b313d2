"""Key tiles keep their distance, and events of theirs come out of the conductor once each."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data

from celosia_hw.accumulator import WRITE_LAG
from celosia_hw.conductor import Conductor
from celosia_hw.config import AcceleratorConfig
from celosia_hw.pipeline import EventDelay, Steps
from celosia_hw.sequencer import Sequencer
from celosia_hw.timing import ACCUMULATOR_READ, MEMORY_READ, Timing
from formal.prove_credits import assume_jobs, is_query_open
from formal.prover import Proof, mutant, prove, total, unused

CONFIG = AcceleratorConfig(
    key_rows=2,
    query_lanes=10,  # more than there are clocks in the shortest key tile
    max_head_dim=10,  # longer than the shortest key tile
    max_keys=2,
    key_banks=2,
    max_sequence=4,
    link_bytes=4,
    multiplier_stages=1,
)


@prove(
    (EventDelay, 8, 2),
    {
        "ring is too short": lambda: (
            mutant(EventDelay, ("(delay - 1) // spacing + 1", "(delay - 1) // spacing")),
            8,
            2,
        ),
        "reads one too many": lambda: (
            mutant(EventDelay, ("with m.If(take):", "with m.If(take | self.i_valid):")),
            8,
            2,
        ),
        "is a clock late": lambda: (
            mutant(EventDelay, ("line = Signal(self._delay)", "line = Signal(self._delay + 1)")),
            8,
            2,
        ),
    },
    depth=10,
    trace=16,
)
def event_delay(p: Proof, component: Any) -> None:
    """An event and its record come so many clocks later, exactly, however many wait."""
    cls, delay, spacing = component
    dut = cls(4, delay, spacing)
    inside = p.add(dut)
    for clocks in range(1, spacing):
        p.assume(~(dut.i_valid & p.past(dut.i_valid, clocks)))
    p.claim(dut.o_valid == p.past(dut.i_valid, delay))
    p.claim(~dut.o_valid | (dut.o == p.past(dut.i, delay)))
    line, depth = inside["line"], inside["_ring.depth"]
    waiting = sum(line[i] for i in range(len(line) - 1))
    read, write = inside["read"], inside["write"]
    p.lemma((read < depth) & (write < depth))
    p.lemma((read + waiting == write) | (read + waiting == write + depth))


@prove(
    Steps,
    {
        "misses an event beside the last step": lambda: mutant(
            Steps, ("with m.If(self.start):", "with m.If(self.start & ~self.active):")
        ),
        "takes the count late": lambda: mutant(
            Steps, ("end.eq(self.count_minus_one)", "end.eq(end)")
        ),
        "does not end": lambda: mutant(Steps, ("self.active.eq(0), ", "")),
    },
    depth=2,
    trace=12,
)
def steps(p: Proof, component: Any) -> None:
    """As many steps as asked for, from the clock after the event on, numbered from 0."""
    limit = 5
    dut = component(limit)
    m, inside = p.m, p.add(dut)
    p.assume(dut.count_minus_one < limit)
    p.assume(~dut.start | ~dut.active | dut.last)
    left, number = Signal(range(limit + 1)), Signal(range(limit))
    with m.If(dut.start):
        m.d.sync += [left.eq(dut.count_minus_one + 1), number.eq(0)]
    with m.Elif(left != 0):
        m.d.sync += [left.eq(left - 1), number.eq(number + 1)]
    p.claim(dut.active == (left != 0))
    with m.If(left != 0):
        p.claim(dut.index == number)
        p.claim(dut.last == (left == 1))
    p.claim(dut.first == ((left != 0) & (number == 0)))
    p.lemma((left == 0) | (left + number == inside["end"] + 1) & (left <= limit))
    p.lemma((left != 0) | (dut.index == 0))


class Distance(NamedTuple):
    """Whether a key tile keeps it; clocks since the last one, and how many steps that has."""

    is_kept: Value
    since: Signal
    steps: Signal


def distance(p: Proof, valid: Any, tile: Any, config: AcceleratorConfig) -> Distance:
    """Key tiles come no closer than what is behind the sequencer allows.

    That is a read, addition and write of an accumulator, a score for each key, and a step for each
    value row.
    """
    since = Signal(range(32), init=31)
    steps = Signal(range(32))
    p.lemma(steps <= max(config.max_head_dim, config.key_rows))
    count = Mux(tile.product, config.key_rows, tile.last_value_dim + 1)
    with p.m.If(valid):
        p.m.d.sync += [since.eq(1), steps.eq(count)]
    with p.m.Elif(since != 31):
        p.m.d.sync += since.eq(since + 1)
    least = max(config.key_rows, config.tile_latency)
    return Distance(~valid | (since >= least) & (since >= steps), since, steps)


@prove(
    Sequencer,
    {
        "does not settle": lambda: mutant(Sequencer, ("(same | ~query_end & (settle <= 1))", "1")),
        "states follow each other like others": lambda: mutant(
            Sequencer, ("has_state = new.load_state | had_state", "has_state = 0")
        ),
        "lanes do not get their turn": lambda: mutant(
            Sequencer, ("longest - (self._config.query_lanes - 1))", "longest)")
        ),
        "products follow at once": lambda: mutant(Sequencer, ("& spaced & ~apart &", "& spaced &")),
        "settles while the next runs": lambda: mutant(
            Sequencer,
            (
                "may_follow.eq(permitted & same)",
                "may_follow.eq(permitted)",
            ),
        ),
    },
    depth=14,
    trace=18,
)
def tile_distance(p: Proof, component: Any) -> None:
    """The sequencer keeps its tiles apart, whatever comes and whenever."""
    sequencer = component(CONFIG)
    inside = p.add(sequencer)
    job, tile = sequencer.job, sequencer.tile
    assume_jobs(p, job, CONFIG)
    p.claim(distance(p, sequencer.tile_valid, tile, CONFIG).is_kept)
    is_query_open(p, job, inside, CONFIG)

    # Query tiles: a clock for each lane; more, if a lane keeps a state; products by themselves.
    m, new, started = p.m, job.payload, sequencer.started
    gap = max(Timing(CONFIG).state_gap, CONFIG.query_lanes - 1) + 1
    since = Signal(range(gap + 1), init=gap)
    had_state, was_product = Signal(), Signal()
    with m.If(started):
        m.d.sync += [since.eq(1), had_state.eq(new.load_state), was_product.eq(new.product)]
    with m.Elif(since != gap):
        m.d.sync += since.eq(since + 1)
    under_way = p.count(started, sequencer.summed_up, 7, "under_way")
    p.assume(~sequencer.summed_up | (under_way != 0))
    p.assume(under_way < 7)
    with m.If(started):
        p.claim(since >= CONFIG.query_lanes)
        p.claim(~(new.load_state | had_state) | (since >= Timing(CONFIG).state_gap))
        p.claim((new.product == was_product) | (under_way == 0))
    p.lemma((inside["gap"] + since == gap) & (inside["had_state"] == had_state))
    p.lemma((inside["in_flight"] == under_way) & (inside["is_product"] == was_product))
    p.lemma(since != 0)


SMALL = AcceleratorConfig(
    key_rows=2,
    query_lanes=2,
    max_head_dim=9,  # longer than the shortest key tile
    max_keys=2,
    key_banks=2,
    max_sequence=4,
    link_bytes=4,
    multiplier_stages=1,
)


class Origin(NamedTuple):
    """An event of the sequencer, and how long ago it was."""

    valid: Value
    clocks: int


def with_plain_delays(
    p: Proof, component: Any, origins: dict[str, Origin], fields: dict[str, Value]
) -> Any:
    """A conductor with the delays that `event_delay` proves its own to be.

    That holds while no more events wait than their rings have places.
    """
    known: dict[int, tuple[Any, Origin]] = {}

    def delay(valid: Any, clocks: int, depth: int) -> Value:
        waiting = sum(p.past(valid, clock) for clock in range(1, clocks))
        p.claim(~valid | (waiting < depth))
        return p.past(valid, clocks)

    class PlainDelay(EventDelay):
        def elaborate(self, platform: Any) -> Module:
            m = Module()
            m.d.comb += [
                self.o_valid.eq(delay(self.i_valid, self._delay, self._depth)),
                Value.cast(self.o).eq(p.past(Value.cast(self.i), self._delay)),
            ]
            return m

    class PlainConductor(mutant(component, EventDelay=PlainDelay)):
        def _later(self, m: Module, event: Any, clocks: int, name: str, keep: str) -> Any:
            if clocks == 0:
                return event
            depth = unused(EventDelay(1, clocks, self._spacing))._depth
            delay(event.valid, clocks, depth)
            _, origin = known.get(id(event.valid), (None, Origin(event.valid, 0)))
            origin = Origin(origin.valid, origin.clocks + clocks)
            valid = p.past(origin.valid, origin.clocks)
            known[id(valid)], origins[name] = (valid, origin), origin
            layout = data.StructLayout({field: self.tile[field].shape() for field in keep.split()})
            for field in keep.split():
                fields.setdefault(field, Value.cast(self.tile[field]))
            record = Cat(p.past(fields[field], origin.clocks) for field in keep.split())
            return event._replace(valid=valid, record=data.View(layout, record))

    return PlainConductor


@prove(
    Conductor,
    {
        "drain's job comes a clock early": lambda: mutant(
            Conductor,
            (
                "            WRITE_LAG + config.query_lanes,",
                "            WRITE_LAG + config.query_lanes - 1,",
            ),
        ),
        "every key tile of a product makes a job": lambda: mutant(
            Conductor, ("products.last & product_last", "products.last")
        ),
        "rings are too short": lambda: mutant(
            Conductor, ("self._spacing = max(", "self._spacing = 4 * max(")
        ),
        "every key tile gives the buffer back": lambda: mutant(
            Conductor, ("done.valid & done.record.last", "done.valid")
        ),
        "products keep their banks": lambda: mutant(
            Conductor, ("product.valid & product.record.last, product.record.banks", "0, 0")
        ),
        "biases are not given back": lambda: mutant(
            Conductor,
            ("done.valid & (done.record.mask | done.record.bias)", "done.valid & done.record.mask"),
        ),
    },
    depth=14,
    trace=24,
)
def conductor_events(p: Proof, component: Any) -> None:
    """Each last key tile makes one job of the drain, and gives all back once, at its clock.

    What comes before and behind is in `tile_distance` and `prove_credits.accumulator_banks`.
    """
    watched, origins, fields = [], {}, {}

    class WatchedSteps(Steps):
        def elaborate(self, platform: Any) -> Module:
            watched.append(self)
            return super().elaborate(platform)

    plain = with_plain_delays(p, mutant(component, Steps=WatchedSteps), origins, fields)
    dut = plain(SMALL)
    inside = p.add(dut)
    p.never_reset()
    m, valid, tile, timing = p.m, dut.tile_valid, dut.tile, Timing(SMALL)
    before = distance(p, valid, tile, SMALL)
    p.assume(before.is_kept)
    p.assume(~valid | (tile.last_value_dim < SMALL.max_head_dim))
    in_query, was_product = Signal(), Signal()
    with m.If(valid):
        m.d.sync += [in_query.eq(~tile.last), was_product.eq(tile.product)]
    under_way = p.count(valid & tile.first, dut.job.valid, 7, "under_way")
    p.assume(~valid | (tile.first == ~in_query) & (under_way < 7))
    p.assume(~valid | (tile.product == was_product) | (under_way == 0) & ~in_query)
    for steps in watched:
        p.claim(~steps.start | ~steps.active | steps.last)
        end = inside.of(steps)["end"]
        p.lemma(~steps.active | (steps.index <= end) & (end < steps._limit))

    # The same events, by what they were made from.
    attend, product, every = (origins[n].valid for n in ("sums", "products", "query_done"))
    p.claim((attend == (valid & ~tile.product)) & (product == (valid & tile.product)))
    p.claim(every == valid)

    def past(event: Value, clocks: int, *names: str) -> list[Value]:
        return [p.past(one, clocks) for one in (event, *(fields[name] for name in names))]

    ends, reads = [], []
    for dim in range(SMALL.max_head_dim):
        names = "last", "last_value_dim", "banks"
        is_end, last, value_dim, _ = past(attend, timing.partial - ACCUMULATOR_READ + dim, *names)
        ends.append(is_end & last & (value_dim == dim))
        is_read, last, value_dim, banks = past(attend, timing.value - MEMORY_READ + dim, *names)
        reads.append(Mux(is_read & last & (value_dim == dim), banks, 0))
    is_end, last = past(product, timing.score + SMALL.key_rows, "last")
    ends.append(is_end & last)
    summed = Cat(ends).any()
    p.claim(total(ends) <= 1)
    after = WRITE_LAG + SMALL.query_lanes
    p.claim(dut.job.valid == p.past(summed, after))
    done = inside["_accumulate.done"].i_valid
    for clocks in range(after + 1):
        p.lemma(p.past(done, clocks) == p.past(summed, clocks))
    p.claim(dut.banks_done == reduce(or_, reads, Mux(product & tile.last, tile.banks, 0)))
    is_end, last = past(every, timing.position + SMALL.query_lanes, "last")
    p.claim(dut.buffer_done == (is_end & last))
    clocks = timing.mask - 1 + SMALL.key_rows + SMALL.query_lanes
    is_end, mask, bias = past(attend, clocks, "mask", "bias")
    p.claim(dut.mask_done == (is_end & (mask | bias)))

    # Those under way have kept their distance, and each query tile is counted until its job comes.
    def pending(base: Value, clocks: int) -> list[Value]:
        found = []
        for age in range(1, clocks + SMALL.max_head_dim):
            parts = p.past(attend, age), p.past(product, age)
            p.lemma((p.past(every, age) == reduce(or_, parts)) & ~(parts[0] & parts[1]))
            is_event, last, value_dim = past(base, age, "last", "last_value_dim")
            p.lemma(~is_event | (value_dim < SMALL.max_head_dim))
            steps = SMALL.key_rows if base is product else value_dim + 1
            p.lemma(~is_event | (before.since <= age))
            p.lemma(~is_event | (before.since != age) | (before.steps == steps))
            for gap in range(1, min(age, SMALL.max_head_dim)):
                is_near = (gap < SMALL.tile_latency) | (gap < steps)
                p.lemma(~(is_event & p.past(every, age - gap) & is_near))
            wait = clocks + (0 if base is product else value_dim)
            found.append(is_event & last & (age <= wait))
        return found

    attends = pending(attend, timing.partial - ACCUMULATOR_READ + after)
    products = pending(product, timing.score + SMALL.key_rows + after)
    p.lemma(under_way == total(attends) + total(products) + in_query)
    p.lemma(~Cat(attends).any() | ~was_product)
    p.lemma(~Cat(products).any() | was_product)
