"""The arithmetic of the accelerator, written down once.

Every function is the exact definition of one step and works alike on Python integers and on
NumPy int64 arrays; the gateware takes its widths, shifts and tables from here, the integer model
calls the functions, and the driver uses the formats of the factors. `Widths` derives from a
configuration how wide each value is. The steps, for one row of queries and a tile of keys::

    score       s = sum(q * k)
    gain        g = round(query_factor * key_factor / 2^15)
    log score   y = round(round(s / 2^score_drop) * g / 2^score_shift), saturated
    bias        b = bias * 2^bias_shift or round(slope * (key - anchor) / 2^slope_shift), saturated
    biased      z = y + b, saturated
    maximum     M' = max(M, ceil(max z))               an integer, so that rescaling is a shift
    probability p = round(2^P * 2^(z - M')), at most 2^P - 1
    row sum     L' = (L >> (M' - M)) + sum(p)
    weight      w = round(p * value_factor / 2^16)
    output      O' = (O >> (M' - M)) + sum(w * v)
    result      r = round(O * 2^result_fraction / L), int16, saturated; 0 where L is 0

``round`` is to the nearest, halves upward; ``>>`` rounds down. Query, key and value factors are
16-bit fractions.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .config import AcceleratorConfig

__all__ = [
    "ANCHOR_BITS",
    "BIAS_BITS",
    "ELEMENT_BITS",
    "FACTOR_BITS",
    "GAIN_BITS",
    "MASK_TILES",
    "MAX_BIAS_SHIFT",
    "MAX_RESULT_FRACTION",
    "MAX_SCORE_SHIFT",
    "MAX_SLOPE_SHIFT",
    "OUTPUT_PARTS",
    "PART_BITS",
    "PRODUCT_PARTS",
    "RESULT_BITS",
    "SLOPE_BITS",
    "SUM_PARTS",
    "Exp2Table",
    "Widths",
    "biased",
    "gain",
    "log_score",
    "normalize",
    "reciprocal",
    "rescale",
    "round_shift",
    "running_maximum",
    "saturate",
    "slope_bias",
    "tile_bias",
    "weight",
]

ELEMENT_BITS = 8
"""Bits of an element of Q, K and V, two's complement."""
FACTOR_BITS = 16
"""Bits of a factor, an unsigned fraction: the stored integer times 2^-16."""
GAIN_BITS = 17
"""Bits of the product of a query and a key factor."""
OPERAND_BITS = 18
"""Width of a signed FPGA multiplier's operand; scores and outputs are rounded to it."""
RESULT_BITS = 16
"""Bits of a result, two's complement."""
MAX_SCORE_SHIFT = 63
MAX_RESULT_FRACTION = 15
BIAS_BITS = 16
"""Bits of an element of a bias tile, two's complement."""
MAX_BIAS_SHIFT = 7
SLOPE_BITS = 16
"""Bits of the slope of a linear bias, unsigned."""
MAX_SLOPE_SHIFT = 31
ANCHOR_BITS = 24
"""Bits of the key position at which a linear bias is zero, two's complement."""
PART_BITS = 16
"""Bits of the parts in which wide numbers cross the link."""
SUM_PARTS, OUTPUT_PARTS, PRODUCT_PARTS = 4, 3, 2
"""Parts of a row sum with its maximum (the last part), of an output, and of a product."""
MASK_TILES = 8
"""Mask and bias tiles that wait in the accelerator for their key tile."""

RECIPROCAL_BITS = 18
"""Bits of the reciprocal of a row sum."""
DIVISOR_BITS = 20
"""Bits to which a row sum is truncated before its reciprocal is taken."""
ALIGN_GUARD = 2
"""Fraction bits that an aligned output has beyond the result's."""

Integer = Any
"""An int or an int64 array; results have the same kind."""


def round_shift(value: Integer, shift: Integer) -> Integer:
    """``value / 2**shift`` rounded to the nearest integer, halves upward."""
    return (value + ((1 << shift) >> 1)) >> shift


def saturate(value: Integer, bits: int) -> Integer:
    """Clamp to the range of a signed integer of `bits` bits."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    if isinstance(value, np.ndarray):
        return np.clip(value, low, high)
    return min(max(value, low), high)


def _least(value: Integer, limit: int) -> Integer:
    return np.minimum(value, limit) if isinstance(value, np.ndarray) else min(value, limit)


def gain(query_factor: Integer, key_factor: Integer) -> Integer:
    """The factor of one score: the product of two 16-bit fractions, to `GAIN_BITS` bits."""
    return round_shift(query_factor * key_factor, 2 * FACTOR_BITS - GAIN_BITS)


def log_score(widths: Widths, score: Integer, factor: Integer, score_shift: Integer) -> Integer:
    """The score in the base-2 logarithmic domain, z, in units of 2^-score_fraction_bits.

    Parameters
    ----------
    widths : Widths
    score : int
        Exact dot product.
    factor : int
        `gain` of the score's query and key.
    score_shift : int
        0 to `MAX_SCORE_SHIFT`, chosen by the host per query tile.
    """
    operand = round_shift(score, widths.score_drop)
    # A product has 36 bits: beyond that every shift gives zero, and int64 would overflow.
    shift = _least(score_shift, 40)
    return saturate(round_shift(operand * factor, shift), widths.log_score)


def slope_bias(widths: Widths, slope: Integer, distance: Integer, slope_shift: Integer) -> Integer:
    """A linear bias in units of 2^-score_fraction_bits.

    Parameters
    ----------
    widths : Widths
    slope : int
        Unsigned, `SLOPE_BITS` bits.
    distance : int
        Position of the key less the anchor.
    slope_shift : int
        0 to `MAX_SLOPE_SHIFT`.
    """
    return saturate(round_shift(slope * distance, slope_shift), widths.log_score)


def tile_bias(widths: Widths, bias: Integer, bias_shift: Integer) -> Integer:
    """A bias of a bias tile in units of 2^-score_fraction_bits.

    Parameters
    ----------
    widths : Widths
    bias : int
        Signed, `BIAS_BITS` bits.
    bias_shift : int
        0 to `MAX_BIAS_SHIFT`.
    """
    return saturate(bias << bias_shift, widths.log_score)


def biased(widths: Widths, log_score: Integer, bias: Integer) -> Integer:
    """A log score plus a bias in the same units."""
    return saturate(log_score + bias, widths.log_score)


def running_maximum(widths: Widths, maximum: Integer, tile_maximum: Integer) -> Integer:
    """The new running maximum, an integer in the base-2 domain.

    Parameters
    ----------
    maximum : int
        The maximum so far; ``widths.lowest_maximum`` before the first key.
    tile_maximum : int
        Largest allowed z of the tile; ``widths.lowest_log_score`` if none is allowed.
    """
    ceiling = -((-tile_maximum) >> widths.fraction)
    if isinstance(ceiling, np.ndarray):
        return np.maximum(maximum, ceiling)
    return max(maximum, ceiling)


def rescale(value: Integer, shift: Integer) -> Integer:
    """Move a sum to a maximum that is `shift` larger; rounds down, and saturates the shift."""
    return value >> _least(shift, 63)


def weight(probability: Integer, value_factor: Integer) -> Integer:
    """The probability times V's scale of the key."""
    return round_shift(probability * value_factor, FACTOR_BITS)


def reciprocal(total: Integer) -> tuple[Integer, Integer]:
    """Reciprocal of a row sum: ``1 / total`` is about ``mantissa * 2**-(17 + length)``.

    Returns
    -------
    mantissa : int
        18 bits; all ones for a sum of zero.
    length : int
        Bit length of the sum.
    """
    if isinstance(total, np.ndarray):
        length = np.where(total > 0, np.frexp(total.astype(np.float64))[1], 0).astype(np.int64)
        up, down = np.maximum(DIVISOR_BITS - length, 0), np.maximum(length - DIVISOR_BITS, 0)
    else:
        length = total.bit_length()
        up, down = max(DIVISOR_BITS - length, 0), max(length - DIVISOR_BITS, 0)
    divisor = (total << up) >> down
    ones = (1 << RECIPROCAL_BITS) - 1
    numerator = 1 << (DIVISOR_BITS - 1 + RECIPROCAL_BITS)
    if isinstance(total, np.ndarray):
        quotient = numerator // np.maximum(divisor, 1)
        return np.minimum(quotient, ones), length
    return min(numerator // max(divisor, 1), ones), length


def normalize(
    output: Integer, mantissa: Integer, length: Integer, result_fraction: Integer
) -> Integer:
    """The result ``output / total``, int16 in units of ``2**-result_fraction``.

    Parameters
    ----------
    output : int
        Accumulated weighted values.
    mantissa, length : int
        `reciprocal` of the row sum.
    result_fraction : int
        0 to `MAX_RESULT_FRACTION`; 8 never saturates.

    Notes
    -----
    Output and reciprocal are rounded to 18 bits first, for one multiplier; the result is within
    one unit of the exactly rounded quotient.
    """
    # A left shift by the largest result fraction and the guard, so that one right shift aligns.
    left = MAX_RESULT_FRACTION + ALIGN_GUARD
    right = length + (MAX_RESULT_FRACTION - result_fraction)
    aligned = saturate(round_shift(output << left, right), OPERAND_BITS)
    return saturate(round_shift(aligned * mantissa, RECIPROCAL_BITS - 1 + ALIGN_GUARD), RESULT_BITS)


class Widths:
    """The widths of every intermediate value of a configuration, in bits.

    Parameters
    ----------
    config : AcceleratorConfig

    Attributes
    ----------
    score : int
        Signed dot product, up to `max_inner` products of -128 * -128.
    score_drop : int
        Low bits rounded off an attention score so that it fits a multiplier's operand.
    log_score : int
        Signed z, with `fraction` fraction bits.
    maximum : int
        Signed running maximum.
    shift : int
        Unsigned difference of two maxima.
    probability : int
        Unsigned p and w.
    partial : int
        Signed sum over one tile of w * v.
    total : int
        Unsigned row sum over `max_sequence` keys.
    accumulator : int
        Signed sum of w * v over `max_sequence` keys.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        product = 2 * ELEMENT_BITS - 2
        self.score = (config.inner << product).bit_length() + 1
        head_score = (config.max_head_dim << product).bit_length() + 1
        self.score_drop = max(head_score - OPERAND_BITS, 0)
        self.fraction = config.score_fraction_bits
        self.log_score = 1 + config.score_integer_bits + config.score_fraction_bits
        # ceil() of the largest z is one more than its integer bits hold.
        self.maximum = config.score_integer_bits + 2
        self.shift = config.score_integer_bits + 2
        self.probability = config.probability_bits
        weighted = ((1 << self.probability) - 1) << (ELEMENT_BITS - 1)
        self.partial = (config.key_rows * weighted).bit_length() + 1
        self.total = (config.max_sequence * ((1 << self.probability) - 1)).bit_length()
        self.accumulator = (config.max_sequence * weighted).bit_length() + 1

    @property
    def lowest_log_score(self) -> int:
        """Smallest z."""
        return -(1 << (self.log_score - 1))

    @property
    def lowest_maximum(self) -> int:
        """The running maximum before any key; no z lies below it."""
        return self.lowest_log_score >> self.fraction


class Exp2Table:
    """Piecewise-linear ``2**-d`` for a distance d >= 0 from the maximum.

    With ``-d = u - n``, n an integer and u a fraction in [0, 1), ``2**u`` is interpolated
    between exact table points (32 segments: a chord is within 2^-14 of the curve), shifted by n.

    Parameters
    ----------
    config : AcceleratorConfig

    Attributes
    ----------
    bases, slopes : list of int
        ``2**u`` at the start of each segment with `table_fraction` fraction bits, and its growth
        per unit of u's low bits with `SLOPE_FRACTION` more.
    """

    SEGMENT_BITS = 5
    SLOPE_FRACTION = 7  # as many as `low_bits` can be, so that no slope is rounded
    GUARD = 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self.probability_bits = config.probability_bits
        self.fraction = config.score_fraction_bits
        self.table_fraction = config.probability_bits + self.GUARD
        self.segment_bits = min(self.SEGMENT_BITS, self.fraction)
        self.low_bits = self.fraction - self.segment_bits
        count = 1 << self.segment_bits
        points = [round(2.0 ** (self.table_fraction + i / count)) for i in range(count + 1)]
        points[-1] -= 1  # a mantissa below 2 keeps its width when it is rounded up
        self.bases = points[:-1]
        self.slopes = [
            round_shift((after - before) << self.SLOPE_FRACTION, self.low_bits)
            for before, after in itertools.pairwise(points)
        ]

    @property
    def max_shift(self) -> int:
        """Whole parts n of d from which on a probability is zero."""
        return self.probability_bits + 2

    def mantissa(self, fraction: Integer) -> Integer:
        """``2**u`` with `table_fraction` fraction bits, u in units of 2^-score_fraction_bits."""
        segment, low = fraction >> self.low_bits, fraction & ((1 << self.low_bits) - 1)
        if isinstance(fraction, np.ndarray):
            base, slope = np.asarray(self.bases)[segment], np.asarray(self.slopes)[segment]
        else:
            base, slope = self.bases[segment], self.slopes[segment]
        return base + round_shift(slope * low, self.SLOPE_FRACTION)

    def probability(self, distance: Integer) -> Integer:
        """``round(2**(P - d))``, at most ``2**P - 1``, for d in units of 2^-score_fraction_bits."""
        whole = -((-distance) >> self.fraction)
        fraction = (whole << self.fraction) - distance
        top = (1 << self.probability_bits) - 1
        shift = self.GUARD + _least(whole, self.max_shift)
        return _least(round_shift(self.mantissa(fraction), shift), top)
