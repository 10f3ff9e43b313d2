"""Command packets in, reply packets out."""

import dataclasses

import numpy as np
import pytest

from celosia_hw import VERSION
from celosia_hw.config import AcceleratorConfig, preset
from celosia_hw.protocol import (
    ATTEND_FIELDS,
    COMMAND_BYTES,
    COUNTERS_FIELDS,
    LOAD_FIELDS,
    REPLY_BYTES,
    REPLY_FIELDS,
    ErrorCode,
    Opcode,
    Reply,
    decode_header,
    encode_header,
    parse_identity,
    parse_statistics,
)
from celosia_sim.model import attend
from celosia_sim.model_device import ModelTransport

TINY = preset("tiny")
CONFIGS = {
    "tiny": TINY,
    "default": preset("default"),
    "wide": AcceleratorConfig(
        key_rows=5, query_lanes=6, max_head_dim=7, max_keys=20, link_bytes=64, normalizer_lanes=1
    ),
}


def pad(data, config):
    return data + bytes(-len(data) % config.link_bytes)


def header(config, fields=COUNTERS_FIELDS, **values):
    return pad(encode_header(fields, COMMAND_BYTES, **values), config)


def packed(config, rows, dtype):
    return b"".join(pad(np.asarray(row, dtype).tobytes(), config) for row in rows)


def load_packet(config, slot, key, value, key_factor, value_factor):
    """A LOAD of whole tiles."""
    rows = config.key_rows
    tiles, head_dim, value_dim = len(key) // rows, key.shape[1], value.shape[1]
    packet = header(
        config,
        LOAD_FIELDS,
        opcode=Opcode.LOAD,
        slot=slot,
        tiles=tiles,
        last_dim=head_dim - 1,
        last_value_dim=value_dim - 1,
    )
    for start in range(0, len(key), rows):
        span = slice(start, start + rows)
        packet += packed(config, [key_factor[span], value_factor[span]], "<u2")
        packet += packed(config, key[span].T, np.int8) + packed(config, value[span].T, np.int8)
    return packet


def attend_packet(config, query, query_factor, value_dim, **fields):
    """An ATTEND of one query tile; all keys of its tiles are allowed unless told."""
    keys = fields["tiles"] * config.key_rows
    fields = {"tag": 0, "slot": 0, "high": keys, "limit": keys, "result_fraction": 8, **fields}
    packet = header(
        config,
        ATTEND_FIELDS,
        opcode=Opcode.ATTEND,
        last_dim=query.shape[1] - 1,
        last_value_dim=value_dim - 1,
        **fields,
    )
    return packet + packed(config, [query_factor], "<u2") + packed(config, query.T, np.int8)


def unpack(config, reply):
    """Header fields and payload of a reply."""
    assert len(reply) % config.link_bytes == 0
    start = config.words(REPLY_BYTES) * config.link_bytes
    assert not any(reply[REPLY_BYTES:start])
    return decode_header(REPLY_FIELDS, reply[:REPLY_BYTES]), reply[start:]


def unpack_result(config, reply):
    fields, payload = unpack(config, reply)
    assert fields["opcode"] == Reply.RESULT
    assert fields["code"] == 0
    rows = np.frombuffer(payload, np.uint8).reshape(fields["last_value_dim"] + 1, -1)
    assert not rows[:, 2 * config.query_lanes :].any()
    result = np.ascontiguousarray(rows[:, : 2 * config.query_lanes]).view("<i2")
    return fields["tag"], result.T


class Operands:
    """Random keys and queries of one head."""

    def __init__(self, config, seed, tiles, query_tiles, head_dim, value_dim):
        rng = np.random.default_rng(seed)
        self.config, self.tiles = config, tiles
        keys, rows = tiles * config.key_rows, query_tiles * config.query_lanes

        def elements(*shape):
            return rng.integers(-128, 128, shape).astype(np.int8)

        def factors(count):
            return rng.integers(0, 65536, count).astype(np.uint16)

        self.key, self.value = elements(keys, head_dim), elements(keys, value_dim)
        self.query = elements(rows, head_dim)
        self.key_factor, self.value_factor = factors(keys), factors(keys)
        self.query_factor = factors(rows)

    def load(self, slot=0):
        keys = (self.key, self.value, self.key_factor, self.value_factor)
        return load_packet(self.config, slot, *keys)

    def attend(self, tile, **fields):
        lanes = slice(tile * self.config.query_lanes, (tile + 1) * self.config.query_lanes)
        fields = {"tiles": self.tiles, "score_shift": 20, **fields}
        return attend_packet(
            self.config,
            self.query[lanes],
            self.query_factor[lanes],
            self.value.shape[1],
            **fields,
        )

    def expected(self, tile, low, high, tiles=None, score_shift=20, result_fraction=8):
        lanes = slice(tile * self.config.query_lanes, (tile + 1) * self.config.query_lanes)
        keys = slice(0, (tiles or self.tiles) * self.config.key_rows)
        return attend(
            self.config,
            self.query[lanes],
            self.key[keys],
            self.value[keys],
            self.query_factor[lanes],
            self.key_factor[keys],
            self.value_factor[keys],
            low,
            high,
            score_shift,
            result_fraction,
        ).result


def error(config, reply):
    fields, payload = unpack(config, reply)
    assert fields["opcode"] == Reply.ERROR
    assert not payload
    return fields["tag"], fields["code"]


def check_usable(transport):
    """A load and an attend that fill the memory."""
    config = transport.config
    dim = config.max_head_dim
    operands = Operands(config, 99, config.slots, 1, dim, dim)
    keys = config.key_capacity
    (reply,) = transport.exchange([operands.load(), operands.attend(0, tag=77)], 1)
    tag, result = unpack_result(config, reply)
    assert tag == 77
    np.testing.assert_array_equal(result, operands.expected(0, 0, keys))


@pytest.mark.parametrize("name", CONFIGS)
def test_identify(name):
    config = CONFIGS[name]
    (reply,) = ModelTransport(config).exchange([header(config, opcode=Opcode.IDENTIFY, tag=5)], 1)
    fields, payload = unpack(config, reply)
    assert (fields["opcode"], fields["tag"], fields["code"]) == (Reply.IDENTITY, 5, 0)
    assert parse_identity(payload) == (config, VERSION)


@pytest.mark.parametrize("name", CONFIGS)
def test_attend(name):
    config = CONFIGS[name]
    operands = Operands(config, 1, tiles=2, query_tiles=3, head_dim=5, value_dim=4)
    packets = [operands.load(slot=1)] + [operands.attend(i, slot=1, tag=i + 9) for i in range(3)]
    replies = ModelTransport(config).exchange(packets, 3)
    assert len({len(reply) for reply in replies}) == 1
    for i, reply in enumerate(replies):
        tag, result = unpack_result(config, reply)
        assert tag == i + 9
        np.testing.assert_array_equal(result, operands.expected(i, 0, 2 * config.key_rows))


def test_intervals():
    operands = Operands(TINY, 2, tiles=4, query_tiles=1, head_dim=6, value_dim=6)
    lane = np.arange(3)
    cases = [
        ({"low": 2, "high": 9, "limit": 16}, 2, 9),
        ({"low": -2, "low_step": 1, "high": 1, "high_step": 1, "limit": 16}, lane - 2, lane + 1),
        ({"low": 0, "high": 6, "high_step": 1, "limit": 7}, 0, np.minimum(lane + 6, 7)),
        ({"low": -9, "high": 32767, "high_step": 1, "limit": 65535}, 0, 16),
        ({"low": 0, "high": -1, "high_step": 1, "limit": 16}, 0, lane - 1),
        ({"low": 5, "high": 5, "limit": 16}, 5, 5),
        ({"tiles": 2, "high": 16, "limit": 16}, 0, 8),
        ({"high": 16, "limit": 16, "score_shift": 63, "result_fraction": 15}, 0, 16),
        ({"high": 16, "limit": 16, "score_shift": 0, "result_fraction": 0}, 0, 16),
    ]
    packets = [operands.attend(0, **fields) for fields, _, _ in cases]
    replies = ModelTransport(TINY).exchange([operands.load(), *packets], len(cases))
    for (fields, low, high), reply in zip(cases, replies, strict=True):
        numbers = {k: fields[k] for k in ("tiles", "score_shift", "result_fraction") if k in fields}
        expected = operands.expected(0, low, high, **numbers)
        np.testing.assert_array_equal(unpack_result(TINY, reply)[1], expected)


def test_loads_between_attends():
    # Attends to a slot see what was loaded before them, whatever is batched.
    first, second = (Operands(TINY, seed, 2, 2, 6, 6) for seed in (3, 4))
    packets = [
        first.load(0),
        first.attend(0),
        second.load(4),  # elsewhere
        first.attend(1),
        second.attend(0, slot=4),
        second.load(1),  # over the second tile of the first
        second.attend(1, slot=1),
        second.attend(1, slot=4),
        first.attend(0, tiles=1, high=8, limit=8),
    ]
    replies = ModelTransport(TINY).exchange(packets, 6)
    expected = [
        first.expected(0, 0, 8),
        first.expected(1, 0, 8),
        second.expected(0, 0, 8),
        second.expected(1, 0, 8),
        second.expected(1, 0, 8),
        first.expected(0, 0, 4, tiles=1),
    ]
    for reply, result in zip(replies, expected, strict=True):
        np.testing.assert_array_equal(unpack_result(TINY, reply)[1], result)


def test_dimensions_of_load_and_attend_may_differ():
    # An attend reads the first words of what a load with larger dimensions wrote.
    wide = Operands(TINY, 5, tiles=2, query_tiles=1, head_dim=9, value_dim=10)
    narrow = Operands(TINY, 6, tiles=2, query_tiles=1, head_dim=4, value_dim=3)
    narrow.key, narrow.value = wide.key[:, :4], wide.value[:, :3]
    narrow.key_factor, narrow.value_factor = wide.key_factor, wide.value_factor
    (reply,) = ModelTransport(TINY).exchange([wide.load(), narrow.attend(0)], 1)
    np.testing.assert_array_equal(unpack_result(TINY, reply)[1], narrow.expected(0, 0, 8))


def test_a_narrow_load_keeps_the_words_beyond():
    wide = Operands(TINY, 7, tiles=1, query_tiles=1, head_dim=9, value_dim=10)
    narrow = Operands(TINY, 8, tiles=1, query_tiles=1, head_dim=4, value_dim=3)
    (reply,) = ModelTransport(TINY).exchange([wide.load(), narrow.load(), wide.attend(0)], 1)
    wide.key[:, :4], wide.value[:, :3] = narrow.key, narrow.value
    wide.key_factor, wide.value_factor = narrow.key_factor, narrow.value_factor
    np.testing.assert_array_equal(unpack_result(TINY, reply)[1], wide.expected(0, 0, 4))


def test_counters():
    transport = ModelTransport(TINY)
    operands = Operands(TINY, 9, tiles=3, query_tiles=2, head_dim=6, value_dim=4)
    read = header(TINY, opcode=Opcode.COUNTERS, tag=1)
    clear = header(TINY, opcode=Opcode.COUNTERS, tag=2, clear=1)
    packets = [operands.load(), operands.attend(0), read, operands.attend(1), clear, read]
    replies = transport.exchange(packets, 5)
    kinds = [unpack(TINY, reply)[0]["opcode"] for reply in replies]
    assert kinds == [
        Reply.RESULT,
        Reply.STATISTICS,
        Reply.RESULT,
        Reply.STATISTICS,
        Reply.STATISTICS,
    ]
    steps = [parse_statistics(unpack(TINY, replies[i])[1])["array_steps"] for i in (1, 3, 4)]
    assert steps == [30, 60, 0]


def malformed(config):
    """Packets with what is wrong with them; the tag is 200."""
    dim = config.max_head_dim
    operands = Operands(config, 10, tiles=2, query_tiles=1, head_dim=dim, value_dim=dim)
    load = {"opcode": Opcode.LOAD, "tiles": 1, "last_dim": dim - 1, "last_value_dim": dim - 1}
    attend = {**load, "opcode": Opcode.ATTEND, "high": 4, "limit": 4}
    identify = header(config, opcode=Opcode.IDENTIFY, tag=200)
    word = bytes(config.link_bytes)
    tagged_load = bytearray(operands.load())
    tagged_load[1] = 200
    tagged_load = bytes(tagged_load)
    bad = [
        {"tiles": 0},
        {"tiles": config.slots + 1},
        {"slot": config.slots},
        {"slot": config.slots - 1, "tiles": 2},
        {"slot": 65535, "tiles": 65535},
        {"last_dim": dim},
        {"last_value_dim": dim},
    ]
    reserved = [{"reserved": 1}]
    yield from ((header(config, opcode=code, tag=200), 3) for code in (0, 8, 15, 255))
    for values in bad:
        yield header(config, LOAD_FIELDS, **{**load, **values}, tag=200), 4
    for values in bad + reserved:
        yield header(config, ATTEND_FIELDS, **{**attend, **values}, tag=200), 4
        yield header(config, ATTEND_FIELDS, **{**attend, **values}, tag=200) + 999 * word, 4
    yield identify + word, 2
    yield header(config, opcode=Opcode.COUNTERS, tag=200) + word, 2
    yield header(config, opcode=Opcode.RESET, tag=200) + word, 2
    yield operands.attend(0, tag=200) + word, 2
    yield tagged_load + word, 2
    yield tagged_load[: -config.link_bytes], 1
    yield tagged_load[: len(identify)], 1
    yield operands.attend(0, tag=200)[: -config.link_bytes], 1
    yield operands.attend(0, tag=200)[: len(identify)], 1
    if len(identify) > config.link_bytes:
        yield identify[: -config.link_bytes], 1
        yield bytes([255, 200]), 1
        yield operands.attend(0, tag=200)[: config.link_bytes], 1


@pytest.mark.parametrize("name", CONFIGS)
def test_malformed_packets_are_answered_and_forgotten(name):
    config = CONFIGS[name]
    transport = ModelTransport(config)
    codes = set()
    for packet, code in malformed(config):
        (reply,) = transport.exchange([packet], 1)
        assert error(config, reply) == (200, code)
        codes.add(code)
    # A transport sends whole words.
    assert codes == set(ErrorCode) - {ErrorCode.NONE, ErrorCode.BAD_KEEP}
    check_usable(transport)


@pytest.mark.parametrize("index", range(len(list(malformed(TINY)))))
def test_usable_after_each_error(index):
    transport = ModelTransport(TINY)
    packet, code = list(malformed(TINY))[index]
    operands = Operands(TINY, 11, tiles=2, query_tiles=1, head_dim=3, value_dim=2)
    attends = [operands.load(4), operands.attend(0, slot=4), packet, operands.attend(0, slot=4)]
    before, reply, after = transport.exchange(attends, 3)
    assert error(TINY, reply) == (200, code)
    assert before == after
    check_usable(transport)


def test_a_malformed_attend_does_not_count():
    transport = ModelTransport(TINY)
    operands = Operands(TINY, 12, tiles=2, query_tiles=1, head_dim=3, value_dim=2)
    packets = [operands.attend(0)[:-4], header(TINY, opcode=Opcode.COUNTERS)]
    _, reply = transport.exchange(packets, 2)
    assert not any(parse_statistics(unpack(TINY, reply)[1]).values())


@pytest.mark.parametrize("name", CONFIGS)
def test_packets_are_padded_to_whole_words(name):
    config = CONFIGS[name]
    transport = ModelTransport(config)
    operands = Operands(config, 13, tiles=1, query_tiles=1, head_dim=3, value_dim=2)
    packet = operands.attend(0)
    packets = [operands.load(), packet, packet.rstrip(b"\0"), encode_header({"opcode": 8}, 16)]
    whole, cut, unknown = transport.exchange([*packets[:3], b"\xff" * 15], 3)
    assert whole == cut
    assert error(config, unknown) == (255, ErrorCode.UNKNOWN_OPCODE)


def test_replies_wait_for_the_next_exchange():
    transport = ModelTransport(TINY)
    packets = [header(TINY, opcode=Opcode.IDENTIFY, tag=tag) for tag in range(3)]
    replies = transport.exchange(packets, 1) + transport.exchange([], 2)
    assert [unpack(TINY, reply)[0]["tag"] for reply in replies] == [0, 1, 2]
    assert transport.clocks == 0


def test_too_few_replies():
    transport = ModelTransport(TINY)
    with pytest.raises(TimeoutError, match="1 of 2 replies"):
        transport.exchange([header(TINY, opcode=Opcode.IDENTIFY)], 2)
    check_usable(transport)


def test_empty_packet():
    with pytest.raises(ValueError, match="packet 1 is empty"):
        ModelTransport(TINY).exchange([b"\1", b""], 1)


def test_progress():
    config = dataclasses.replace(TINY, query_lanes=64, normalizer_lanes=1, link_bytes=8)
    operands = Operands(config, 14, tiles=1, query_tiles=40, head_dim=2, value_dim=2)
    packets = [operands.load(), *(operands.attend(i) for i in range(40))]
    seen = []
    with ModelTransport(config) as transport:
        replies = transport.exchange(packets, 40, seen.append)
    assert seen == sorted(set(seen))
    assert len(seen) > 1
    assert seen[-1] == 40
    for i, reply in enumerate(replies):
        np.testing.assert_array_equal(unpack_result(config, reply)[1], operands.expected(i, 0, 4))
