"""Queues never overflow or run empty, and the counters of what is free never wrap."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Mux, Signal, Value

from celosia_hw.arithmetic import MASK_TILES
from celosia_hw.config import AcceleratorConfig
from celosia_hw.drain import FIFO_WORDS, Drain, DrainKind
from celosia_hw.normalizer import Normalizer
from celosia_hw.sequencer import ACCUMULATOR_BANKS, QueryJob, Sequencer
from formal.prover import Inside, Proof, is_steady, keeps_to, mutant, prove, total

CONFIG = AcceleratorConfig(
    key_rows=2,
    query_lanes=3,
    max_head_dim=2,
    max_keys=2,
    key_banks=2,
    max_sequence=4,
    link_bytes=4,
    normalizer_lanes=1,  # several groups of lanes to a link word
)

SHORTEST = CONFIG.pitch(1, 1) - 1
"""Clocks of a key tile less one, at least."""
MAX_ACTIVE = ACCUMULATOR_BANKS + 1
"""Query tiles between sequencer and drain: the drain hands a bank back before it has read it."""


def drain_of_any_results(p: Proof, component: Any) -> Any:
    """A drain whose normalizer gives arbitrary results, two clocks later."""
    normalizer = p.stand_in(Normalizer(CONFIG))
    normalizer.latency = 2
    return mutant(component, Normalizer=lambda config: normalizer)(CONFIG)


SHORT = {"FIFO_WORDS": 3, "SELECT": 1}
"""A drain that overflows soon: with the least that its FIFO's buffer allows."""


@prove(
    Drain,
    {
        "header costs nothing": lambda: mutant(
            Drain, ("spend.eq(header | step & ", "spend.eq(step & "), **SHORT
        ),
        "word does not wait for room": lambda: mutant(
            Drain, ("(has_credit | ~is_word_first)", "1"), **SHORT
        ),
        "has sent what is under way": lambda: mutant(
            Drain, ("(credit == FIFO_WORDS) & ~sender.o.valid", "~sender.o.valid"), **SHORT
        ),
        "word gives its room back before it is taken": lambda: mutant(
            Drain,
            ("(results.r_rdy & results.r_en))", "results.r_rdy)"),
            **SHORT,
        ),
    },
    trace=24,
)
def result_queue(p: Proof, component: Any) -> None:
    """A word of the drain always finds room in the FIFO of results."""
    drain = drain_of_any_results(p, component)
    inside = p.add(drain)
    credit, spend, results = inside["credit"], inside["spend"], inside["results"]
    gain = results.r_rdy & results.r_en
    p.claim(~results.w_en | results.w_rdy)
    p.claim(~spend | (credit != 0))
    (has_credit,) = inside.line("has_credit")
    p.lemma(~has_credit | (credit != 0))
    p.claim(spend | ~gain | (credit != results.depth))

    p.hint(~drain.result.ready & (drain.job.payload.kind == DrainKind.PRODUCT))
    # All has been sent when all that was spent has been taken.
    result = drain.result
    owed = p.count(spend, result.valid & result.ready, FIFO_WORDS + 2, "owed")
    p.claim(~drain.sent | (owed == 0))
    sender, is_spare = inside["sender"], inside.submodule("sender")["is_spare"]
    p.lemma(owed == FIFO_WORDS - credit + sender.o.valid + is_spare)
    p.lemma(~is_spare | sender.o.valid & ~sender.i.ready)

    # What has been spent is in the FIFO or on its way there.
    line, beats = inside.submodule("heads")["line"], inside.line("beat")
    assert len(line) == len(beats)
    heads = total(line[i] for i in range(len(line)))
    words = total(beat[0] & beat[1] for beat in beats)
    sub, busy = inside["sub"], inside["busy"]
    p.lemma(
        credit + heads + words + (sub != 0) + inside["_pack.write"] + results.level == FIFO_WORDS
    )
    p.lemma(busy | (sub == 0))
    group, groups, per_word = inside["_read_pass.group"], drain._groups, drain._per_word
    p.lemma((group < groups) & (sub < per_word) & (inside["is_word_first"] == (sub == 0)))
    p.lemma(
        (group == inside["first_group"] + sub) & (inside["is_row_last"] == (group == groups - 1))
    )
    p.lemma(inside["is_word_last"] == (sub == per_word - 1) | (group == groups - 1))
    for i, beat in enumerate(beats):
        p.lemma(~(line[i] & beat[0]))
    inner_level = inside.submodule("results")["inner_level"]
    p.lemma(inner_level < FIFO_WORDS)
    p.lemma(results.r_rdy | (inner_level <= 1))


def assume_jobs(p: Proof, job: Any, config: AcceleratorConfig = CONFIG) -> None:
    """As `prove_streams.job_queue` and `prove_front_end.front_end_counters` prove."""
    p.assume(is_steady(p, job))
    p.assume(~job.valid | fits_clocks(job.payload, config))


def fits_clocks(job: Any, config: AcceleratorConfig) -> Value:
    """Head dimensions are in range, and the clocks of a key tile are enough for both."""
    last = job.last_clock
    fits = (job.last_dim < config.max_head_dim) & (job.last_dim <= last)
    fits &= job.product | (job.last_value_dim < config.max_head_dim) & (job.last_value_dim <= last)
    return fits & (last >= config.pitch(1, 1) - 1)


def is_query_open(p: Proof, job: Any, inside: Inside, config: AcceleratorConfig = CONFIG) -> Value:
    """Whether the last key tile of a query tile is still to come; lemmas about the sequencer."""
    running, clock, tiles_left = inside["running"], inside["clock"], inside["tiles_left"]
    current, paused = inside["elaborate.job"], inside["paused"]
    with p.m.If(running):
        p.lemma(fits_clocks(current, config))
        p.lemma((clock <= current.last_clock) & (inside["is_last"] == (tiles_left == 0)))
        p.lemma((clock == 0) | (inside["before_end"] == current.last_clock - 1))
    p.lemma((current.last_clock == 0) & ~running | (current.last_clock >= SHORTEST))
    p.lemma((inside["before_end"] >= SHORTEST - 1) | ~running & ~inside["may_begin"])
    is_end = running & ~paused & (clock == current.last_clock)
    p.lemma(inside["elaborate.tile_end"] == is_end)
    p.lemma(~paused | running & (clock == 0))
    p.lemma(inside["query_end"] == is_end & inside["is_last"])
    sequencer, is_read = inside["self"], running & ~paused
    p.lemma(sequencer.row_first == is_read & (clock == 0))
    p.lemma(sequencer.row_last == is_read & (clock == current.last_dim))
    p.lemma(~(inside["may_begin"] | inside["may_follow"]) | job.valid)
    return running & ~((tiles_left == 0) & (clock > current.last_dim))


@prove(
    (Sequencer, Drain),
    {
        "starts without a bank": lambda: (
            mutant(Sequencer, ("(credit != 0) & spaced", "spaced"), ACCUMULATOR_BANKS=1),
            Drain,
        ),
        "takes a job that is not there": lambda: (
            mutant(Sequencer, ("self.job.valid & ~start & (credit", "~start & (credit")),
            Drain,
        ),
        "bank is handed back twice": lambda: (
            Sequencer,
            mutant(
                Drain,
                ("self.bank_free.eq(certain | end & ~freed)", "self.bank_free.eq(certain | end)"),
            ),
        ),
    },
    depth=2,
    trace=26,
)
def accumulator_banks(p: Proof, components: Any) -> None:
    """The sequencer's credit of accumulator banks, with what the drain hands back.

    The conductor is between them: of each last key tile it makes a job of the drain, at any time.
    """
    sequencer = components[0](CONFIG)
    drain = drain_of_any_results(p, components[1])
    ahead, behind = p.add(sequencer, "sequencer"), p.add(drain, "drain")
    m, job = p.m, sequencer.job
    assume_jobs(p, job)
    shortest = QueryJob(CONFIG).const({"last_clock": SHORTEST}).as_value()
    p.hint(job.payload.as_value() == shortest)
    m.d.comb += [
        sequencer.bank_free.eq(drain.bank_free),
        sequencer.summed_up.eq(drain.job.valid),
    ]
    tile_end = sequencer.tile_valid & sequencer.tile.last
    under_way = p.count(tile_end, drain.job.valid, 3, "under_way")
    p.assume(~drain.job.valid | (under_way != 0))

    credit, jobs = ahead["credit"], behind["jobs"]
    p.claim(~sequencer.started | job.valid & job.ready)
    p.claim(keeps_to(credit.init, credit, drain.bank_free, sequencer.started))
    p.claim(~drain.job.valid | jobs.w_rdy)
    # As Accelerator._counters counts them; `front_end` relies on it too.
    active = p.count(sequencer.started, drain.tile_done, MAX_ACTIVE, "active")
    p.claim(keeps_to(MAX_ACTIVE, active, sequencer.started, drain.tile_done))

    is_open = is_query_open(p, job, ahead)
    has_ended = behind["has_ended"]
    waiting = is_open + under_way + jobs.level - has_ended
    p.lemma(credit + waiting == ACCUMULATOR_BANKS + behind["freed"])
    in_flight = ahead["in_flight"]
    most = (1 << len(in_flight)) - 1
    p.claim(keeps_to(most, in_flight, sequencer.started, drain.job.valid))
    p.lemma(in_flight == is_open + under_way)
    p.lemma(active == is_open + under_way + jobs.level)
    p.lemma(~behind["freed"] | behind["busy"])
    p.lemma(~(behind["busy"] | has_ended) | jobs.r_rdy)
    p.lemma(~(behind["busy"] & has_ended))


@prove(
    Sequencer,
    {
        "starts without a mask tile": lambda: mutant(
            Sequencer, ("self._masked.eq(~_is_masked(new) | has_mask)", "self._masked.eq(1)")
        ),
        "key tile does not wait": lambda: mutant(
            Sequencer, ("ready = ~_is_masked(job) | (masks != 0)", "ready = 1")
        ),
        "later key tiles use none": lambda: mutant(
            Sequencer, ("following & ready & _is_masked(job))", "0)"), MASK_TILES=1
        ),
    },
    depth=2,
    trace=24,
)
def mask_tiles(p: Proof, component: Any) -> None:
    """The sequencer's credit of mask tiles: a key tile uses the one that has arrived for it."""
    sequencer = component(CONFIG)
    inside = p.add(sequencer)
    job, tile = sequencer.job, sequencer.tile
    assume_jobs(p, job)
    shortest = QueryJob(CONFIG).const({"last_clock": SHORTEST, "mask": 1, "last_tile": 1})
    p.hint(job.payload.as_value() == shortest.as_value())

    # The conductor says when one is no longer needed, after the key tile; the front end sends no
    # more than there is room for, as `prove_front_end.front_end_counters` proves.
    masks, used, arrived = inside["masks"], inside["used"], sequencer.mask_arrived
    room = (1 << len(masks)) // 2
    done = p.free(1, "mask_done")
    read = p.count(sequencer.tile_valid & (tile.mask | tile.bias), done, MASK_TILES, "read")
    kept = p.count(arrived, done, MASK_TILES, "kept")
    p.assume(~done | (read != 0))
    p.assume(~arrived | (kept < room))
    p.claim(keeps_to(room, masks, arrived, used))

    current, clock = inside["elaborate.job"], inside["clock"]
    is_unread = inside["running"] & ~inside["paused"] & (clock <= current.last_dim)
    p.lemma(kept == masks + read + (is_unread & (current.mask | current.bias)))
    p.lemma(kept <= MASK_TILES)
    is_query_open(p, job, inside)


@prove(
    Drain,
    {
        "starts without a row sum": lambda: mutant(
            Drain, ("(is_product | (tiles != 0))", "(is_product | (tiles == tiles))")
        ),
        "product takes a row sum": lambda: mutant(
            Drain, ("reciprocals.complete - (end & ~is_product)", "reciprocals.complete - end")
        ),
        "ends without a job": lambda: mutant(
            Drain, ("jobs.r_rdy & ~has_ended & ", "~has_ended & ")
        ),
    },
    depth=2,
    trace=14,
)
def row_sums(p: Proof, component: Any) -> None:
    """The drain takes a job and, but for products, the row sums of its lanes, when both are there.

    As many query tiles come as `accumulator_banks` proves, and so many row sums, at any time.
    """
    drain = drain_of_any_results(p, component)
    m, inside = p.m, p.add(drain)
    jobs, tiles, end = inside["jobs"], inside["tiles"], inside["elaborate.end"]
    is_product, complete = inside["is_product"], inside["reciprocals"].complete
    waiting = p.count(drain.job.valid, drain.tile_done, MAX_ACTIVE, "waiting")
    p.assume(~drain.job.valid | (waiting != MAX_ACTIVE))
    lane, is_last_lane = Signal(range(CONFIG.query_lanes)), Signal()
    m.d.comb += is_last_lane.eq(drain.reciprocal_valid & (lane == CONFIG.query_lanes - 1))
    with m.If(drain.reciprocal_valid):
        m.d.sync += lane.eq(Mux(is_last_lane, 0, lane + 1))
    taken = end & ~is_product
    sums = p.count(is_last_lane, taken, MAX_ACTIVE, "sums")
    p.assume(~drain.reciprocal_valid | (sums != MAX_ACTIVE))

    p.claim(keeps_to(MAX_ACTIVE, tiles, complete, taken))
    p.claim(~jobs.w_en | jobs.w_rdy)
    p.claim(~jobs.r_en | jobs.r_rdy)
    # One tile after the other, and the same job to its end.
    busy, header = inside["busy"], inside["header"]
    kind = Signal.like(is_product)
    with m.If(header):
        m.d.sync += kind.eq(is_product)
    p.claim(~end | (kind == is_product))

    p.lemma((waiting == jobs.level) & (waiting <= MAX_ACTIVE) & (sums <= MAX_ACTIVE))
    p.lemma(sums == tiles + complete)
    p.lemma(
        ~busy
        | (kind == is_product) & jobs.r_rdy & ~inside["has_ended"] & (is_product | (tiles != 0))
    )
    p.lemma(busy | (inside["sub"] == 0))
    p.lemma(~inside["has_ended"] | jobs.r_rdy)
    fifo = inside.submodule("jobs")
    consume, inside_depth = fifo["consume"], fifo["inner_depth"]
    place = consume + fifo["inner_level"]
    p.lemma((consume < inside_depth) & (fifo["inner_level"] <= inside_depth))
    p.lemma(fifo["produce"] == Mux(place >= inside_depth, place - inside_depth, place))
    stored = inside.named("reciprocals_(lane|place)")
    place, groups = stored["place"], CONFIG.query_lanes
    p.lemma((place < 2 * groups) & (lane == Mux(place >= groups, place - groups, place)))
    p.lemma(stored["lane"] == 0)
