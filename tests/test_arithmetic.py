"""The definitions in `celosia_hw.arithmetic` against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from celosia_hw import arithmetic
from celosia_hw.arithmetic import Exp2Table, Widths
from celosia_hw.config import PRESETS, AcceleratorConfig, preset

CONFIGS = {
    **PRESETS,
    "smallest": AcceleratorConfig(
        key_rows=2,
        query_lanes=2,
        max_head_dim=1,
        max_keys=2,
        key_banks=1,
        max_sequence=2,
        probability_bits=8,
        score_fraction_bits=4,
        score_integer_bits=10,
        link_bytes=4,
        normalizer_lanes=1,
    ),
    "odd": AcceleratorConfig(
        key_rows=7, query_lanes=5, max_head_dim=33, max_keys=21, max_sequence=99, max_inner=77
    ),
    "largest": AcceleratorConfig(
        key_rows=64,
        query_lanes=64,
        max_head_dim=256,
        max_keys=16384,
        key_banks=1,
        max_sequence=1 << 20,
        max_inner=1 << 16,
        score_fraction_bits=12,
        score_integer_bits=13,
        link_bytes=64,
    ),
}
SIGNED64 = st.integers(-(1 << 60), (1 << 60) - 1)


def nearest(value: Fraction) -> int:
    """The nearest integer, halves upward."""
    return math.floor(value + Fraction(1, 2))


def holds(value: int, bits: int) -> bool:
    """Whether a signed number of `bits` bits holds `value`."""
    return -(2 ** (bits - 1)) <= value <= 2 ** (bits - 1) - 1


def as_array(*values):
    return tuple(np.array([value], np.int64) for value in values)


@given(SIGNED64, st.integers(0, 61))
@example(-1, 1)
@example(1, 1)
@example(-3, 1)
@example(5, 0)
def test_round_shift(value, shift):
    expected = nearest(Fraction(value, 2**shift))
    assert arithmetic.round_shift(value, shift) == expected
    array, shifts = as_array(value, shift)
    assert arithmetic.round_shift(array, shift)[0] == expected
    assert arithmetic.round_shift(array, shifts)[0] == expected


@given(SIGNED64, st.integers(1, 40))
def test_saturate(value, bits):
    expected = sorted([-(2 ** (bits - 1)), value, 2 ** (bits - 1) - 1])[1]
    assert arithmetic.saturate(value, bits) == expected
    assert arithmetic.saturate(np.array([value]), bits)[0] == expected


@given(st.integers(0, 65535), st.integers(0, 65535))
@example(65535, 65535)
def test_gain(query_factor, key_factor):
    # Both fractions of 2^16; the gain has 17 fraction bits.
    exact = Fraction(query_factor, 2**16) * Fraction(key_factor, 2**16)
    result = arithmetic.gain(query_factor, key_factor)
    assert result == nearest(exact * 2**17)
    assert 0 <= result < 2**arithmetic.GAIN_BITS
    assert arithmetic.gain(*as_array(query_factor, key_factor))[0] == result


@pytest.mark.parametrize("name", CONFIGS)
@given(data=st.data())
def test_log_score(name, data):
    config = CONFIGS[name]
    widths = Widths(config)
    limit = config.max_head_dim * 128 * 128
    score = data.draw(st.integers(-limit, limit) | st.sampled_from([-limit, limit]), "score")
    factor = data.draw(st.integers(0, 2**17 - 1) | st.just(2**17 - 1), "gain")
    shift = data.draw(st.integers(0, arithmetic.MAX_SCORE_SHIFT), "shift")
    operand = nearest(Fraction(score, 2**widths.score_drop))
    assert holds(operand, arithmetic.OPERAND_BITS)
    exact = nearest(Fraction(operand * factor, 2**shift))
    expected = min(max(exact, widths.lowest_log_score), -widths.lowest_log_score - 1)
    assert arithmetic.log_score(widths, score, factor, shift) == expected
    scores, factors, shifts = as_array(score, factor, shift)
    assert arithmetic.log_score(widths, scores, factors, shifts)[0] == expected
    assert arithmetic.log_score(widths, scores, factors, shift)[0] == expected


@pytest.mark.parametrize("name", CONFIGS)
@given(data=st.data())
def test_running_maximum(name, data):
    widths = Widths(CONFIGS[name])
    lowest, highest = widths.lowest_log_score, -widths.lowest_log_score - 1
    z = data.draw(st.integers(lowest, highest) | st.sampled_from([lowest, highest]), "z")
    top = math.ceil(Fraction(highest, 2**widths.fraction))
    before = data.draw(st.integers(widths.lowest_maximum, top), "before")
    expected = max(before, math.ceil(Fraction(z, 2**widths.fraction)))
    assert arithmetic.running_maximum(widths, before, z) == expected
    assert arithmetic.running_maximum(widths, *as_array(before, z))[0] == expected
    assert holds(expected, widths.maximum)
    assert 0 <= expected - before < 2**widths.shift


@pytest.mark.parametrize("name", CONFIGS)
def test_no_key_leaves_the_first_maximum(name):
    widths = Widths(CONFIGS[name])
    lowest = widths.lowest_maximum
    assert lowest * 2**widths.fraction == widths.lowest_log_score
    assert arithmetic.running_maximum(widths, lowest, widths.lowest_log_score) == lowest


@given(st.integers(-(1 << 44), 1 << 44), st.integers(0, 1 << 14))
@example(-1, 1 << 14)
def test_rescale(value, shift):
    expected = math.floor(Fraction(value, 2**shift))
    assert arithmetic.rescale(value, shift) == expected
    assert arithmetic.rescale(*as_array(value, shift))[0] == expected


@given(st.integers(0, 65535), st.integers(0, 65535))
@example(65535, 65535)
def test_weight(probability, factor):
    result = arithmetic.weight(probability, factor)
    assert result == nearest(Fraction(probability * factor, 2**16))
    assert 0 <= result <= probability
    assert arithmetic.weight(*as_array(probability, factor))[0] == result


@pytest.mark.parametrize("fraction", [4, 5, 6, 10, 11, 12])
@pytest.mark.parametrize("bits", [8, 9, 12, 16])
class TestExp2:
    """Every distance that does not give zero, and some beyond."""

    def setup(self, bits, fraction):
        config = AcceleratorConfig(probability_bits=bits, score_fraction_bits=fraction)
        distance = np.arange((bits + 4) << fraction)
        return Exp2Table(config), distance, np.exp2(bits - distance / 2.0**fraction)

    def test_ends(self, bits, fraction):
        table, _, _ = self.setup(bits, fraction)
        assert table.probability(0) == 2**bits - 1
        assert table.probability(1 << fraction) == 2 ** (bits - 1)
        assert table.probability(bits << fraction) == 1
        assert table.probability((bits + 1) << fraction) == 1  # a half, rounded upward
        assert table.probability((bits + 2) << fraction) == 0
        assert table.probability(1 << 40) == 0

    def test_zero_from_the_largest_shift_on(self, bits, fraction):
        table, distance, _ = self.setup(bits, fraction)
        assert not table.probability(distance[(table.max_shift - 1 << fraction) + 1 :]).any()

    def test_never_rises(self, bits, fraction):
        table, distance, _ = self.setup(bits, fraction)
        assert (np.diff(table.probability(distance)) <= 0).all()

    def test_error_bound(self, bits, fraction):
        # 2^-13 of the chord, half a unit of rounding, and a unit at the top that saturates.
        table, distance, exact = self.setup(bits, fraction)
        error = np.abs(table.probability(distance) - np.minimum(exact, 2**bits - 1))
        assert (error <= 0.5 + exact * 2.0**-13 + 2.0**-table.GUARD).all()

    def test_mantissa_keeps_its_width(self, bits, fraction):
        table, _, _ = self.setup(bits, fraction)
        mantissa = table.mantissa(np.arange(1 << fraction))
        assert mantissa.min() == 1 << table.table_fraction
        assert mantissa.max() < 2 << table.table_fraction

    def test_array_equals_int(self, bits, fraction):
        table, distance, _ = self.setup(bits, fraction)
        some = distance[:: 1 + len(distance) // 2000]
        assert table.probability(some).tolist() == [table.probability(d) for d in some.tolist()]


def test_exp2_relative_error_at_the_default_formats():
    table = Exp2Table(AcceleratorConfig())
    fraction = np.arange(1 << 10)
    exact = np.exp2(table.table_fraction + fraction / 2**10)
    assert np.abs(table.mantissa(fraction) / exact - 1).max() < 2**-13


TOTAL_BITS = Widths(CONFIGS["largest"]).total


@given(st.integers(1, 2**TOTAL_BITS - 1) | st.integers(1, 2**21))
@example(1)
@example(2**19)
@example(2**20 - 1)
@example(2**20)
@example(2**20 + 1)
@example(2**TOTAL_BITS - 1)
@example(2 ** (TOTAL_BITS - 1))
def test_reciprocal(total):
    mantissa, length = arithmetic.reciprocal(total)
    assert 2 ** (length - 1) <= total < 2**length
    assert 2**17 <= mantissa < 2**arithmetic.RECIPROCAL_BITS
    product = Fraction(mantissa * total, 2 ** (17 + length))
    assert abs(product - 1) <= Fraction(1, 2**17)
    arrays = arithmetic.reciprocal(*as_array(total))
    assert (arrays[0][0], arrays[1][0]) == (mantissa, length)


def test_reciprocal_of_zero():
    assert arithmetic.reciprocal(0) == (2**18 - 1, 0)
    mantissa, length = arithmetic.reciprocal(np.zeros(1, np.int64))
    assert (mantissa[0], length[0]) == (2**18 - 1, 0)
    for fraction in range(16):
        assert arithmetic.normalize(0, 2**18 - 1, 0, fraction) == 0


@given(
    st.integers(1, 2**TOTAL_BITS - 1) | st.integers(0, TOTAL_BITS - 1).map(lambda n: 2**n),
    st.fractions(-128, 128) | st.sampled_from([-128, -1, 0, 1, 127, 128]),
    st.integers(0, arithmetic.MAX_RESULT_FRACTION),
)
def test_normalize_is_within_one_unit_of_the_rounded_quotient(total, ratio, fraction):
    output = math.floor(total * ratio)
    exact = nearest(Fraction(output * 2**fraction, total))
    exact = min(max(exact, -(2**15)), 2**15 - 1)
    mantissa, length = arithmetic.reciprocal(total)
    result = arithmetic.normalize(output, mantissa, length, fraction)
    assert abs(result - exact) <= 1
    outputs, mantissas, lengths, fractions = as_array(output, mantissa, length, fraction)
    assert arithmetic.normalize(outputs, mantissas, lengths, fractions)[0] == result
    assert arithmetic.normalize(outputs, mantissas, lengths, fraction)[0] == result


@pytest.mark.parametrize("name", CONFIGS)
class TestWidths:
    """The extremes of every sum fit, and half the width would not do."""

    def test_score(self, name):
        config, widths = CONFIGS[name], Widths(CONFIGS[name])
        largest = config.inner * (-128 * -128)
        assert holds(largest, widths.score)
        assert holds(config.inner * (-128 * 127), widths.score)
        assert not holds(largest, widths.score - 1)

    def test_score_operand(self, name):
        config, widths = CONFIGS[name], Widths(CONFIGS[name])
        for score in (config.max_head_dim * 2**14, -config.max_head_dim * 128 * 127):
            operand = arithmetic.round_shift(score, widths.score_drop)
            assert holds(operand, arithmetic.OPERAND_BITS)

    def test_sums(self, name):
        config, widths = CONFIGS[name], Widths(CONFIGS[name])
        probability = Exp2Table(config).probability(0)
        assert probability == 2**widths.probability - 1
        weight = arithmetic.weight(probability, 65535)
        for value in (-128, 127):
            assert holds(config.key_rows * weight * value, widths.partial)
            assert holds(config.max_sequence * weight * value, widths.accumulator)
        assert config.max_sequence * probability < 2**widths.total
        assert config.max_sequence * probability >= 2 ** (widths.total - 1)

    def test_intermediates_of_normalize_fit_int64(self, name):
        config, widths = CONFIGS[name], Widths(CONFIGS[name])
        total = config.max_sequence * (2**widths.probability - 1)
        for value in (-128, 127):
            for fraction in (0, 8, arithmetic.MAX_RESULT_FRACTION):
                mantissa, length = arithmetic.reciprocal(total)
                expected = arithmetic.normalize(total * value, mantissa, length, fraction)
                arrays = as_array(total * value, mantissa, length, fraction)
                assert arithmetic.normalize(*arrays)[0] == expected
                assert abs(expected - min(max(value << fraction, -(2**15)), 2**15 - 1)) <= 1


def test_widths_of_the_reference_configuration():
    widths = Widths(preset("default"))
    assert (widths.total, widths.accumulator) == (31, 39)
    assert (widths.score, widths.score_drop, widths.log_score) == (23, 5, 23)
