"""RowMemory and FactorMemory: what is written as link words is read as rows and factors."""

from __future__ import annotations

from typing import Any

import numpy as np

from benches.common import bench, configuration, generator, join, play, split
from celosia_hw.payload import QUERY_BUFFERS
from celosia_hw.timing import FACTOR_READ, MEMORY_READ

CONFIG = configuration()
LINK = CONFIG.link_bytes
WRITE_LATENCY = 2
KEY_ROWS = CONFIG.slots * CONFIG.max_head_dim


def link_words(data: bytes) -> list[int]:
    data += bytes(-len(data) % LINK)
    return [int.from_bytes(data[i : i + LINK], "little") for i in range(0, len(data), LINK)]


class Waves:
    """Waveforms that are written an event at a time."""

    def __init__(self, names: str) -> None:
        self._events: dict[str, dict[int, int]] = {name: {} for name in names.split()}

    def put(self, clock: int, **values: int) -> None:
        for name, value in values.items():
            self._events[name][clock] = value

    def inputs(self, clocks: int) -> dict[str, list[int]]:
        return {
            name: [events.get(clock, 0) for clock in range(clocks)]
            for name, events in self._events.items()
        }


async def check_rows(dut: Any, component: str, elements: int, depth: int) -> None:
    rng = generator(component)
    waves = Waves("write write_row write_word write_data write_single write_element read_row")
    contents = np.zeros((depth, elements), np.int8)
    clock = 0

    def write(row: int) -> None:
        nonlocal clock
        contents[row] = rng.integers(-128, 128, elements)
        for number, word in enumerate(link_words(contents[row].tobytes())):
            waves.put(clock, write=1, write_row=row, write_word=number, write_data=word)
            clock += 1

    expected = {}
    for row in rng.permutation(depth):
        write(int(row))
    clock += WRITE_LATENCY - 1
    for row in rng.permutation(depth):  # a row every clock
        waves.put(clock, read_row=int(row))
        expected[clock + MEMORY_READ] = contents[row].copy()
        clock += 1
    for _ in range(100):  # one element of a row
        row, element = int(rng.integers(depth)), int(rng.integers(elements))
        value = int(rng.integers(-128, 128))
        contents[row, element] = value
        waves.put(clock, write=1, write_row=row, write_single=1, write_element=element)
        waves.put(clock, write_word=element // LINK, write_data=join([value] * LINK, 8))
        waves.put(clock + WRITE_LATENCY, read_row=row)
        expected[clock + WRITE_LATENCY + MEMORY_READ] = contents[row].copy()
        clock += WRITE_LATENCY + 1
    for _ in range(200):  # a row is read while another is written
        row, other = (int(r) for r in rng.choice(depth, 2, replace=False))
        waves.put(clock, read_row=other)
        expected[clock + MEMORY_READ] = contents[other].copy()
        write(row)
        clock += WRITE_LATENCY - 1
        waves.put(clock, read_row=row)
        expected[clock + MEMORY_READ] = contents[row].copy()
        clock += 1

    inputs = waves.inputs(clock + MEMORY_READ + 1)
    rows = (await play(dut, component, inputs, ["row"]))["row"]
    for at, row in expected.items():
        np.testing.assert_array_equal(split(rows[at], 8, elements, signed=True), row)


@bench()
async def key_memory(dut: Any) -> None:
    await check_rows(dut, "key_memory", CONFIG.key_rows, KEY_ROWS)


@bench()
async def query_memory(dut: Any) -> None:
    depth = QUERY_BUFFERS * CONFIG.max_head_dim
    await check_rows(dut, "query_memory", CONFIG.query_lanes, depth)


async def check_factors(dut: Any, component: str, factors: int, groups: int) -> None:
    rng = generator(component)
    waves = Waves("write write_group write_word write_data write_single write_element start group")
    contents = rng.integers(0, 65536, (groups, factors)).astype("<u2")
    clock = 0
    for group in rng.permutation(groups):
        for number, word in enumerate(link_words(contents[group].tobytes())):
            waves.put(clock, write=1, write_group=int(group), write_word=number, write_data=word)
            clock += 1
    for _ in range(50):  # one factor of a group
        group, element = int(rng.integers(groups)), int(rng.integers(factors))
        contents[group, element] = value = int(rng.integers(65536))
        waves.put(clock, write=1, write_group=group, write_single=1, write_element=element)
        waves.put(clock, write_word=2 * element // LINK, write_data=join([value] * (LINK // 2), 16))
        clock += 1
    expected = {}
    clock += WRITE_LATENCY - 1
    for number in range(100):
        group = int(rng.integers(groups))
        waves.put(clock, start=1, group=group)
        for place in range(factors):
            expected[clock + FACTOR_READ + place] = contents[group, place]
        clock += factors + (int(rng.integers(0, 5)) if number >= 50 else 0)
    inputs = waves.inputs(clock + FACTOR_READ + factors)
    seen = (await play(dut, component, inputs, ["factor"]))["factor"]
    for at, factor in expected.items():
        assert seen[at] == factor, at


@bench()
async def key_factors(dut: Any) -> None:
    await check_factors(dut, "key_factors", CONFIG.key_rows, CONFIG.slots)


@bench()
async def query_factors(dut: Any) -> None:
    await check_factors(dut, "query_factors", CONFIG.query_lanes, QUERY_BUFFERS)


@bench()
async def a_word_is_its_bytes_in_order(dut: Any) -> None:
    """The order of bytes, from the wire protocol and not from the memory's own slicing."""
    row = list(range(1, CONFIG.key_rows + 1))
    waves = Waves("write write_row write_word write_data write_single write_element read_row")
    for number, start in enumerate(range(0, len(row), LINK)):
        word = join(row[start : start + LINK], 8)
        waves.put(number, write=1, write_word=number, write_data=word)
    clock = 20
    waves.put(clock, read_row=0)
    rows = await play(dut, "key_memory", waves.inputs(clock + 3), ["row"])
    assert split(rows["row"][clock + MEMORY_READ], 8, len(row)) == row
