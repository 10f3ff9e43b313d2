"""What docs/protocol.md says of a packet, as hardware beside the front end."""

from __future__ import annotations

from typing import NamedTuple

from amaranth.hdl import Cat, Mux, Signal, Value
from amaranth.lib import data

from celosia_hw import VERSION
from celosia_hw.config import AcceleratorConfig
from celosia_hw.packets import header_layout
from celosia_hw.protocol import (
    ATTEND_FIELDS,
    COMMAND_BYTES,
    COUNTER_NAMES,
    EXTENSION_FIELDS,
    ErrorCode,
    Opcode,
    Reply,
    appended_key_words,
    bias_tile_words,
    identity_payload,
    interval_words,
    key_tile_words,
    mask_tile_words,
    query_tile_words,
    state_words,
    tile_list_words,
)
from formal.prover import total

__all__ = ["Packet", "few", "packet", "reply_words"]


class Packet(NamedTuple):
    """The words of a packet so far, and what the protocol says about them."""

    header: data.View
    words: Value
    first_bad: Value
    header_words: Value
    is_legal: Value
    answer: Value
    """Opcode of the reply without an error, or 0."""
    expected: Value
    """Words that it must have."""
    code: Value
    """Of the error, were this its end."""
    mask_tiles: Value
    """Mask tiles of a job."""
    reaches_masks: Value
    """Whether it is an ATTEND whose mask tiles have begun."""
    has_job: Value
    """Whether it makes a job, be there an error or not."""


def few(number: Value, limit: int) -> Value:
    """A number that is no larger, in as few bits as it needs."""
    return number[: limit.bit_length()]


def packet(config: AcceleratorConfig, bits: Signal, words: Value, first_bad: Value) -> Packet:
    """The packet at hand, were it to end here.

    Parameters
    ----------
    bits : Signal
        Both halves of the header, as far as they have come.
    words, first_bad : Value
        How many words there were, and how many before the first one with missing bytes.
    """
    first = data.View(header_layout(ATTEND_FIELDS), bits[: 8 * COMMAND_BYTES])
    is_extended = (first.opcode == Opcode.ATTEND) & first.extended
    layout = header_layout({**ATTEND_FIELDS, **EXTENSION_FIELDS})
    second = Mux(is_extended, bits[8 * COMMAND_BYTES :], 0)
    header = data.View(layout, Cat(first, second))
    is_ = {opcode: header.opcode == opcode for opcode in Opcode}
    is_attend, is_multiply, is_append = (
        is_[opcode] for opcode in (Opcode.ATTEND, Opcode.MULTIPLY, Opcode.APPEND)
    )
    has_masks = is_attend & (header.mask | header.bias)
    has_payload = is_[Opcode.LOAD] | is_attend | is_multiply | is_append
    known = Cat(is_.values()).any()

    half = config.words(COMMAND_BYTES)
    header_words = Mux(is_extended, 2 * half, half)
    # As far as they are legal.
    most_dims, most_tiles = config.accumulator_depth, config.slots
    dims = few(header.last_dim + 1, most_dims), few(header.last_value_dim + 1, most_dims)
    tiles, listed = few(header.tiles, most_tiles), few(header.listed, most_tiles)
    before_masks = (
        Mux(header.intervals, interval_words(config), 0)
        + query_tile_words(config, dims[0])
        + tile_list_words(config, listed)
        + Mux(header.load_state, state_words(config, dims[1]), 0)
    )
    mask_words = Mux(header.mask, mask_tile_words(config), 0) + Mux(
        header.bias, bias_tile_words(config), 0
    )
    mask_tiles = Mux(listed == 0, tiles, listed + 1)
    payload_words = {
        Opcode.LOAD: tiles * key_tile_words(config, *dims),
        Opcode.APPEND: appended_key_words(config, *dims),
        Opcode.MULTIPLY: dims[0] * config.words(config.query_lanes),
        Opcode.ATTEND: before_masks + mask_tiles * mask_words,
    }
    expected = header_words + total(Mux(is_[o], count, 0) for o, count in payload_words.items())

    first_tiles = Mux(is_append, 1, header.tiles)
    is_legal = (header.last_dim < config.max_head_dim) & (header.slot + first_tiles <= config.slots)
    rows = Mux(is_multiply, config.accumulator_depth, config.max_head_dim)
    is_legal &= header.last_value_dim < rows
    is_legal &= Mux(is_append, header.tiles < config.key_rows, header.tiles != 0)
    is_legal &= ~is_multiply | (header.tiles <= config.product_tiles)
    reserved = header.reserved.any() | header.extension_reserved.any()
    in_order = (header.listed == 0) | (header.listed < header.tiles)
    is_legal &= ~is_attend | ~reserved & in_order

    code = ErrorCode.NONE
    for condition, error in reversed(
        (
            (first_bad < header_words, ErrorCode.BAD_KEEP),
            (words < header_words, ErrorCode.TRUNCATED),
            (~known, ErrorCode.UNKNOWN_OPCODE),
            (has_payload & ~is_legal, ErrorCode.BAD_FIELD),
            (first_bad < expected, ErrorCode.BAD_KEEP),
            (words < expected, ErrorCode.TRUNCATED),
            (words > expected, ErrorCode.OVERLONG),
        )
    ):
        code = Mux(condition, error, code)
    # Mask tiles that are missing are taken for zeros.
    job_words = header_words + before_masks
    reaches_masks = is_legal & has_masks & (words > job_words) & (first_bad >= job_words)
    answers = {
        Opcode.IDENTIFY: Reply.IDENTITY,
        Opcode.COUNTERS: Reply.STATISTICS,
        Opcode.RESET: Reply.IDENTITY,
    }
    is_query = is_attend | is_multiply
    return Packet(
        header,
        words,
        first_bad,
        header_words,
        is_legal,
        total(Mux(is_[opcode], reply, 0) for opcode, reply in answers.items()),
        expected,
        code,
        Mux(has_masks, mask_tiles, 0),
        reaches_masks,
        is_query & (code == ErrorCode.NONE) | reaches_masks,
    )


def reply_words(config: AcceleratorConfig) -> dict[Reply, int]:
    """Words of the payload of each reply."""
    return {
        Reply.IDENTITY: config.words(len(identity_payload(config, VERSION))),
        Reply.STATISTICS: config.words(8 * len(COUNTER_NAMES)),
        Reply.ERROR: 0,
    }
