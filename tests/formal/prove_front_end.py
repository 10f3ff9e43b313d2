"""The front end takes or rejects every sequence of words, and answers what it must."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from amaranth.hdl import Array, Cat, Mux, Signal, Value
from amaranth.lib import data

from celosia_hw.arithmetic import MASK_TILES, OUTPUT_PARTS, SUM_PARTS
from celosia_hw.config import AcceleratorConfig
from celosia_hw.front_end import FrontEnd
from celosia_hw.packets import header_layout
from celosia_hw.payload import QUERY_BUFFERS, PayloadWriter, Target, _words
from celosia_hw.protocol import (
    ATTEND_FIELDS,
    COMMAND_BYTES,
    EXTENSION_FIELDS,
    REPLY_BYTES,
    REPLY_FIELDS,
    ErrorCode,
    Opcode,
    Reply,
    bias_tile_words,
    encode_header,
    mask_tile_words,
)
from celosia_hw.sequencer import ACCUMULATOR_BANKS
from formal.packet_rules import Packet, few, packet, reply_words
from formal.prove_credits import fits_clocks
from formal.prover import Inside, Proof, keeps_to, mutant, prove, total

CONFIG = AcceleratorConfig(
    key_rows=2,
    query_lanes=3,
    max_head_dim=5,
    max_keys=2,
    key_banks=2,
    max_sequence=4,
    link_bytes=4,  # rows of queries, and elements of a key, in several words
    normalizer_lanes=1,
)
WIDE = dataclasses.replace(CONFIG, link_bytes=16, max_head_dim=10, max_inner=10)
"""Packets of few words; dimensions longer than the shortest key tile."""
MAX_ACTIVE = ACCUMULATOR_BANKS + 1
"""Query tiles between sequencer and drain, as `prove_credits.accumulator_banks` proves."""


BARE = AcceleratorConfig(
    key_rows=2,
    query_lanes=2,
    max_head_dim=1,
    max_keys=2,
    key_banks=1,
    max_sequence=2,
    link_bytes=32,
)
"""The least there is, in which a broken one soon fails."""


class Broken(NamedTuple):
    """A front end, the configuration that it is tried with, and how packets begin in the trace."""

    component: Any
    config: AcceleratorConfig
    header: list[bytes]


def broken(
    config: AcceleratorConfig,
    *edits: tuple[str, str],
    header: list[bytes] | None = None,
    **names: Any,
) -> Broken:
    return Broken(mutant(FrontEnd, *edits, **names), config, header or [])


def attend(opcode: int, **fields: int) -> bytes:
    return encode_header(ATTEND_FIELDS, COMMAND_BYTES, opcode=opcode, tiles=1, **fields)


def hint_header(p: Proof, inside: Inside, header: list[bytes]) -> None:
    word, place = inside["word"].data[: 8 * COMMAND_BYTES], inside["elaborate.place"]
    for i, content in enumerate(header):
        is_there = inside.state("HEADER") & inside["taken"] & (place == i)
        p.hint(~is_there | (word == int.from_bytes(content, "little")))


class Owed(NamedTuple):
    """What the pipeline has got from the front end and not yet given back."""

    queued: Signal
    buffered: Signal
    unfinished: Signal
    masks: Signal
    reading: list[Signal]


def pipeline(p: Proof, dut: FrontEnd, banks: int) -> Owed:
    """Anything that gives back only what it has got, at any time or never.

    A query tile is taken from the queue, gives its query buffer and its banks back in any order,
    and is read out.
    """
    m, job, take = p.m, dut.job, p.free(1, "take")
    queued = p.count(job.valid, take, QUERY_BUFFERS, "queued")
    m.d.comb += job.ready.eq(queued != QUERY_BUFFERS)
    active = p.count(take, dut.tile_done, MAX_ACTIVE, "active")
    p.assume(~take | (queued != 0) & (active != MAX_ACTIVE))
    p.assume(~dut.tile_done | (active != 0))
    unread = p.count(take, dut.buffer_done, QUERY_BUFFERS, "unread")
    p.assume(~dut.buffer_done | (unread != 0))
    masks = p.count(dut.mask_arrived, dut.mask_done, MASK_TILES, "masks")
    p.assume(~dut.mask_done | (masks != 0))
    p.lemma((queued <= QUERY_BUFFERS) & (active <= MAX_ACTIVE))
    unfinished = queued + active
    reading = []
    for bank in range(banks):
        up, down = job.valid & job.payload.banks[bank], dut.banks_done[bank]
        count = p.count(up, down, 2 * MAX_ACTIVE, f"reads_{bank}")
        p.assume(~down | (count != 0))
        # It has read its banks before it is read out.
        p.assume(count + up - down <= unfinished + job.valid - dut.tile_done)
        reading.append(count)
    return Owed(queued, queued + unread, unfinished, masks, reading)


@prove(
    Broken(FrontEnd, WIDE, []),
    {
        "does not wait for a query buffer": lambda: broken(
            BARE,
            ("Mux(is_query, buffers == QUERY_BUFFERS, ", "Mux(is_query, 0, "),
            header=[attend(Opcode.MULTIPLY)],
        ),
        "query buffer does not come back": lambda: broken(
            BARE,
            ("buffers + committed - self.buffer_done", "buffers + committed"),
            header=[attend(Opcode.MULTIPLY)],
        ),
        "query tile does not end": lambda: broken(
            WIDE, ("unfinished + self.job.valid - self.tile_done", "unfinished + self.job.valid")
        ),
        "query tile reads all banks": lambda: broken(
            WIDE, ("(committed & banks[bank])", "committed")
        ),
        "mask tile does not wait for room": lambda: broken(
            WIDE,
            ("writer.is_mask & ~has_room", "0"),
            MASK_TILES=1,
            header=[
                encode_header(
                    ATTEND_FIELDS, COMMAND_BYTES, opcode=Opcode.ATTEND, tiles=2, extended=1
                ),
                encode_header(EXTENSION_FIELDS, COMMAND_BYTES, mask=1),
            ],
        ),
    },
    depth=2,
    trace=20,
)
def front_end_counters(p: Proof, one: Broken) -> None:
    """What is free is counted right, and every wait is for something that is on its way."""
    dut = one.component(one.config)
    inside = p.add(dut)
    p.hint(dut.command.valid & ~dut.command.payload.bad)
    hint_header(p, inside, one.header)
    owed, job = pipeline(p, dut, one.config.key_banks), dut.job
    buffers, waiting = inside["buffers"], inside["waiting"]
    unfinished, reading = inside["_unfinished.unfinished"], inside.line("reading")
    p.claim(keeps_to(QUERY_BUFFERS, buffers, job.valid, dut.buffer_done))
    room = 1 << len(inside["mask_place"])
    p.claim(keeps_to(room, waiting, dut.mask_arrived, dut.mask_done))
    p.claim(keeps_to((1 << len(unfinished)) - 1, unfinished, job.valid, dut.tile_done))
    for bank, count in enumerate(reading):
        up, down = job.valid & job.payload.banks[bank], dut.banks_done[bank]
        p.claim(keeps_to((1 << len(count)) - 1, count, up, down))
    # The queue has room, and the sequencer relies on the second (`prove_credits.assume_jobs`).
    p.claim(~job.valid | job.ready)
    p.claim(~job.valid | fits_clocks(job.payload, one.config))

    in_judge, in_payload = inside.state("JUDGE"), inside.state("PAYLOAD")
    is_query, header = inside["is_query"], inside["header"]
    writer, walk = inside["writer"], inside.submodule("writer")
    target = walk["elaborate.target"]
    is_mask = target >= Target.MASK
    was_crowded = Signal()
    p.m.d.sync += was_crowded.eq(owed.unfinished > 1)
    with p.m.If(in_judge & inside["has_payload"] & inside["blocked"]):
        read = Cat(count != 0 for count in owed.reading)
        p.claim(Mux(is_query, owed.buffered == QUERY_BUFFERS, (read & inside["banks"]).any()))
    with p.m.If((in_payload | inside.state("FILL")) & inside["waits"]):
        p.claim(Mux(is_mask, owed.masks == room, was_crowded))
    is_state = (target == Target.STATE_SUMS) | (target == Target.STATE_OUTPUTS)
    with p.m.If(in_payload & inside["step"] & is_state):
        p.claim(owed.unfinished <= 1)
    with p.m.If(in_judge & ~inside["idle"]):
        p.claim((owed.unfinished != 0) | ~dut.results_sent)

    p.lemma(buffers == owed.buffered)
    p.lemma(waiting == owed.masks)
    p.lemma(unfinished == owed.unfinished)
    p.lemma((room == MASK_TILES) & (waiting <= room))
    p.lemma(buffers <= QUERY_BUFFERS)
    for count, owed_count in zip(reading, owed.reading, strict=True):
        p.lemma(count == owed_count)
        p.lemma(count <= unfinished)
    p.lemma(total(inside["opcodes"].values()) <= 1)
    opcode_lemmas(p, inside)
    with p.m.If(in_payload):
        p.lemma(inside["has_payload"] & writer.present.bit_select(target, 1))
    with p.m.If(in_payload | has_begun(inside)):
        p.lemma(~is_query | inside["has_masks"] | (walk["tiles_left"] == 0))
    p.lemma(~inside.state("FILL") | is_mask & inside["has_masks"])
    present_lemmas(p, dut, inside)
    p.lemma(inside["has_room"] == (waiting != MASK_TILES))
    (is_crowded,) = inside.line("is_crowded")
    p.lemma(is_crowded == was_crowded)
    is_waiting = in_judge | in_payload & is_query & ~is_mask
    p.lemma(~(inside.state("PREPARE") | is_waiting) | is_crowded | (owed.unfinished <= 1))
    is_early = [inside.state(name) for name in ("DECODE", "PREPARE", "JUDGE")]
    p.lemma(~job.valid | ~Cat(is_early).any())
    with p.m.If(in_payload & is_query & ~is_mask):
        p.lemma(~job.valid & (buffers != QUERY_BUFFERS))
    p.lemma(~job.valid | (buffers != QUERY_BUFFERS))
    most = one.config.max_head_dim
    fits = fits_clocks(job.payload, one.config) & (header.last_dim < most)
    fits &= job.payload.product | (header.last_value_dim < most)
    is_judged = (inside.state("PREPARE") | in_judge) & ~inside["bad_field"]
    p.lemma(~(is_judged | in_payload | job.valid) | fits)


def opcode_lemmas(p: Proof, inside: Inside) -> None:
    """What is known of the opcode by the time that it is judged."""
    opcodes = inside["opcodes"]
    payloads = Opcode.LOAD, Opcode.APPEND, Opcode.ATTEND, Opcode.MULTIPLY
    with p.m.If(Cat(inside.state(name) for name in ("PREPARE", "JUDGE", "PAYLOAD")).any()):
        p.lemma(inside["has_payload"] == Cat(opcodes[one] for one in payloads).any())
        p.lemma(inside["unknown"] == ~Cat(opcodes.values()).any())


def has_begun(inside: Inside) -> Value:
    """The writer is at the first word of a payload that has not been judged yet."""
    return inside.state("JUDGE") & ~inside.submodule("writer")["elaborate.start"]


def present_lemmas(p: Proof, dut: FrontEnd, inside: Inside) -> None:
    """The writer learns in time what is present, and keeps what is still to come."""
    names = inside["header"], inside["is_attend"], inside["is_multiply"]
    present, state = dut._present(*names), inside.state
    writer, walk = inside["writer"], inside.submodule("writer")
    walks = state("PAYLOAD") | state("FILL")
    p.lemma(~(state("PREPARE") | state("JUDGE") | walks) | (writer.present == present))
    start = walk["elaborate.start"]
    target = walk["elaborate.target"]
    p.lemma(inside["filling"] == state("FILL"))
    p.lemma(~start | state("JUDGE") & (walk["pending"] == present))
    with p.m.If(has_begun(inside)):
        p.lemma(present.bit_select(target, 1) & (present & ((1 << target) - 1) == 0))
    with p.m.If(has_begun(inside) | walks):
        pending = present & ~((2 << target) - 1)
        p.lemma(walk["pending"] == Mux(pending == 0, walk["again"], pending))
        p.lemma(walk["is_last"] == (pending == 0))
        is_mask = target >= Target.MASK
        p.lemma(writer.is_mask == is_mask)
        p.lemma(
            writer.is_state == ((target == Target.STATE_SUMS) | (target == Target.STATE_OUTPUTS))
        )
        is_row = (target == Target.KEYS) | (target == Target.VALUES)
        p.lemma(walk["by_element"] == inside["is_append"] & is_row)
        p.lemma(walk["ends_job"] == (~is_mask & ~pending[: Target.MASK].any()))
        p.lemma(walk["is_last_tile"] == (walk["tiles_left"] == 0))
        for place, last in walk.named("last_(part|word|row)").items():
            p.lemma(walk[place] <= last)
            p.lemma(walk[f"{place}_end"] == (walk[place] == last))


@prove(
    Broken(FrontEnd, CONFIG, []),
    {
        "takes a packet that goes on": lambda: broken(
            BARE, ("with m.Elif(~ended):", "with m.Elif(0):")
        ),
        "takes a header that lacks bytes": lambda: broken(
            BARE,
            ("m.d.sync += [place.eq(0), error.eq(ErrorCode.BAD_KEEP)]", "m.d.sync += place.eq(0)"),
        ),
        "takes a bad query tile": lambda: broken(
            BARE,
            ("is_query & ~word.bad)", "is_query)"),
            header=[attend(Opcode.MULTIPLY)],
        ),
        "ends a payload early": lambda: broken(
            BARE,
            PayloadWriter=mutant(
                PayloadWriter, ("self.end.eq(tile_end & ", "self.end.eq(target_end & ")
            ),
        ),
        "takes any last_dim": lambda: broken(BARE, ("(header.last_dim >= dims)", "0")),
        "forgets the tag": lambda: broken(
            BARE, ("responder.tag.eq(header.tag)", "responder.tag.eq(0)")
        ),
        "fills one word": lambda: broken(
            BARE,
            ("with m.If(step & writer.end):", "with m.If(step):"),
            header=[
                attend(Opcode.ATTEND, extended=1),
                encode_header(EXTENSION_FIELDS, COMMAND_BYTES, mask=1, bias=1),
            ],
        ),
        "never skips": lambda: broken(
            BARE, ("m.d.comb += take.eq(~ended)", "m.d.comb += take.eq(0)"), header=[attend(0)]
        ),
        "judges for ever": lambda: broken(
            BARE,
            ("with m.Elif(~opcodes[Opcode.RESET] | idle):", "with m.Elif(0):"),
            header=[attend(Opcode.IDENTIFY)],
        ),
    },
    depth=2,
    trace=16,
)
def front_end_answers(p: Proof, one: Broken) -> None:
    """Each packet has the outcome that the protocol says, and the front end is ready for the next.

    Counted from the words that the parser takes: `prove_streams.register_slice` is about the
    registers before it.
    """
    config = one.config
    dut = one.component(config)
    m, inside = p.m, p.add(dut)
    chunk = min(config.link_bits, 8 * COMMAND_BYTES)
    taken, word = inside["taken"], inside["word"]

    # The packet at hand; `due`: its last word has been taken, and no verdict has been given.
    words = Signal(range(NEVER + 1))
    first_bad = Signal(range(NEVER + 1), init=NEVER)
    bits = Signal(2 * 8 * COMMAND_BYTES)
    due = Signal()
    at_home = inside.state("HEADER") & (inside["elaborate.place"] == 0)
    with m.If(due & at_home):
        m.d.sync += [words.eq(0), first_bad.eq(NEVER), due.eq(0)]
    with m.If(taken):
        p.claim(~due | at_home)
        number = Mux(due, 0, words)
        m.d.sync += [words.eq(Mux(number == NEVER, NEVER, number + 1)), due.eq(word.last)]
        with m.If(word.bad & (due | (first_bad == NEVER))):
            m.d.sync += first_bad.eq(number)
        with m.If(number == 0):
            m.d.sync += bits.eq(word.data[:chunk])
        with m.Elif(number < len(bits) // chunk):
            m.d.sync += bits.word_select(number, chunk).eq(word.data)
    p.hint(dut.command.valid & dut.reply.ready)
    hint_header(p, inside, one.header)
    at_hand = packet(config, bits, words, first_bad)

    # What has come of it.
    outcome = outcomes(p, dut, due & at_home)
    with m.If(due & at_home):
        is_error = at_hand.code != ErrorCode.NONE
        p.claim(outcome.errors == is_error)
        p.claim(outcome.answers == (~is_error & (at_hand.answer != 0)))
        p.claim(outcome.jobs == at_hand.has_job)
        p.claim(outcome.mask_tiles == Mux(at_hand.has_job, at_hand.mask_tiles, 0))
    reply = dut.reply
    with m.If(reply.valid):
        p.claim(due)
    with m.If(reply.valid & outcome.is_first):
        sent = data.View(header_layout(REPLY_FIELDS), reply.payload.data[: 8 * REPLY_BYTES])
        is_error = at_hand.code != ErrorCode.NONE
        p.claim(sent.opcode == Mux(is_error, Reply.ERROR, at_hand.answer))
        p.claim((sent.code == at_hand.code) & (sent.tag == at_hand.header.tag))

    stuck = clocks_stuck(p, dut, inside)
    p.claim(stuck <= longest(config))

    present_lemmas(p, dut, inside)
    front_end_lemmas(p, inside, at_hand, bits, due, outcome, stuck)


def clocks_stuck(p: Proof, dut: FrontEnd, inside: Inside) -> Signal:
    """Clocks since a word was taken or could have been, but those in which it must wait.

    That it waits for nothing that never comes is for `front_end_counters`.
    """
    m, state, ended = p.m, inside.state, inside["ended"]
    takes = state("PAYLOAD") | state("SKIP") & ~ended
    is_reset = inside["opcodes"][Opcode.RESET]
    must_wait = (
        (takes & ~inside["buffer"].o.valid)
        | (state("JUDGE") & inside["has_payload"] & inside["blocked"])
        | (state("JUDGE") & is_reset & ~inside["idle"])
        | ((state("PAYLOAD") | state("FILL")) & inside["waits"])
        | (state("REPLY") & dut.reply.valid & ~dut.reply.ready)
    )
    stuck = Signal(range(64))
    with m.If(inside["taken"] | state("HEADER")):
        m.d.sync += stuck.eq(0)
    with m.Elif(~must_wait):
        m.d.sync += stuck.eq(stuck + 1)
    return stuck


def longest(config: AcceleratorConfig) -> int:
    """Clocks from the end of a packet to the next, or from a word to the next."""
    # The header is judged, and the longest reply sent.
    reply = 5 + max(reply_words(config).values())
    # Mask tiles are filled, the rest is skipped, and an error is sent.
    return max(reply, config.slots * (mask_tile_words(config) + bias_tile_words(config)) + 2)


NEVER = (1 << 7) - 1
"""More words than any good packet has."""


class Outcomes(NamedTuple):
    """Replies, jobs and mask tiles since the last verdict, this clock's job among them."""

    errors: Value
    answers: Value
    jobs: Value
    mask_tiles: Value
    is_first: Value
    """The next word of a reply is its first."""
    is_error: Value
    """The reply at hand."""


def outcomes(p: Proof, dut: FrontEnd, verdict: Value) -> Outcomes:
    m, reply = p.m, dut.reply
    errors, answers, jobs, tiles = Signal(2), Signal(2), Signal(2), Signal(4)
    is_first, was_error = Signal(init=1), Signal()
    is_error = Mux(is_first, reply.payload.data[:8] == Reply.ERROR, was_error)
    with m.If(reply.valid & reply.ready):
        m.d.sync += [is_first.eq(reply.payload.last), was_error.eq(is_error)]
        with m.If(reply.payload.last):
            m.d.sync += [errors.eq(errors + is_error), answers.eq(answers + ~is_error)]
    jobs_now = (jobs + dut.job.valid)[:2]
    m.d.sync += [jobs.eq(jobs_now), tiles.eq(tiles + dut.mask_arrived)]
    with m.If(verdict):
        m.d.sync += [errors.eq(0), answers.eq(0), jobs.eq(0), tiles.eq(0)]
    return Outcomes(errors, answers, jobs_now, tiles, is_first, is_error)


def front_end_lemmas(
    p: Proof,
    inside: Inside,
    at_hand: Packet,
    bits: Signal,
    due: Signal,
    outcome: Outcomes,
    stuck: Signal,
) -> None:
    """What its state machine knows of the packet at hand."""
    state = inside.state
    words, header, code = at_hand.words, at_hand.header, at_hand.code
    place, error, ended = inside["elaborate.place"], inside["error"], inside["ended"]
    opcodes, raw = inside["opcodes"], inside["raw"]
    none = ErrorCode.NONE
    p.lemma(~due | (words != 0))
    p.lemma((at_hand.first_bad == NEVER) | (at_hand.first_bad < words))
    link = CONFIG.link_bits
    for i in range(len(raw) // link):
        both = (raw.word_select(i, link), Value.cast(header).word_select(i, link))
        p.lemma((words == 0) | (words > i) | (bits.word_select(i, link) == 0))
        come = (words > i) if i < CONFIG.words(COMMAND_BYTES) else (words != 0)
        p.lemma(~come | (at_hand.first_bad < i) | (both[0] == both[1]))
    with p.m.If(words != 0):
        for opcode, flag in opcodes.items():
            p.lemma(flag == (header.opcode == opcode))
    opcode_lemmas(p, inside)
    at_rest = state("HEADER") & due
    p.lemma(at_rest | (outcome.errors == 0) & (outcome.answers == 0))
    # The responder has the next word of a reply at hand.
    sending = total(Mux(inside["reply"] == r, n, 0) for r, n in reply_words(CONFIG).items())
    chosen, reply = inside.submodule("responder")["word"], inside["responder"].reply
    is_last = reply.valid & reply.payload.last
    sent = Mux(is_last, sending, chosen - reply.valid)
    p.lemma(Mux(reply.valid & ~is_last, chosen != 0, chosen == 0))
    p.lemma(outcome.is_first == (sent == 0))
    p.lemma(chosen <= sending)
    p.lemma(state("REPLY") | outcome.is_first & ~reply.valid)
    is_good = at_hand.first_bad == NEVER

    with p.m.If(state("HEADER")):
        p.lemma(Mux(due, place == 0, (place == words) & (words < at_hand.header_words) & is_good))
        p.lemma(due | (outcome.jobs == 0))
    with p.m.Else():
        p.lemma((words != 0) & (words <= NEVER))
        p.lemma(place == 0)
    is_early = state("DECODE") | state("PREPARE") | state("JUDGE")
    with p.m.If(is_early):
        p.lemma((words == at_hand.header_words) & is_good & (ended == due) & (error == none))
        p.lemma(outcome.jobs == 0)
    with p.m.If(state("PREPARE") | state("JUDGE")):
        p.lemma(~inside["has_payload"] | (inside["bad_field"] == ~at_hand.is_legal))
        p.lemma(inside["unknown"] | inside["has_payload"] | (at_hand.answer != 0))

    walk = inside.submodule("writer")
    target = walk["elaborate.target"]
    is_mask = target >= Target.MASK
    left, is_sound = words_left(inside, walk)
    with p.m.If(has_begun(inside) & inside["has_payload"] & at_hand.is_legal):
        p.lemma((words + left == at_hand.expected) & is_sound & ~is_mask)
        p.lemma((walk["row"] == 0) & (walk["tiles_left"] == inside["writer"].last_tile))
    with p.m.If(state("PAYLOAD")):
        p.lemma(inside["has_payload"] & at_hand.is_legal & is_good & ~due & (error == none))
        p.lemma((words >= at_hand.header_words) & (words + left == at_hand.expected))
        p.lemma(is_sound & (outcome.jobs == is_mask))
        p.lemma(outcome.mask_tiles == Mux(is_mask, at_hand.mask_tiles - 1 - walk["tiles_left"], 0))
    with p.m.If(state("FILL")):
        p.lemma(is_sound & is_mask & (outcome.jobs == 1) & at_hand.has_job)
        p.lemma(outcome.mask_tiles == at_hand.mask_tiles - 1 - walk["tiles_left"])
    # It goes on where it should have ended.
    is_overlong = ~due & (error == ErrorCode.OVERLONG) & (code == none)
    with p.m.If(state("FILL") | state("SKIP")):
        p.lemma((ended == due) & (error != none) & (due | (error != ErrorCode.TRUNCATED)))
        p.lemma((error == code) | is_overlong)
    with p.m.If(state("SKIP")):
        p.lemma(outcome.jobs == Mux(is_overlong, at_hand.reaches_masks, at_hand.has_job))
    with p.m.If(state("REPLY")):
        p.lemma(due & (error == code))
        p.lemma((code != none) | (at_hand.answer != 0))
        p.lemma(outcome.is_first & ~reply.valid | (outcome.is_error == (code != none)))
    with p.m.If(state("REPLY")):
        p.lemma(outcome.jobs == at_hand.has_job)

    with p.m.If(is_early | state("HEADER") & ~due):
        p.lemma(outcome.mask_tiles == 0)
    with p.m.If(state("SKIP") | state("REPLY")):
        p.lemma(outcome.mask_tiles == Mux(outcome.jobs == 1, at_hand.mask_tiles, 0))

    # Clocks to go at most.
    in_word = walk["row"] % CONFIG.link_bytes
    for name, clocks in {
        "DECODE": 5 + max(reply_words(CONFIG).values()),
        "PREPARE": 4 + max(reply_words(CONFIG).values()),
        "JUDGE": 3 + max(reply_words(CONFIG).values()),
        "PAYLOAD": Mux(walk["by_element"], CONFIG.link_bytes - 1 - in_word, 0),
        "FILL": left + 3,
        "SKIP": Mux(ended, 3, 0),
        "REPLY": sending - sent + 2 - reply.valid,
    }.items():
        p.lemma(~state(name) | (stuck + clocks <= longest(CONFIG)))
    names = "HEADER DECODE PREPARE JUDGE PAYLOAD FILL SKIP REPLY"
    p.lemma(Cat(state(name) for name in names.split()).any())


def words_left(inside: Inside, walk: Inside) -> tuple[Value, Value]:
    """Words from the one at hand to the payload's end; whether the walk is where it can be."""
    writer, header = inside["writer"], inside["header"]
    target, present, row = walk["elaborate.target"], writer.present, walk["row"]
    lasts = walk.named("last_(part|word|row)")
    last_word, last_row, last_part = lasts["word"], lasts["row"], lasts["part"]
    words: list[Any] = list(_words(CONFIG))
    words[Target.TILE_LIST] = writer.last_list_word + 1
    rows: list[Any] = [1] * len(Target)
    rows[Target.KEYS] = rows[Target.QUERIES] = few(header.last_dim + 1, CONFIG.max_head_dim)
    rows[Target.VALUES] = few(header.last_value_dim + 1, CONFIG.max_head_dim)
    rows[Target.STATE_OUTPUTS] = rows[Target.VALUES]
    rows[Target.BIAS] = CONFIG.key_rows
    parts = [1] * len(Target)
    parts[Target.STATE_SUMS], parts[Target.STATE_OUTPUTS] = SUM_PARTS, OUTPUT_PARTS

    # A single key has one word of factors, and its elements follow each other.
    is_single, by_element = inside["is_append"], walk["by_element"]
    sizes = []
    for one in Target:
        size = words[one] * rows[one] * parts[one]
        single = CONFIG.words(rows[one]) if one in (Target.KEYS, Target.VALUES) else 1
        sizes.append(Mux(present[one], Mux(is_single, single, size), 0))
    done = (row * (last_word + 1) + walk["word"]) * (last_part + 1) + walk["part"]
    done = Mux(by_element, row // CONFIG.link_bytes, done)
    later = total(Mux(one > target, sizes[one], 0) for one in Target)
    tile = total(Mux(present[Target.KEYS] | (one >= Target.MASK), sizes[one], 0) for one in Target)
    left = Array(sizes)[target] - done + later + walk["tiles_left"] * tile

    is_sound = present.bit_select(target, 1) & (row <= last_row) & (walk["part"] <= last_part)
    is_sound &= walk["word"] <= last_word
    for last, counts in ((last_word, words), (last_row, rows), (last_part, parts)):
        size = Array(Value.cast(count) for count in counts)[target]
        is_sound &= last + 1 == (Mux(is_single, 1, size) if counts is words else size)
    tiles_left, is_early = walk["tiles_left"], inside["is_query"] & (target < Target.MASK)
    is_sound &= Mux(is_early, tiles_left == writer.last_tile, tiles_left <= writer.last_tile)
    return left, is_sound
