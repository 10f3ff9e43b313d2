"""Sequencer: which rows it reads when, and that it leaves no gap."""

from __future__ import annotations

import itertools
from typing import Any

import cocotb
from cocotb.triggers import FallingEdge, ReadOnly

from benches.common import StreamSource, bench, configuration, generator, port, start
from celosia_hw.sequencer import QueryJob, TileRecord

CONFIG = configuration()
DEPTH = CONFIG.max_head_dim
JOB, TILE = QueryJob(CONFIG), TileRecord(CONFIG)
INPUTS = ("job__payload", "job__valid", "bank_free", "mask_arrived", "list_offset", "summed_up")
STROBES = ("started", "row_first", "row_last", "tile_valid", "lacks_input", "lacks_output")
Job = dict[str, int]


def make_job(slot: int, tiles: int, head_dim: int, value_dim: int, number: int) -> Job:
    return {
        **{"slot": slot, "base": slot * DEPTH, "last_tile": tiles - 1, "tag": number & 255},
        **{"last_dim": head_dim - 1, "last_value_dim": value_dim - 1},
        **{"last_clock": CONFIG.pitch(head_dim, value_dim) - 1, "query_buffer": number & 1},
        **{"score_shift": number & 63, "limit": number, "low": 5, "high_step": 1, "banks": 1},
    }


def pack(job: Job) -> int:
    return sum(value << JOB[name].offset for name, value in job.items())


def unpack(record: int) -> dict[str, int]:
    fields = {name: TILE[name] for name in TILE.members}
    return {n: record >> f.offset & ((1 << f.width) - 1) for n, f in fields.items()}


class Recorder:
    """Hands each bank back some clocks after its query tile has started; keeps what happens."""

    def __init__(self, dut: Any, hold: int | None) -> None:
        self._dut, self._hold = dut, hold
        self.strobes: list[dict[str, bool]] = []
        self.rows: list[tuple[int, int]] = []
        self.tiles: dict[int, tuple[dict[str, int], int]] = {}

    async def run(self) -> None:
        names = ("key_row", "query_row", "tile", "steps")
        strobes = {name: port(self._dut, "sequencer", name) for name in STROBES}
        values = {name: port(self._dut, "sequencer", name) for name in names}
        bank_free, due = port(self._dut, "sequencer", "bank_free"), []
        while True:
            clock = len(self.rows)
            bank_free.value = int(clock in due)
            await ReadOnly()
            seen = {name: bool(handle.value) for name, handle in strobes.items()}
            self.strobes.append(seen)
            self.rows.append((int(values["key_row"].value), int(values["query_row"].value)))
            if seen["tile_valid"]:
                tile = unpack(int(values["tile"].value))
                self.tiles[clock] = (tile, int(values["steps"].value))
            if seen["started"] and self._hold is not None:
                due.append(clock + self._hold)
            await FallingEdge(self._dut.sequencer_clk)


async def run(
    dut: Any, jobs: list[Job], hold: int | None, clocks: int, mask_gap: int | None = None
) -> Recorder:
    """Offer jobs without a pause; mask tiles arrive every `mask_gap` clocks."""
    await start(dut, "sequencer", INPUTS)
    if mask_gap is not None:
        cocotb.start_soon(arrive(dut, mask_gap))
    recorder = Recorder(dut, hold)
    cocotb.start_soon(recorder.run())
    source = StreamSource(dut, "sequencer", "job")
    cocotb.start_soon(source.send(map(pack, jobs), generator("sequencer")))
    for _ in range(clocks):
        await FallingEdge(dut.sequencer_clk)
    return recorder


async def arrive(dut: Any, gap: int) -> None:
    """A mask tile every so many clocks."""
    while True:
        for clock in range(gap):
            port(dut, "sequencer", "mask_arrived").value = int(clock == gap - 1)
            await FallingEdge(dut.sequencer_clk)


def check_tiles(recorder: Recorder, job: Job, begin: int) -> None:
    """All rows of a query tile that begins at a clock, a tile every pitch."""
    pitch = job["last_clock"] + 1
    for number in range(job["last_tile"] + 1):
        here = begin + number * pitch
        last = here + job["last_dim"]
        for clock in range(here, here + pitch):
            strobes = recorder.strobes[clock]
            assert strobes["row_first"] == (clock == here)
            assert strobes["row_last"] == strobes["tile_valid"] == (clock == last)
            if clock <= last:
                key_row = job["base"] + number * DEPTH + clock - here
                query_row = job["query_buffer"] * DEPTH + clock - here
                assert recorder.rows[clock] == (key_row, query_row)
        tile, steps = recorder.tiles[last]
        expected = {
            **{name: value for name, value in job.items() if name in tile},
            "slot": job["slot"] + number,
            "base": job["base"] + number * DEPTH,
            "position": number * CONFIG.key_rows,
            "first": number == 0,
            "last": number == job["last_tile"],
        }
        assert {name: tile[name] for name in expected} == expected
        assert steps == job["last_dim"] + job["last_value_dim"] + 2


def begins(recorder: Recorder) -> list[int]:
    """First clock of each query tile."""
    return [clock + 1 for clock, seen in enumerate(recorder.strobes) if seen["started"]]


@bench()
async def no_gap_between_query_tiles(dut: Any) -> None:
    rng = generator("sequencer no_gap")
    for head_dim, value_dim in ((DEPTH, DEPTH), (1, 1), (DEPTH // 2 + 1, 2)):
        jobs = []
        for number in range(12):
            tiles = int(rng.integers(1, CONFIG.slots + 1))
            slot = int(rng.integers(0, CONFIG.slots - tiles + 1))
            jobs.append(make_job(slot, tiles, head_dim, value_dim, number))
        pitch = CONFIG.pitch(head_dim, value_dim)
        clocks = sum(max((j["last_tile"] + 1) * pitch, CONFIG.query_lanes) for j in jobs)
        if dut.sequencer_rst.value.is_resolvable and head_dim != DEPTH:
            break
        recorder = await run(dut, jobs, 2, clocks + 10)
        clock = begins(recorder)[0]
        for job in jobs:
            check_tiles(recorder, job, clock)
            clock += max((job["last_tile"] + 1) * pitch, CONFIG.query_lanes)
        assert len(recorder.tiles) == sum(job["last_tile"] + 1 for job in jobs)


@bench()
async def a_key_tile_waits_for_its_mask(dut: Any) -> None:
    gap = CONFIG.pitch(DEPTH, DEPTH) + 9
    tiles = min(CONFIG.slots, 5)
    jobs = [make_job(0, tiles, DEPTH, DEPTH, number) | {"mask": 1} for number in range(2)]
    recorder = await run(dut, jobs, 2, 2 * tiles * gap + 60, gap)
    seen = sorted(recorder.tiles)
    assert len(seen) == 2 * tiles
    # A query tile starts a clock later than a key tile goes on.
    regular = [clock - recorder.tiles[clock][0]["first"] for clock in seen]
    assert {after - before for before, after in itertools.pairwise(regular)} == {gap}
    for clock in seen:  # a tile's rows are read without a gap
        first = max(c for c in range(clock + 1) if recorder.strobes[c]["row_first"])
        assert clock - first == DEPTH - 1
        begin = recorder.tiles[clock][0]["base"]
        rows = [key for key, _ in recorder.rows[first : clock + 1]]
        assert rows == list(range(begin, begin + DEPTH))


@bench()
async def listed_key_tiles(dut: Any) -> None:
    """The list is played by hand: the entry changes after each tile."""
    if CONFIG.slots < 6:
        return
    job = make_job(1, 3, DEPTH, DEPTH, 0) | {"is_listed": 1}
    await start(dut, "sequencer", INPUTS)
    recorder = Recorder(dut, 2)
    cocotb.start_soon(recorder.run())
    source = StreamSource(dut, "sequencer", "job")
    cocotb.start_soon(source.send([pack(job)], generator("sequencer list")))
    offsets = iter((2, 4, 0, 0))
    for _ in range(4 * CONFIG.pitch(DEPTH, DEPTH) + 10):
        await ReadOnly()
        strobes = [port(dut, "sequencer", f"list_{name}").value for name in ("start", "advance")]
        await FallingEdge(dut.sequencer_clk)
        if any(strobes):
            port(dut, "sequencer", "list_offset").value = next(offsets)
    seen = [recorder.tiles[clock][0] for clock in sorted(recorder.tiles)]
    assert [tile["slot"] for tile in seen] == [1, 3, 5]
    assert [tile["base"] for tile in seen] == [DEPTH, 3 * DEPTH, 5 * DEPTH]
    assert [tile["position"] for tile in seen] == [0, 2 * CONFIG.key_rows, 4 * CONFIG.key_rows]
