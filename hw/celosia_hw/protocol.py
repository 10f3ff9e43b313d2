"""The wire protocol: packets of link words, defined once for gateware, simulation and driver.

A packet is a header and a payload, each padded with zeros to whole link words; the last word
carries ``last``. Numbers are little-endian. Commands have a header of 16 bytes, replies one of
4 bytes::

    IDENTIFY                                          -> IDENTITY   configuration
    COUNTERS   flags                                  -> STATISTICS counters
    RESET                                             -> IDENTITY   once all else is answered
    LOAD       slot, tiles, head dims, key tiles      (no reply)
    APPEND     slot, key, head dims, one key          (no reply)
    ATTEND     slot, tiles, ..., one query tile       -> RESULT     one result tile
               the same with store_state              -> STATE      sums so far
    MULTIPLY   slot, tiles, ..., queries alone        -> PRODUCT    exact dot products
    anything malformed                                -> ERROR      code

A key tile is R key factors, R value factors (uint16), then for each t below the head dimension a
row of R bytes ``K[0..R-1, t]``, and for each t below the value dimension a row ``V[0..R-1, t]``;
a query tile is C query factors and rows ``Q[0..C-1, t]``; a result tile is rows of C int16
``O[0..C-1, t]``. An ATTEND with ``extended`` has 16 bytes more header, `EXTENSION_FIELDS`, and
what that announces: key intervals before the queries and, after them, the list of key tiles and
mask bits and biases for each of these. A state, which an ATTEND with ``load_state`` brings behind
the list, is a row of sums and a row of each output; a product tile a row of each key. The numbers
of these rows cross the link in parts of 16 bits, see `part_words`.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping

import numpy as np

from .arithmetic import ANCHOR_BITS, OUTPUT_PARTS, PRODUCT_PARTS, SLOPE_BITS, SUM_PARTS
from .config import AcceleratorConfig

__all__ = [
    "APPEND_FIELDS",
    "ATTEND_FIELDS",
    "COMMAND_BYTES",
    "COUNTERS_FIELDS",
    "COUNTER_NAMES",
    "EXTENSION_FIELDS",
    "IDENTITY_FIELDS",
    "LOAD_FIELDS",
    "PROTOCOL_VERSION",
    "REPLY_BYTES",
    "REPLY_FIELDS",
    "SIGNED_FIELDS",
    "ErrorCode",
    "Opcode",
    "ProtocolError",
    "ProtocolVersionError",
    "Reply",
    "appended_key_words",
    "bias_tile_words",
    "decode_header",
    "encode_header",
    "identity_payload",
    "interval_words",
    "key_tile_words",
    "mask_tile_words",
    "parse_identity",
    "parse_statistics",
    "part_words",
    "product_words",
    "query_tile_words",
    "result_tile_words",
    "state_words",
    "tile_list_words",
]

PROTOCOL_VERSION = 2

COMMAND_BYTES = 16
"""Bytes of a command's header, before padding to whole link words."""
REPLY_BYTES = 4
"""Bytes of a reply's header, before padding to a whole link word."""


class ProtocolError(RuntimeError):
    """A packet that does not follow the protocol."""


class ProtocolVersionError(ProtocolError):
    """A device that speaks another version of the protocol."""


class Opcode(enum.IntEnum):
    """First byte of a command."""

    IDENTIFY = 1
    COUNTERS = 2
    LOAD = 3
    ATTEND = 4
    APPEND = 5
    MULTIPLY = 6
    RESET = 7


class Reply(enum.IntEnum):
    """First byte of a reply."""

    IDENTITY = 1
    STATISTICS = 2
    RESULT = 4
    STATE = 5
    PRODUCT = 6
    ERROR = 15


class ErrorCode(enum.IntEnum):
    """What was wrong with a command."""

    NONE = 0
    TRUNCATED = 1
    """The packet ended before its header or payload was complete."""
    OVERLONG = 2
    """The packet went on after its payload."""
    UNKNOWN_OPCODE = 3
    BAD_FIELD = 4
    """A field of the header is out of the configuration's range."""
    BAD_KEEP = 5
    """A word within the packet lacks bytes."""


# Layouts: name -> bits, from the least significant bit of the first byte; `SIGNED_FIELDS` are
# two's complement.
_COMMON = {"opcode": 8, "tag": 8}
COUNTERS_FIELDS = {**_COMMON, "clear": 1}
LOAD_FIELDS = {**_COMMON, "slot": 16, "tiles": 16, "last_dim": 8, "last_value_dim": 8}
APPEND_FIELDS = {**_COMMON, "slot": 16, "key": 16, "last_dim": 8, "last_value_dim": 8}
ATTEND_FIELDS = {
    **LOAD_FIELDS,
    "score_shift": 6,
    "result_fraction": 4,
    "low_step": 1,
    "high_step": 1,
    "load_state": 1,
    "store_state": 1,
    "extended": 1,
    "reserved": 1,
    "low": 16,
    "high": 16,
    "limit": 16,
}
"""An ATTEND's fields; a MULTIPLY has the same, but uses none from `score_shift` on. Keys count from
the first key of `slot`. Lane c may attend to the keys from ``low + c * low_step`` up to, not
including, ``min(high + c * high_step, limit)``. `last_dim` and `last_value_dim` are the head
dimensions less one; the second of a MULTIPLY is the number of its keys, less one. With `load_state`
the payload brings the state to start from; with `store_state` the reply is the state."""
EXTENSION_FIELDS = {
    "listed": 16,
    "slope": SLOPE_BITS,
    "slope_shift": 5,
    "bias_shift": 3,
    "anchor": ANCHOR_BITS,
    "intervals": 1,
    "mask": 1,
    "bias": 1,
    "extension_reserved": 61,
}
"""The second half of an extended ATTEND's header. `listed`: length of the list of key tiles after
the first; 0 if they are consecutive. `slope`, `slope_shift`, `anchor`: linear bias. `intervals`:
the payload brings the interval of each lane, in place of the rule. `mask`, `bias`: it brings mask
bits and biases for each key tile."""
REPLY_FIELDS = {"opcode": 8, "tag": 8, "code": 8, "last_value_dim": 8}

SIGNED_FIELDS = frozenset({"low", "high", "anchor"})

IDENTITY_FIELDS = (
    "protocol_version",
    "key_rows",
    "query_lanes",
    "max_head_dim",
    "max_keys",
    "key_banks",
    "max_sequence",
    "max_inner",
    "probability_bits",
    "score_fraction_bits",
    "score_integer_bits",
    "normalizer_lanes",
    "link_bytes",
    "multiplier_stages",
)
"""Payload of an IDENTITY reply, uint32 each, then three of the gateware's version."""

COUNTER_NAMES = ("busy", "stalled_input", "stalled_output", "array_steps")
"""Payload of a STATISTICS reply, uint64 each: clocks with a query tile in the pipeline; clocks in
which the sequencer could start a query tile but none had arrived; clocks in which one had arrived
but no accumulator bank was free; and multiply-accumulates of one processing element, the sum of
both head dimensions over all tiles."""


def encode_header(fields: Mapping[str, int], size: int, **values: int) -> bytes:
    """Pack the values of a header's fields; absent ones are zero.

    Raises
    ------
    ProtocolError
        If a value does not fit its field.
    """
    header, offset = 0, 0
    for name, bits in fields.items():
        value = int(values.pop(name, 0))
        low = -(1 << (bits - 1)) if name in SIGNED_FIELDS else 0
        if not low <= value < low + (1 << bits):
            raise ProtocolError(f"{name} {value} does not fit {bits} bits")
        header |= (value & ((1 << bits) - 1)) << offset
        offset += bits
    if values:
        raise ProtocolError(f"no such header field: {', '.join(values)}")
    return header.to_bytes(size, "little")


def decode_header(fields: Mapping[str, int], data: bytes) -> dict[str, int]:
    """Unpack a header."""
    header, result = int.from_bytes(data, "little"), {}
    for name, bits in fields.items():
        value = header & ((1 << bits) - 1)
        if name in SIGNED_FIELDS and value >> (bits - 1):
            value -= 1 << bits
        result[name] = value
        header >>= bits
    return result


def identity_payload(config: AcceleratorConfig, version: tuple[int, int, int]) -> bytes:
    """Payload of an IDENTITY reply."""
    values = {**config.to_dict(), "protocol_version": PROTOCOL_VERSION}
    return struct.pack("<17I", *(values[name] for name in IDENTITY_FIELDS), *version)


def parse_identity(payload: bytes) -> tuple[AcceleratorConfig, tuple[int, int, int]]:
    """Configuration and gateware version from an IDENTITY reply's payload.

    Raises
    ------
    ProtocolVersionError
        If the device speaks another version of the protocol.
    ProtocolError
        If the payload is too short.
    """
    count = len(IDENTITY_FIELDS) + 3
    if len(payload) < 4 * count:
        raise ProtocolError(f"identity of {len(payload)} bytes, expected {4 * count}")
    numbers = struct.unpack_from(f"<{count}I", payload)
    values = dict(zip(IDENTITY_FIELDS, numbers, strict=False))
    protocol = values.pop("protocol_version")
    if protocol != PROTOCOL_VERSION:
        raise ProtocolVersionError(
            f"the device speaks protocol {protocol}, this driver {PROTOCOL_VERSION}"
        )
    return AcceleratorConfig(**values), (numbers[-3], numbers[-2], numbers[-1])


def parse_statistics(payload: bytes) -> dict[str, int]:
    """Counters from a STATISTICS reply's payload, by `COUNTER_NAMES`."""
    if len(payload) < 8 * len(COUNTER_NAMES):
        raise ProtocolError(f"statistics of {len(payload)} bytes")
    values = np.frombuffer(payload, "<u8", len(COUNTER_NAMES))
    return dict(zip(COUNTER_NAMES, map(int, values), strict=True))


def key_tile_words(config: AcceleratorConfig, head_dim: int, value_dim: int) -> int:
    """Link words of one key tile in a LOAD."""
    rows = config.key_rows
    return 2 * config.words(2 * rows) + (head_dim + value_dim) * config.words(rows)


def appended_key_words(config: AcceleratorConfig, head_dim: int, value_dim: int) -> int:
    """Link words of the key of an APPEND: two factors, K and V, each padded to whole words."""
    return 2 + config.words(head_dim) + config.words(value_dim)


def query_tile_words(config: AcceleratorConfig, head_dim: int) -> int:
    """Link words of the query tile of an ATTEND."""
    lanes = config.query_lanes
    return config.words(2 * lanes) + head_dim * config.words(lanes)


def result_tile_words(config: AcceleratorConfig, value_dim: int) -> int:
    """Link words of the result tile of a RESULT."""
    return value_dim * config.words(2 * config.query_lanes)


def mask_tile_words(config: AcceleratorConfig) -> int:
    """Link words of the mask bits of a key tile: `AcceleratorConfig.mask_keys` keys in a word."""
    return -(-config.key_rows // config.mask_keys)


def bias_tile_words(config: AcceleratorConfig) -> int:
    """Link words of the biases of a key tile: for each key a row of C int16."""
    return config.key_rows * config.words(2 * config.query_lanes)


def interval_words(config: AcceleratorConfig) -> int:
    """Link words of the intervals of a query tile: two int16 for each lane."""
    return config.words(4 * config.query_lanes)


def tile_list_words(config: AcceleratorConfig, listed: int) -> int:
    """Link words of a list of key tiles: uint16 offsets from the first."""
    return config.words(2 * listed)


def part_words(config: AcceleratorConfig, rows: int, parts: int) -> int:
    """Link words of rows of C numbers that cross the link in parts of 16 bits.

    A row is cut into words of lanes; of each of these the words of all parts follow each other,
    the least significant part first.
    """
    return rows * parts * config.words(2 * config.query_lanes)


def state_words(config: AcceleratorConfig, value_dim: int) -> int:
    """Link words of a state: a row of row sums with maxima, and a row of each output."""
    return part_words(config, 1, SUM_PARTS) + part_words(config, value_dim, OUTPUT_PARTS)


def product_words(config: AcceleratorConfig, keys: int) -> int:
    """Link words of a product tile: a row of C int32 for each key."""
    return part_words(config, keys, PRODUCT_PARTS)
