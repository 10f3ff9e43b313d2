"""MaskMemory and TileList: what the wire protocol says of their payloads is what comes out."""

from __future__ import annotations

from typing import Any

import numpy as np

from benches.bench_memories import Waves, link_words
from benches.common import bench, configuration, generator, play, split
from celosia_hw.arithmetic import MASK_TILES, Widths, tile_bias
from celosia_hw.mask_memory import MaskMemory, MaskStep
from celosia_hw.payload import QUERY_BUFFERS

CONFIG = configuration()
ROWS, LANES, LINK = CONFIG.key_rows, CONFIG.query_lanes, CONFIG.link_bytes
STEP, BITS = MaskStep(CONFIG), Widths(CONFIG).log_score
LIST_LATENCY = 4


def mask_words(bits: Any) -> list[int]:
    """As many keys to a word as fit, C bits each."""
    words, per_word = [], 8 * LINK // LANES
    for start in range(0, ROWS, per_word):
        flat = bits[start : start + per_word].ravel()
        words.append(sum(int(bit) << place for place, bit in enumerate(flat)))
    return words


@bench()
async def masks(dut: Any) -> None:
    rng = generator("masks")
    waves = Waves("write_mask write_bias write_place write_row write_word write_data step")
    allowed = rng.random((MASK_TILES, ROWS, LANES)) < 0.5
    bias = rng.integers(-(1 << 15), 1 << 15, (MASK_TILES, ROWS, LANES)).astype("<i2")
    clock = 0
    for place in rng.permutation(MASK_TILES):
        for number, word in enumerate(mask_words(allowed[place])):
            waves.put(clock, write_mask=1, write_place=int(place))
            waves.put(clock, write_word=number, write_data=word)
            clock += 1
        for row in range(ROWS):
            for number, word in enumerate(link_words(bias[place, row].tobytes())):
                waves.put(clock, write_bias=1, write_place=int(place), write_row=row)
                waves.put(clock, write_word=number, write_data=word)
                clock += 1

    expected = {}
    for _ in range(300):
        place, row, shift = (int(rng.integers(n)) for n in (MASK_TILES, ROWS, 8))
        masked, biased = (int(x) for x in rng.integers(0, 2, 2))
        slope = int(rng.integers(-(1 << (BITS - 1)), 1 << (BITS - 1)))
        fields = {"row": row, "place": place, "masked": masked, "biased": biased}
        fields |= {"bias_shift": shift, "slope_bias": slope & ((1 << BITS) - 1)}
        waves.put(clock, step=sum(value << STEP[name].offset for name, value in fields.items()))
        shifted = tile_bias(Widths(CONFIG), bias[place, row].astype(np.int64), shift)
        bits = allowed[place, row] if masked else np.ones(LANES, bool)
        expected[clock + MaskMemory.LATENCY] = bits, shifted if biased else np.full(LANES, slope)
        clock += 1 + int(rng.integers(0, 3) == 0)

    inputs = waves.inputs(clock + MaskMemory.LATENCY + LANES + 1)
    seen = await play(dut, "masks", inputs, ["allowed", "biases"])
    for at, (bits, biases) in expected.items():
        for lane in range(LANES):
            assert seen["allowed"][at + lane] >> lane & 1 == bits[lane]
            found = split(seen["biases"][at + lane], BITS, LANES, signed=True)
            assert found[lane] == biases[lane]


@bench()
async def tile_list(dut: Any) -> None:
    rng = generator("tile_list")
    waves = Waves("write write_group write_word write_data start group advance")
    lists = rng.integers(0, CONFIG.slots, (QUERY_BUFFERS, CONFIG.slots)).astype("<u2")
    clock = 0
    for group in range(QUERY_BUFFERS):
        for number, word in enumerate(link_words(lists[group].tobytes())):
            waves.put(clock, write=1, write_group=group, write_word=number, write_data=word)
            clock += 1
    expected = {}
    for group in (1, 0, 1):
        waves.put(clock, start=1, group=group)
        for entry in lists[group]:
            for wait in range(CONFIG.tile_latency - LIST_LATENCY):
                expected[clock + LIST_LATENCY + wait] = entry
            clock += CONFIG.tile_latency
            waves.put(clock, advance=1)
    seen = await play(dut, "tile_list", waves.inputs(clock + 8), ["offset"])
    for at, entry in expected.items():
        assert seen["offset"][at] == entry, at
