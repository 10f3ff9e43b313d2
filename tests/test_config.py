import dataclasses

import pytest

from celosia_hw.config import PRESETS, AcceleratorConfig, ConfigError, preset


def test_defaults_fill_in():
    config = AcceleratorConfig()
    assert config.max_inner == config.inner == config.max_head_dim == 128
    assert config.normalizer_lanes == config.output_lanes == 8


def test_normalizer_lanes_divide_odd_lane_counts():
    assert AcceleratorConfig(query_lanes=6, link_bytes=16).output_lanes == 2
    assert AcceleratorConfig(query_lanes=5, link_bytes=16).output_lanes == 1
    assert AcceleratorConfig(query_lanes=4, link_bytes=64).output_lanes == 4


def test_derived_properties_of_tiny():
    config = preset("tiny")
    assert config.slots_per_bank == 6
    assert config.slots == 12
    assert config.key_capacity == 48
    assert config.link_bits == 32
    assert config.tile_latency == 8
    assert config.multipliers == 24
    assert [config.words(count) for count in (0, 1, 4, 5, 16)] == [0, 1, 1, 2, 4]


def test_pitch_is_the_slowest_part():
    config = AcceleratorConfig(key_rows=16, max_head_dim=128)
    assert config.pitch(64, 32) == 64
    assert config.pitch(32, 64) == 64
    assert config.pitch(3, 5) == 16
    assert preset("tiny").pitch(1, 1) == 8


def test_memory_bits_of_tiny():
    # 12 slots of 10 words of 4 rows; queries and accumulators twice for 3 lanes.
    assert preset("tiny").memory_bits == {
        "keys": 12 * 10 * 4 * 8,
        "values": 12 * 10 * 4 * 8,
        "factors": 12 * 4 * 32,
        "queries": 2 * 10 * 3 * 8,
        "accumulators": 2 * 10 * 3 * 39,
        "masks": 8 * 4 * 3 * 17,
    }


def test_reference_configuration_widths_of_accumulators():
    assert preset("default").memory_bits["accumulators"] == 2 * 128 * 16 * 39


def test_frozen_and_round_trip():
    config = preset("tiny")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.key_rows = 8  # type: ignore[misc]
    assert AcceleratorConfig(**config.to_dict()) == config
    assert hash(AcceleratorConfig(**config.to_dict())) == hash(config)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build(name):
    assert preset(name) is PRESETS[name]


def test_unknown_preset_lists_the_known():
    with pytest.raises(ConfigError, match=r"unknown configuration 'huge'.*tiny, small, default"):
        preset("huge")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"key_rows": 1}, "key_rows must be between 2 and 64, not 1"),
        ({"key_rows": 65}, "key_rows must be between 2 and 64, not 65"),
        ({"query_lanes": 0}, "query_lanes must be between 2 and 64, not 0"),
        ({"max_head_dim": 0}, "max_head_dim must be between 1 and 256, not 0"),
        ({"max_head_dim": 257}, "max_head_dim must be between 1 and 256, not 257"),
        ({"max_keys": 16400}, "max_keys must be between 2 and 16384, not 16400"),
        ({"key_banks": 0}, "key_banks must be between 1 and 16, not 0"),
        ({"max_sequence": 1 << 21}, "max_sequence must be between 2 and 1048576, not 2097152"),
        ({"max_inner": 1 << 17}, "max_inner must be between 1 and 65536, not 131072"),
        ({"probability_bits": 7}, "probability_bits must be between 8 and 16, not 7"),
        ({"probability_bits": 17}, "probability_bits must be between 8 and 16, not 17"),
        ({"score_fraction_bits": 3}, "score_fraction_bits must be between 4 and 12, not 3"),
        ({"score_integer_bits": 9}, "score_integer_bits must be between 10 and 13, not 9"),
        ({"normalizer_lanes": 0}, "normalizer_lanes must be between 1 and 32, not 0"),
        ({"link_bytes": 2}, "link_bytes must be between 4 and 64, not 2"),
        ({"multiplier_stages": 0}, "multiplier_stages must be between 1 and 4, not 0"),
        ({"link_bytes": 12, "normalizer_lanes": 2}, "link_bytes must be a power of two, not 12"),
        ({"max_keys": 100}, r"max_keys \(100\) must be a multiple of key_rows \(16\)"),
        (
            {"max_keys": 8192, "key_banks": 3},
            r"max_keys x key_banks \(24576\) must be at most 16384",
        ),
        (
            {"max_keys": 1024, "max_sequence": 1023},
            r"max_sequence \(1023\) must be at least max_keys \(1024\)",
        ),
        ({"max_inner": 127}, r"max_inner \(127\) must be at least max_head_dim \(128\)"),
        ({"normalizer_lanes": 3}, r"normalizer_lanes \(3\) must divide query_lanes \(16\)"),
        ({"normalizer_lanes": 16}, r"normalizer_lanes \(16\) must divide link_bytes // 2 \(8\)"),
    ],
)
def test_impossible_configurations(values, message):
    with pytest.raises(ConfigError, match=message):
        AcceleratorConfig(**values)


@pytest.mark.parametrize("value", [16.0, "16", True])
def test_parameters_are_integers(value):
    with pytest.raises(TypeError, match="key_rows must be an int, not"):
        AcceleratorConfig(key_rows=value)
