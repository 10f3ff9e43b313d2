"""Sequences longer than the key banks: chunks with the state carried on."""

import dataclasses

import numpy as np
import pytest

import celosia
from celosia import run_attention_raw
from celosia_hw.config import AcceleratorConfig, preset
from test_attention import KINDS, random_call

TINY = preset("tiny")  # 2 banks of 24 keys
LARGE = dataclasses.replace(TINY, max_keys=240)


def long_call(seed):
    """Random tensors with more keys than a bank, and a mask."""
    tensors, arguments, _ = random_call(seed, most=150, dims=11)
    return tensors, arguments


def raw(tensors, config, device="model", **arguments):
    with celosia.open_device(device, config=config) as opened:
        result = run_attention_raw(*tensors, enable_gqa=True, device=opened, **arguments)
        assert opened.report is not None
        return result.values, opened.report


@pytest.mark.parametrize("seed", range(5 * len(KINDS)))
def test_chunks_are_one_run(seed):
    tensors, arguments = long_call(seed)
    values, _ = raw(tensors, TINY, **arguments)
    expected, _ = raw(tensors, LARGE, **arguments)
    np.testing.assert_array_equal(values, expected)


# Over a line, states take long: some that are short.
@pytest.mark.parametrize(
    ("hardware", "seed"),
    [("sim", seed) for seed in range(2 * len(KINDS))]
    + [("board", seed) for seed in (0, 1, 2, 3, 6)],
    indirect=["hardware"],
)
def test_chunks_on_the_hardware(seed, hardware):
    tensors, arguments = long_call(100 + seed)
    values, report = raw(tensors, None, hardware, **arguments)
    expected, _ = raw(tensors, LARGE, **arguments)
    np.testing.assert_array_equal(values, expected)
    assert report.busy > 0


def test_4096_keys_on_banks_of_1024():
    small = dataclasses.replace(preset("small"), max_head_dim=16)
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=(1, 1, count, 16)) for count in (40, 4096, 4096)]
    values, report = raw(tensors, small, "sim")
    expected, one = raw(tensors, dataclasses.replace(small, max_keys=4096))
    np.testing.assert_array_equal(values, expected)
    assert report.useful_macs == one.useful_macs == 40 * 4096 * 32


def test_keys_and_values_cross_the_link_once():
    config = AcceleratorConfig(
        key_rows=8, query_lanes=8, max_head_dim=16, max_keys=64, link_bytes=8
    )
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=(1, 1, count, 16)) for count in (64, 256, 256)]
    _, chunked = raw(tensors, config)
    _, whole = raw(tensors, dataclasses.replace(config, max_keys=256))
    # Three states of 8 query tiles, and the queries three times more: 6 bytes an output.
    state = 8 * (8 + 6 * 16)
    queries = 16 + 8 * 16 + 16
    headers = 16 * (256 // 8)
    assert chunked.bytes_sent - whole.bytes_sent <= 3 * 8 * (state + queries) + headers
