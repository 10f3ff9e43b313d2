"""Running maximum, row sum and accumulators, and how they are rescaled."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed

from celosia_hw.accumulator import WRITE_LAG, AccumulatorLane
from celosia_hw.arithmetic import Widths
from celosia_hw.config import AcceleratorConfig
from celosia_hw.ram import ram
from celosia_hw.softmax_lane import SHIFT_BITS, SoftmaxLane
from celosia_hw.timing import ACCUMULATOR_READ, Timing
from formal.prover import Proof, mutant, prove

CONFIG = AcceleratorConfig(
    key_rows=2,
    query_lanes=2,
    max_head_dim=2,
    max_keys=2,
    key_banks=1,
    max_sequence=4,
    link_bytes=4,
    probability_bits=8,
    score_fraction_bits=4,
    score_integer_bits=10,
    multiplier_stages=1,
)
WIDTHS = Widths(CONFIG)
MOST_SHIFT = (1 << SHIFT_BITS) - 1


def is_in_tile(p: Proof, first: Signal, last: Signal) -> Any:
    """Keys come from a tile's first to its last one, clock by clock, and tiles keep their pitch."""
    m = p.m
    under_way, wait = Signal(), Signal(range(CONFIG.tile_latency))
    key, size = Signal(range(CONFIG.key_rows)), CONFIG.key_rows
    number, in_tile = Mux(first, 0, key), first | under_way
    p.assume(~first | (wait == 0))
    p.assume(last == (in_tile & (number == size - 1)))
    m.d.sync += [
        under_way.eq(in_tile & ~last),
        key.eq(number + 1),
        wait.eq(Mux(first, CONFIG.tile_latency - 1, wait - (wait != 0))),
    ]
    p.lemma(~under_way | (key != 0) & (key + wait == CONFIG.tile_latency))
    return in_tile


@prove(
    SoftmaxLane,
    {
        "rounds down": lambda: mutant(
            SoftmaxLane, ("(tile_maximum + ((1 << widths.fraction) - 1))", "tile_maximum")
        ),
        "takes the tile's": lambda: mutant(
            SoftmaxLane, ("Mux(ceiling > old, ceiling, old)", "ceiling")
        ),
        "takes masked keys": lambda: mutant(
            SoftmaxLane, ("m.Elif(allowed & is_greater", "m.Elif(is_greater")
        ),
        "remembers the tile before": lambda: mutant(
            SoftmaxLane, ("with m.If(self.step.log_first):", "with m.If(0):")
        ),
        "does not start anew": lambda: mutant(
            SoftmaxLane, ("Mux(fresh, initial, maximum)", "maximum")
        ),
        "shifts by the rise modulo 64": lambda: mutant(
            SoftmaxLane, ("Mux(rise > top, top, rise)", "rise")
        ),
    },
    depth=6,
)
def running_maximum(p: Proof, component: Any) -> None:
    """It is the least integer that is no less than it was and than any allowed score."""

    class Maximum(component):
        def elaborate(self, platform: Any) -> Module:
            m = Module()
            self.maximum, self.rescale = self._maximum(m, log_score, allowed)
            return m

    log_score, allowed = p.free(signed(WIDTHS.log_score), "log_score"), p.free(1, "is_allowed")
    lane = Maximum(CONFIG)
    m, inside, step = p.m, p.add(lane), lane.step
    p.never_reset()

    in_tile = is_in_tile(p, step.log_first, step.log_last)
    tile_maximum = Signal.like(log_score)
    before = Mux(step.log_first, WIDTHS.lowest_log_score, tile_maximum)
    with m.If(in_tile):
        m.d.sync += tile_maximum.eq(Mux(allowed & (log_score > before), log_score, before))
    start = Signal.like(lane.initial_maximum)
    with m.If(step.load_interval):
        m.d.sync += start.eq(lane.initial_maximum)

    new, one = lane.maximum, 1 << WIDTHS.fraction
    old = Mux(p.past(step.log_fresh, 3), p.past(start, 2), p.past(new))
    with m.If(p.past(step.log_last, 3)):
        p.claim(new >= old)
        p.claim(new * one >= p.past(tile_maximum, 2))
        p.claim((new == old) | ((new - 1) * one < p.past(tile_maximum, 2)))
    with m.Else():
        p.claim(new == p.past(new))
    rise = p.past(new - old)
    p.claim(~p.past(step.log_last, 4) | (lane.rescale == Mux(rise > MOST_SHIFT, MOST_SHIFT, rise)))
    p.lemma(~in_tile | step.log_first | (inside["tile_maximum"] == tile_maximum))
    p.lemma(inside["initial"] == start)


@prove(
    SoftmaxLane,
    {
        "is not rescaled": lambda: mutant(
            SoftmaxLane, ("Mux(fresh, initial, total) >> shift", "Mux(fresh, initial, total)")
        ),
        "takes the shift late": lambda: mutant(
            SoftmaxLane, ("m.d.sync += [shift.eq(rescale), ", "m.d.sync += [shift.eq(shift), ")
        ),
        "does not start anew": lambda: mutant(SoftmaxLane, ("Mux(fresh, initial, total)", "total")),
        "tile is not rescaled": lambda: mutant(
            SoftmaxLane, ("Mux(step.sum_first, 0, partial)", "partial")
        ),
    },
    depth=7,
)
def row_sum(p: Proof, component: Any) -> None:
    """``L' = floor(L / 2^s) + sum(p)`` for each tile, for every shift s of 6 bits."""

    class RowSum(component):
        def elaborate(self, platform: Any) -> Module:
            m = Module()
            self._row_sum(m, probability, rescale, maximum)
            return m

    probability = p.free(WIDTHS.probability, "probability")
    rescale, maximum = p.free(SHIFT_BITS, "shift"), p.free(signed(WIDTHS.maximum), "maximum")
    lane = RowSum(CONFIG)
    m, inside, step = p.m, p.add(lane), lane.step
    p.never_reset()

    in_tile = is_in_tile(p, step.sum_first, step.sum_last)
    most = CONFIG.max_sequence * ((1 << WIDTHS.probability) - 1)
    tile_sum = Signal(range(most + 1))
    with m.If(in_tile):
        m.d.sync += tile_sum.eq(Mux(step.sum_first, 0, tile_sum) + probability)
    start = Signal.like(lane.initial_total)
    with m.If(step.load_interval):
        m.d.sync += start.eq(lane.initial_total)
    shift, is_fresh = Signal.like(rescale), Signal()
    first_maximum = Signal.like(maximum, name="maximum_of_tile")
    with m.If(step.sum_first):
        m.d.sync += [shift.eq(rescale), is_fresh.eq(step.sum_fresh), first_maximum.eq(maximum)]

    total = Signal.like(lane.total)
    new = (Mux(is_fresh, start, total) >> shift) + tile_sum
    is_end = p.past(step.sum_last)
    p.assume(~is_end | (new <= most))
    with m.If(is_end):
        m.d.sync += total.eq(new)
    is_final = p.past(step.sum_last & step.sum_final, 4)
    p.claim(lane.total_valid == is_final)
    p.claim(lane.total == Mux(is_final, p.past(total, 2), 0))
    p.claim(lane.final_maximum == Mux(is_final, p.past(first_maximum, 3), 0))
    p.claim(~step.sum_first | lane.rescale_valid & (lane.rescale == rescale))

    p.lemma(inside["total"] == p.past(total))
    p.lemma(inside["initial"] == start)
    p.lemma(inside["first_maximum"] == first_maximum)
    p.lemma((inside["shift"] == shift) & (inside["fresh"] == is_fresh))
    p.lemma(~in_tile | step.sum_first | (inside["partial"] == tile_sum))
    p.lemma(~in_tile | step.sum_first | (tile_sum < 1 << WIDTHS.probability))


@prove(
    AccumulatorLane,
    {
        "is not rescaled": lambda: mutant(AccumulatorLane, ("shift.eq(read.data)", "shift.eq(0)")),
        "takes the shift of the tile before": lambda: mutant(
            AccumulatorLane,
            ("read.addr.eq(taken)", "read.addr.eq(Mux(taken == 0, depth - 1, taken - 1))"),
        ),
        "takes the shift at once": lambda: mutant(
            AccumulatorLane,
            ('self.read_step.first, 2, "first")', 'self.read_step.first, 1, "first")'),
        ),
        "does not start anew": lambda: mutant(
            AccumulatorLane, ('clear=delayed(m, self.read_step.fresh, 3, "fresh")', "clear=None")
        ),
        "drain reads the other bank": lambda: mutant(
            AccumulatorLane,
            ("Mux(drain_bank, outputs[1], outputs[0])", "Mux(drain_bank, outputs[0], outputs[1])"),
        ),
    },
    depth=9,
    trace=22,
)
def accumulator(p: Proof, component: Any) -> None:
    """``O' = floor(O / 2^s) + partial`` for any one accumulator, which the drain then reads."""
    views = []

    def ram_with_view(shape: Any, depth: int) -> Any:
        store = ram(shape, depth)
        views.append(store.read_port(domain="comb"))
        return store

    lane = mutant(component, ram=ram_with_view)(CONFIG)
    m, inside, step = p.m, p.add(lane), lane.read_step
    p.never_reset()
    p.assume(~lane.is_product)
    m.d.comb += lane.write_step.eq(p.past(step, WRITE_LAG))
    # The shift comes at the tile's row sum, so many clocks before its first accumulator.
    timing = Timing(CONFIG)
    ahead = timing.partial - ACCUMULATOR_READ - timing.probability
    p.assume((step.valid & step.first) == p.past(lane.rescale_valid, ahead))
    spacing = max(CONFIG.key_rows, CONFIG.tile_latency)
    for clocks in range(1, spacing):
        p.assume(~(lane.rescale_valid & p.past(lane.rescale_valid, clocks)))
    # The tile's steps have one shift.
    shift = Signal(SHIFT_BITS)
    shift_now = Mux(step.first, p.past(lane.rescale, ahead), shift)
    with m.If(step.valid):
        m.d.sync += shift.eq(shift_now)

    bank, index = p.constant(1, "tracked_bank"), p.constant(len(step.index), "tracked_index")
    is_read = step.valid & (step.bank == bank) & (step.index == index)
    for clocks in range(1, CONFIG.tile_latency):
        p.assume(~is_read | ~p.past(is_read, clocks))
    is_state = lane.state_write & (lane.state_bank == bank) & (lane.state_index == index)
    adds = Cat(p.past(step.valid & (step.bank == bank), i) for i in range(WRITE_LAG + 1)).any()
    p.assume(~lane.state_write | (lane.state_bank != bank) | ~adds)

    is_start = ~p.past(1)
    p.hint((bank == 0) & (index == 0) & (lane.drain_bank == 0) & (lane.drain_index == 0))
    p.hint(lane.state_write == is_start)
    p.hint(lane.rescale_valid == (is_start | p.past(is_start, spacing)))
    output = Signal.like(lane.state)
    rescaled = Mux(step.fresh, 0, output >> shift_now)
    with m.If(p.past(is_read, WRITE_LAG)):
        m.d.sync += output.eq(p.past(rescaled, WRITE_LAG) + p.past(lane.partial))
    with m.Elif(is_state):
        m.d.sync += output.eq(lane.state)
    is_drained = (lane.drain_bank == bank) & (lane.drain_index == index)
    is_drained &= ~(step.valid & (step.bank == bank))
    p.claim(~p.past(is_drained, 3) | (lane.drained == p.past(output, 3)))

    m.d.comb += [view.addr.eq(index) for view in views]
    p.lemma(Mux(bank, views[1].data, views[0].data) == output)
    p.lemma(inside["_shift.shift"] == p.past(shift, 2))
    depth = inside["_shift.depth"]
    waiting = sum(p.past(lane.rescale_valid, clocks) for clocks in range(1, ahead + 3))
    place, taken = inside["_shift.place"], inside["_shift.taken"]
    p.lemma((place < depth) & (taken < depth))
    p.lemma((taken + waiting == place) | (taken + waiting == place + depth))
