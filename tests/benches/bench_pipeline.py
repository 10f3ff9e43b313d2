"""EventDelay, Steps and PacketMerge."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
from cocotb.triggers import ClockCycles

from benches.common import (
    StreamMonitor,
    StreamSink,
    StreamSource,
    bench,
    configuration,
    generator,
    play,
    start,
)
from benches.testbed import DELAYS

CONFIG = configuration()


async def check_delay(dut: Any, name: str) -> None:
    rng = generator(name)
    delay, spacing = DELAYS[name]
    gaps = [spacing] * 40 + [spacing + int(g) for g in rng.integers(0, 3 * delay, 40)]
    events = np.cumsum(gaps)
    clocks = int(events[-1]) + delay + 1
    valid, records = np.zeros(clocks, int), rng.integers(0, 512, clocks)
    valid[events] = 1
    inputs = {"i_valid": list(valid), "i": list(records)}
    seen = await play(dut, name, inputs, ["o_valid", "o"])
    np.testing.assert_array_equal(seen["o_valid"][delay:], valid[:-delay])
    assert not seen["o_valid"][:delay].any()
    np.testing.assert_array_equal(seen["o"][events + delay], records[events])


@bench()
async def delay_short(dut: Any) -> None:
    await check_delay(dut, "delay_short")


@bench()
async def delay_long(dut: Any) -> None:
    await check_delay(dut, "delay_long")


@bench()
async def delay_exact(dut: Any) -> None:
    await check_delay(dut, "delay_exact")


@bench()
async def steps(dut: Any) -> None:
    rng = generator("pipeline steps")
    limit = CONFIG.max_head_dim
    counts = [*range(1, limit + 1), *(int(c) for c in rng.integers(1, limit + 1, 150))]
    begins, expected, clock = {}, {}, 0
    for number, count in enumerate(counts):
        begins[clock] = count - 1
        for index in range(count):
            expected[clock + 1 + index] = (1, index, int(index == 0), int(index == count - 1))
        # The next event at the earliest with the last step.
        clock += count + (int(rng.integers(0, 4)) if number % 2 else 0)
    clocks = clock + 3
    inputs = {
        "start": [int(c in begins) for c in range(clocks)],
        "count_minus_one": [begins.get(c, int(rng.integers(0, limit))) for c in range(clocks)],
    }
    names = ["active", "index", "first", "last"]
    seen = await play(dut, "steps", inputs, names)
    for c in range(clocks):
        values = tuple(seen[name][c] for name in names)
        if c in expected:
            assert values == expected[c], c
        else:
            assert (values[0], *values[2:]) == (0, 0, 0), c


def packets(rng: np.random.Generator, source: int, count: int) -> list[list[int]]:
    """Packets whose words say where they come from; the most significant bit is `last`."""
    last, result = 1 << CONFIG.link_bits, []
    for number in range(count):
        length = int(rng.integers(1, 6))
        words = [source << 31 | number << 8 | place for place in range(length)]
        words[-1] |= last
        result.append(words)
    return result


async def check_merge(dut: Any, idle: float, stall: float, shy: bool) -> None:
    rng = generator(f"pipeline merge {idle} {stall} {shy}")
    names = [f"{side}__{part}" for side in ("first", "second") for part in ("payload", "valid")]
    await start(dut, "merge", [*names, "joined__ready"])
    sink = StreamSink(dut, "merge", "joined")
    sink.stall, sink.shy = stall, shy
    cocotb.start_soon(sink.run(rng))
    cocotb.start_soon(StreamMonitor(dut, "merge", "joined").run())
    sent, tasks = {}, []
    for number, side in enumerate(("first", "second")):
        cocotb.start_soon(StreamMonitor(dut, "merge", side).run())
        sent[number] = packets(rng, number, 80)
        words = [word for packet in sent[number] for word in packet]
        source = StreamSource(dut, "merge", side)
        tasks.append(cocotb.start_soon(source.send(words, rng, idle)))
    for task in tasks:
        await task
    await ClockCycles(dut.merge_clk, 3)

    received: dict[int, list[list[int]]] = {0: [], 1: []}
    packet: list[int] = []
    for word in sink.words:
        packet.append(word)
        if word >> CONFIG.link_bits:
            received[packet[0] >> 31 & 1].append(packet)
            packet = []
    assert not packet
    assert received == sent


@bench()
async def merge(dut: Any) -> None:
    await check_merge(dut, 0.0, 0.0, False)


@bench()
async def merge_idle(dut: Any) -> None:
    await check_merge(dut, 0.5, 0.0, False)


@bench()
async def merge_stalled(dut: Any) -> None:
    await check_merge(dut, 0.3, 0.5, False)


@bench()
async def merge_shy(dut: Any) -> None:
    await check_merge(dut, 0.3, 0.2, True)
