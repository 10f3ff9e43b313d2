"""From floating point to int8 values and 16-bit factors.

A factor is the scale of a token in units of a base, rounded *up* to a fraction of 16 bits; values
are quantized with the stored scale. Rounding a factor therefore loses range, never exactness.
The softmax scale and log2(e) are folded into the query factors, because the accelerator's
logarithm has base 2: with the bases of Q and K multiplied to ``2**exponent``,

    score * query_factor * key_factor * 2**(exponent - 2 * FACTOR_BITS)

is the logit times log2(e), and `score_shift` turns the exponent into the accelerator's shift
(`celosia_hw.arithmetic.log_score`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import FACTOR_BITS, GAIN_BITS, MAX_SCORE_SHIFT, Widths

from .options import AttentionOptions

__all__ = [
    "KeyTensor",
    "Operand",
    "Quantized",
    "QueryTensor",
    "ValueTensor",
    "quantize_keys",
    "quantize_queries",
    "quantize_values",
    "score_shift",
]

Float = npt.NDArray[np.float64]

_LEVELS = 127
_MAX_FACTOR = (1 << FACTOR_BITS) - 1


@dataclass(frozen=True)
class Quantized:
    """An int8 tensor with its scales, accepted by `run_attention` for each of Q, K and V.

    The values go to the accelerator as they are, but that a token that uses only part of int8's
    range is shifted left, which is exact; only the scales are rounded, to the factors' format.
    No smoothing is applied. A negative softmax scale negates a query, and makes its -128 a 127.

    Parameters
    ----------
    values : array or tensor of int8, (..., tokens, head_dim)
    scale : float or array, broadcastable to (..., tokens, 1)
        What a value of 1 stands for; finite and not negative.
    """

    values: Any
    scale: Any


@dataclass(frozen=True)
class Operand:
    """One of Q, K and V as the quantization takes it: floats, or int8 with scales.

    Parameters
    ----------
    values : (..., tokens, head_dim) ndarray
        Floating point where `scale` is None, else int8.
    scale : (..., tokens, 1) float64 ndarray or None
    """

    values: npt.NDArray[Any]
    scale: Float | None = None

    def __getitem__(self, index: Any) -> Operand:
        return Operand(self.values[index], None if self.scale is None else self.scale[index])


@dataclass(frozen=True)
class KeyTensor:
    """Quantized keys of one head: ``values * factors * 2**(exponent - FACTOR_BITS)``.

    Parameters
    ----------
    values : (keys, head_dim) int8
    factors : (keys,) uint16
    exponent : int
    """

    values: npt.NDArray[np.int8]
    factors: npt.NDArray[np.uint16]
    exponent: int


@dataclass(frozen=True)
class ValueTensor:
    """Quantized V of one head: ``values * factors * 2**-FACTOR_BITS * scale + offset``.

    Parameters
    ----------
    values : (keys, value_dim) int8
    factors : (keys,) uint16
    scale : float
    offset : (value_dim,) float64
        The mean that smoothing took out, else zeros.
    """

    values: npt.NDArray[np.int8]
    factors: npt.NDArray[np.uint16]
    scale: float
    offset: Float


@dataclass(frozen=True)
class QueryTensor:
    """Quantized queries of the heads that share one head of keys.

    Parameters
    ----------
    values : (heads, queries, head_dim) int8
    factors : (heads, queries) uint16
    exponents : (heads, tiles) int64
        Per query tile, exponent of the product of the bases of Q and K.
    """

    values: npt.NDArray[np.int8]
    factors: npt.NDArray[np.uint16]
    exponents: npt.NDArray[np.int64]


def score_shift(widths: Widths, exponent: Any) -> Any:
    """The `score_shift` of `log_score` for queries and keys whose bases multiply to 2**exponent.

    The gain has ``2 * FACTOR_BITS - GAIN_BITS`` low bits of the product of the factors dropped,
    the score ``score_drop``, and z has ``widths.fraction`` fraction bits. Beyond
    `MAX_SCORE_SHIFT` z is zero whatever the shift.
    """
    shift = GAIN_BITS - widths.score_drop - widths.fraction - exponent
    return np.minimum(shift, MAX_SCORE_SHIFT)


def quantize_keys(keys: Operand, options: AttentionOptions) -> KeyTensor:
    """Quantize K of one head, (keys, head_dim)."""
    if keys.scale is None:
        floats, exponent = _normalized(keys.values)
        if options.smooth_keys:
            floats = floats - floats.mean(axis=0)
        scales = _scales(floats, options.per_token_key)
    else:
        values, scale = _use_range(keys.values, keys.scale)
        scales, exponent = _normalized(scale)
        floats = values * scales
    base = _base(scales.max())
    factors, stored = _store(scales, base)
    values = _round(floats, stored) if keys.scale is None else values
    return KeyTensor(values, factors[:, 0], int(exponent.item() + base))


def quantize_values(values: Operand, options: AttentionOptions) -> ValueTensor:
    """Quantize V of one head, (keys, value_dim)."""
    offset = np.zeros(values.values.shape[-1])
    if values.scale is None:
        floats, exponent = _normalized(values.values)
        if options.smooth_values:
            mean = floats.mean(axis=0)
            floats, offset = floats - mean, np.ldexp(mean, exponent[0])
        scales = _scales(floats, options.per_token_value)
    else:
        integers, scale = _use_range(values.values, values.scale)
        scales, exponent = _normalized(scale)
    base = scales.max() * (_MAX_FACTOR + 1) / _MAX_FACTOR or 1.0
    stored = np.ceil(scales / base * (_MAX_FACTOR + 1)).clip(0, _MAX_FACTOR)
    if values.scale is None:
        integers = _round(floats, stored * (base / (_MAX_FACTOR + 1)))
    scale = float(np.ldexp(base, exponent.item()))
    return ValueTensor(integers, stored[:, 0].astype(np.uint16), scale, offset)


def quantize_queries(
    queries: Operand,
    keys: KeyTensor,
    softmax_scale: float,
    widths: Widths,
    lanes: int,
    options: AttentionOptions,
) -> QueryTensor:
    """Quantize the queries that attend to `keys`, (heads, queries, head_dim).

    Parameters
    ----------
    queries : Operand
    keys : KeyTensor
    softmax_scale : float
        Factor of the logits. Its sign goes to the values.
    widths : Widths
        Of the accelerator.
    lanes : int
        Queries of one tile, which share an exponent.
    options : AttentionOptions

    Notes
    -----
    The logarithm saturates at ``2**score_integer_bits``. A row whose logits could reach that, by
    the Cauchy-Schwarz bound over all keys, is scaled down to it: their order is kept where
    saturation would make them equal. With 12 integer bits this concerns logits beyond 2800.
    """
    if queries.scale is None:
        floats, exponent = _normalized(queries.values)
        scales = _scales(floats, options.per_token_query)
        values = _round(floats, scales)
    else:
        values, scale = _use_range(queries.values, queries.scale)
        scales, exponent = _normalized(scale)
        floats = values * scales
    if softmax_scale < 0:
        floats, values = -floats, np.negative(values, dtype=np.int16).clip(-128, 127)

    scale_mantissa, scale_exponent = math.frexp(abs(softmax_scale) * math.log2(math.e))
    with np.errstate(over="ignore"):  # a row that overflows is limited
        wanted = np.ldexp(scales * scale_mantissa, exponent + scale_exponent + keys.exponent)
    wanted = np.minimum(wanted, _limit(values, keys, widths))

    heads, count, _ = values.shape
    tiles = -(-count // lanes)
    padded = np.zeros((heads, tiles * lanes))
    padded[:, :count] = wanted[..., 0]
    exponents = _base(padded.reshape(heads, tiles, lanes).max(axis=-1))
    lowest = GAIN_BITS - widths.score_drop - widths.fraction - MAX_SCORE_SHIFT
    exponents = np.maximum(exponents, lowest)
    per_row = np.repeat(exponents, lanes, axis=-1)[:, :count, None]
    factors, stored = _store(wanted, per_row)
    if queries.scale is None:
        growth = np.divide(stored, wanted, out=np.ones_like(wanted), where=wanted > 0)
        values = _round(floats, scales * growth)
    return QueryTensor(values.astype(np.int8), factors[..., 0], exponents)


def _limit(values: npt.NDArray, keys: KeyTensor, widths: Widths) -> Float:
    """Largest scales of query rows, (..., 1), with which z cannot saturate."""
    key_scales = keys.factors / (_MAX_FACTOR + 1)
    key_norm = (np.linalg.norm(keys.values.astype(np.float64), axis=-1) * key_scales).max()
    query_norm = np.linalg.norm(values.astype(np.float64), axis=-1, keepdims=True)
    # The score is rounded to 2**score_drop, which may add half of that.
    rounding = (1 << widths.score_drop) / 2 * key_scales.max()
    bound = query_norm * key_norm + rounding
    whole_bits = widths.log_score - 1 - widths.fraction
    largest = (1 << whole_bits) - 1
    with np.errstate(divide="ignore"):
        limit = largest / bound
    # score_shift cannot be negative.
    highest = GAIN_BITS - widths.score_drop - widths.fraction
    return np.minimum(limit, math.ldexp(_MAX_FACTOR, highest - FACTOR_BITS))


def _normalized(x: npt.NDArray) -> tuple[Float, npt.NDArray[np.int64]]:
    """Scale by a power of two so that the largest magnitude of each head lies in [0.5, 1).

    Keeps the squares and sums of the largest and the smallest numbers in range. Returns the
    scaled float64 array and the exponents, (..., 1, 1).
    """
    x = x.astype(np.float64)
    peak = np.abs(x).max(axis=(-2, -1), keepdims=True)
    exponent = np.frexp(peak)[1].astype(np.int64)
    return np.ldexp(x, -exponent), exponent


def _scales(x: Float, per_token: bool) -> Float:
    """Scales, (..., tokens, 1), that take the largest magnitude to 127."""
    peak = np.abs(x).max(axis=-1, keepdims=True)
    if not per_token:
        peak = np.broadcast_to(peak.max(axis=-2, keepdims=True), peak.shape)
    return peak / _LEVELS


def _use_range(values: npt.NDArray[np.int8], scale: Float) -> tuple[npt.NDArray[np.int8], Float]:
    """Shift each token of small int8 values left as far as it goes; exact."""
    peak = np.abs(values.astype(np.int16)).max(axis=-1, keepdims=True)
    shift = np.where(peak > 0, (7 - np.frexp(peak.astype(np.float64))[1]).clip(0), 0)
    return (values << shift.astype(np.int8)).astype(np.int8), np.ldexp(scale, -shift)


def _base(peak: Any) -> npt.NDArray[np.int64]:
    """Smallest exponent b with ``ceil(peak * 2**(FACTOR_BITS - b)) <= _MAX_FACTOR``."""
    mantissa, exponent = np.frexp(peak)
    return exponent.astype(np.int64) + (mantissa * (_MAX_FACTOR + 1) > _MAX_FACTOR)


def _store(scales: Float, base: Any) -> tuple[npt.NDArray[np.uint16], Float]:
    """Factors of scales, rounded up, and the scales that they stand for."""
    factors = np.ceil(np.ldexp(scales, FACTOR_BITS - base))
    return factors.astype(np.uint16), np.ldexp(factors, base - FACTOR_BITS)


def _round(x: Float, scales: Float) -> npt.NDArray[np.int8]:
    """``x / scales`` to the nearest, halves to even; 0 where the scale is."""
    ratio = np.divide(x, scales, out=np.zeros_like(x), where=scales > 0)
    return np.rint(ratio).clip(-_LEVELS, _LEVELS).astype(np.int8)
