"""Packets of a schedule, taken apart by the wire protocol's own definition."""

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from celosia.attention import plan_attention
from celosia.masks import resolve_masks
from celosia_hw.config import AcceleratorConfig, preset
from celosia_hw.protocol import (
    ATTEND_FIELDS,
    COMMAND_BYTES,
    EXTENSION_FIELDS,
    LOAD_FIELDS,
    Opcode,
    decode_header,
    key_tile_words,
    query_tile_words,
)

TINY = preset("tiny")  # 4 keys x 3 queries a tile, 6 tiles a bank, 2 banks


@dataclass
class Packet:
    """A command and its place in the stream."""

    index: int
    fields: dict[str, int]
    payload: bytes
    intervals: list[list[int]] | None = None

    @property
    def is_load(self):
        return self.fields["opcode"] == Opcode.LOAD

    @property
    def slots(self):
        return range(self.fields["slot"], self.fields["slot"] + self.fields["tiles"])


def plan(config, heads, queries, keys, dim=4, value_dim=None, **options):
    rng = np.random.default_rng(0)
    key_heads = options.pop("key_heads", heads)
    return plan_attention(
        config,
        rng.normal(size=(heads, queries, dim)),
        rng.normal(size=(key_heads, keys, dim)),
        rng.normal(size=(key_heads, keys, dim if value_dim is None else value_dim)),
        enable_gqa=True,
        **options,
    )


def packets(job):
    config, found = job.program.config, []
    for index, command in enumerate(job.program.commands):
        header = command[:COMMAND_BYTES]
        layout = LOAD_FIELDS if header[0] == Opcode.LOAD else ATTEND_FIELDS
        fields = decode_header(layout, header)
        start, intervals = config.words(COMMAND_BYTES) * config.link_bytes, None
        if fields.get("extended"):
            fields |= decode_header(EXTENSION_FIELDS, command[start : start + COMMAND_BYTES])
            assert fields["intervals"]
            assert {fields[name] for name in ("mask", "bias", "listed")} == {0}
            start *= 2
            ends, rest = rows(config, command[start:], 1, 2 * config.query_lanes, "<i2")
            intervals = ends.reshape(-1, 2).tolist()
            start = len(command) - len(rest)
        dims = fields["last_dim"] + 1, fields["last_value_dim"] + 1
        if layout is LOAD_FIELDS:
            words = fields["tiles"] * key_tile_words(config, *dims)
        else:
            words = query_tile_words(config, dims[0])
        assert len(command) == start + words * config.link_bytes
        found.append(Packet(index, fields, command[start:], intervals))
    return found


def rows(config, payload, count, width, dtype):
    """`count` rows of `width` numbers and the rest of the payload."""
    size = np.dtype(dtype).itemsize * width
    padded = config.words(size) * config.link_bytes
    block = np.frombuffer(payload[: count * padded], np.uint8).reshape(count, padded)
    assert not block[:, size:].any()
    return np.ascontiguousarray(block[:, :size]).view(dtype), payload[count * padded :]


@pytest.mark.parametrize("config", [TINY, preset("small"), preset("default")])
def test_tiles_hold_the_quantized_tensors(config):
    job = plan(config, 1, 7, 21, dim=5, value_dim=9)
    load, *attends = packets(job)
    group = job.groups[0]
    key_rows, lanes = config.key_rows, config.query_lanes
    payload = load.payload
    for tile in range(load.fields["tiles"]):
        part = slice(tile * key_rows, (tile + 1) * key_rows)
        count = len(group.keys.factors[part])
        for tensor in (group.keys, group.values):
            factors, payload = rows(config, payload, 1, key_rows, "<u2")
            np.testing.assert_array_equal(factors[0, :count], tensor.factors[part])
            assert not factors[0, count:].any()
        for tensor, dim in ((group.keys, 5), (group.values, 9)):
            values, payload = rows(config, payload, dim, key_rows, np.int8)
            np.testing.assert_array_equal(values[:, :count], tensor.values[part].T)
            assert not values[:, count:].any()
    assert not payload
    assert len(attends) == -(-7 // lanes)
    for tile, attend in enumerate(attends):
        part = slice(tile * lanes, (tile + 1) * lanes)
        count = len(group.queries.factors[0, part])
        factors, payload = rows(config, attend.payload, 1, lanes, "<u2")
        np.testing.assert_array_equal(factors[0, :count], group.queries.factors[0, part])
        assert not factors[0, count:].any()
        values, payload = rows(config, payload, 5, lanes, np.int8)
        np.testing.assert_array_equal(values[:, :count], group.queries.values[0, part].T)
        assert not payload


def check_order(job):
    """Every ATTEND reads what its own head loaded; returns the packets by group of heads."""
    found = packets(job)
    assert [p.fields["tag"] for p in found] == [n & 0xFF for n in range(len(found))]
    attends = [p for p in found if not p.is_load]
    assert [t.tag for t in job.program.tiles] == [p.fields["tag"] for p in attends]

    queries = job.shape[-2]
    owner = {head: n for n, group in enumerate(job.groups) for head in group.heads}
    loads = iter([p for p in found if p.is_load])
    by_group = []
    for number, group in enumerate(job.groups):
        count = -(-len(group.keys.factors) // job.program.config.key_rows)
        mine = []
        while sum(len(p.slots) for p in mine) < count:
            mine.append(next(loads))
        slots = [slot for p in mine for slot in p.slots]
        assert slots == list(range(slots[0], slots[0] + count)), "each tile once, in order"
        reads = [
            p
            for p, t in zip(attends, job.program.tiles, strict=True)
            if owner[t.rows[0] // queries] == number
        ]
        assert mine[-1].index < reads[0].index
        assert {slot for p in reads for slot in p.slots} <= set(slots)
        by_group.append((mine, reads))
    assert next(loads, None) is None

    # What a LOAD overwrites is read by no later ATTEND of an earlier group.
    for number, (mine, _) in enumerate(by_group):
        for load in mine:
            for _, reads in by_group[:number]:
                for read in reads:
                    assert read.index < load.index or not set(read.slots) & set(load.slots)
    return by_group


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys"), [(30, 24), (15, 24), (6, 20), (4, 9), (3, 24), (1, 1)]
)
def test_loads_between_the_attends_of_the_head_before(queries, keys, causal):
    groups = check_order(plan(TINY, 5, queries, keys, is_causal=causal))
    banks = [mine[0].slots[0] // TINY.slots_per_bank for mine, _ in groups]
    assert banks == [0, 1, 0, 1, 0]
    for (_, reads), (mine, _) in itertools.pairwise(groups):
        # After the second ATTEND the head before last has left its bank.
        first = reads[min(1, len(reads) - 1)]
        assert mine[0].index == first.index + 1


def test_loads_are_spread_over_the_attends():
    groups = check_order(plan(TINY, 2, 24, 24))  # 8 ATTENDs, 6 key tiles
    mine, reads = groups[1][0], groups[0][1]
    assert [len(p.slots) for p in mine] == [1] * 6
    gaps = [sum(read.index < p.index for read in reads) for p in mine]
    assert gaps == [2, 3, 4, 5, 6, 7]


def test_the_first_head_loads_first():
    mine, reads = check_order(plan(TINY, 3, 9, 24))[0]
    assert [p.index for p in mine] == [0]
    assert reads[0].index == 1


@pytest.mark.parametrize("queries", [4, 9, 24])
def test_no_load_waits_for_the_head_in_work(queries):
    """A LOAD is sent when at most the last two ATTENDs are unfinished; none reads its bank."""
    groups = check_order(plan(TINY, 4, queries, 24))
    attends = sorted((p for _, reads in groups for p in reads), key=lambda p: p.index)
    for load in (p for mine, _ in groups[1:] for p in mine):
        unfinished = [p for p in attends if p.index < load.index][-2:]
        bank = load.slots[0] // TINY.slots_per_bank
        assert all(p.slots[0] // TINY.slots_per_bank != bank for p in unfinished)


def test_grouped_heads_share_their_keys():
    job = plan(TINY, 6, 5, 10, key_heads=2)
    groups = check_order(job)
    assert len(groups) == 2
    assert [list(g.heads) for g in job.groups] == [[0, 1, 2], [3, 4, 5]]
    # 15 rows in tiles of 3: the heads share the lanes.
    assert [len(reads) for _, reads in groups] == [5, 5]
    rows = np.sort(np.concatenate([tile.rows for tile in job.program.tiles]))
    np.testing.assert_array_equal(rows, np.arange(6 * 5))


def test_a_head_over_two_banks():
    groups = check_order(plan(TINY, 2, 5, 40))
    for mine, reads in groups:
        assert [list(p.slots) for p in mine] == [list(range(6)), list(range(6, 10))]
        assert all(p.fields["tiles"] == 10 for p in reads)
    # There is no room for both: the second head is loaded after the first is done.
    assert groups[1][0][0].index > groups[0][1][-1].index


def test_heads_of_two_banks_out_of_three():
    config = AcceleratorConfig(key_rows=4, query_lanes=4, max_keys=8, key_banks=3)
    groups = check_order(plan(config, 3, 9, 12))
    assert [mine[0].slots[0] for mine, _ in groups] == [0, 0, 0]
    config = AcceleratorConfig(key_rows=4, query_lanes=4, max_keys=8, key_banks=5)
    groups = check_order(plan(config, 4, 9, 12))
    assert [mine[0].slots[0] // 2 for mine, _ in groups] == [0, 2, 0, 2]


def test_more_keys_than_the_device_attends_to():
    config = dataclasses.replace(TINY, max_sequence=48)
    with pytest.raises(ValueError, match=r"49 keys, but .* at most 48 \(max_sequence\)"):
        plan(config, 1, 3, 49)
    plan(config, 1, 3, 49, key_length=48)


def lanes_allowed(packet, config):
    """For each lane the keys that it attends to, as the protocol defines it."""
    fields = packet.fields
    if packet.intervals is not None:
        return [range(max(low, 0), high) for low, high in packet.intervals]
    return [
        range(
            max(fields["low"] + lane * fields["low_step"], 0),
            min(fields["high"] + lane * fields["high_step"], fields["limit"]),
        )
        for lane in range(config.query_lanes)
    ]


@pytest.mark.parametrize(
    ("queries", "keys", "length"), [(20, 20, 20), (7, 22, 9), (24, 6, 6), (5, 5, 1)]
)
@pytest.mark.parametrize("causal", [False, True])
def test_causal_masks_and_lengths(queries, keys, length, causal):
    job = plan(TINY, 1, queries, keys, key_length=length, is_causal=causal)
    pairs = 0
    for tile, attend in enumerate(p for p in packets(job) if not p.is_load):
        for lane, allowed in enumerate(lanes_allowed(attend, TINY)):
            row = 3 * tile + lane
            if row >= queries:
                continue
            assert allowed == range(min(row + 1, length) if causal else length)
            pairs += len(allowed)
            assert allowed.stop <= attend.fields["tiles"] * TINY.key_rows
        last = min(3 * tile + 3, queries)
        needed = min(last, length) if causal else length
        assert attend.fields["tiles"] == -(-needed // TINY.key_rows), "no tile in vain"
    assert job.groups[0].allowed_pairs() == pairs
    assert job.program.useful_macs == pairs * 8


def test_more_causal_queries_than_positions():
    """A position of the first key that does not fit 16 bits is not needed."""
    job = plan(TINY, 1, 40_000, 3, dim=1, is_causal=True)
    assert packets(job)[-1].fields["high"] == 3


def test_nothing_to_do():
    job = plan(TINY, 2, 3, 4, key_length=0)
    assert job.program.commands == []


def rules_of(seed):
    """Arguments of a random combination of masks over 20 queries and keys."""
    rng = np.random.default_rng(seed)
    rules = {
        "is_causal": bool(rng.integers(2)),
        "window": int(rng.integers(1, 23)) if rng.integers(2) else None,
        "key_length": int(rng.integers(0, 21)) if rng.integers(2) else None,
        "causal_alignment": ("top_left", "bottom_right")[rng.integers(2)],
    }
    if rng.integers(2):
        rules["document_ids"] = np.sort(rng.integers(0, 4, 20))
    return rules


@pytest.mark.parametrize("seed", range(30))
def test_lanes_attend_to_what_the_mask_allows(seed):
    rules = rules_of(seed)
    job = plan(TINY, 6, 20, 20, key_heads=2, **rules)
    (mask,), _ = resolve_masks((6,), 20, 20, **rules)
    allowed, seen = mask.matrix(), np.zeros((6, 20), int)
    attends = [p for p in packets(job) if not p.is_load]
    for tile, attend in zip(job.program.tiles, attends, strict=True):
        bank = attend.fields["slot"] // TINY.slots_per_bank
        origin = (attend.fields["slot"] - bank * TINY.slots_per_bank) * TINY.key_rows
        lanes = lanes_allowed(attend, TINY)
        for row, keys in zip(tile.rows, lanes, strict=False):
            here = [origin + key for key in keys if key < attend.fields["tiles"] * TINY.key_rows]
            assert here == list(np.flatnonzero(allowed[row % 20]))
            seen[row // 20, row % 20] += 1
        # The first and the last key tile are needed.
        used = [key for keys in lanes[: len(tile.rows)] for key in keys]
        assert min(used) < TINY.key_rows
        assert max(used) >= (attend.fields["tiles"] - 1) * TINY.key_rows
    np.testing.assert_array_equal(seen, np.tile(allowed.any(axis=1), (6, 1)))


def test_a_window_reads_only_its_key_tiles():
    job = plan(preset("default"), 1, 1024, 1024, window=128)
    tiles = sum(p.fields["tiles"] for p in packets(job) if not p.is_load)
    query, key = np.indices((1024, 1024))
    band = (key <= query) & (key > query - 128)
    assert tiles == band.reshape(64, 16, 64, 16).any(axis=(1, 3)).sum()
