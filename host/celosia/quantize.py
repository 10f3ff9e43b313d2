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

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import (
    FACTOR_BITS,
    GAIN_BITS,
    MAX_RESULT_FRACTION,
    MAX_SCORE_SHIFT,
    RESULT_BITS,
    Widths,
)

from .options import AttentionOptions
from .transforms import (
    Rounding,
    balance,
    balance_values,
    covariance,
    mass,
    rotation,
    sample_attention,
)

__all__ = [
    "SAFE_FRACTION",
    "SCALE_GROWTH",
    "KeyTensor",
    "LogitTransform",
    "Operand",
    "Quantized",
    "QueryTensor",
    "ValueTensor",
    "logit_transform",
    "quantize_keys",
    "quantize_queries",
    "quantize_values",
    "score_shift",
]

Float = npt.NDArray[np.float64]

SAFE_FRACTION = 8
"""Result fraction with which no result saturates: it is an average of values of at most 128 units,
of the largest V scale, and no larger fraction is safe, since some value takes more than 64."""
SCALE_GROWTH = (1.0, 1.02, 1.04)
"""What `search_scales` multiplies scales with."""
_RIDGE = 1e-3  # of the mean of the diagonal
_MAX_FACTOR = (1 << FACTOR_BITS) - 1


@dataclass(frozen=True)
class Quantized:
    """An int8 tensor with its scales, accepted by `run_attention` for each of Q, K and V.

    The values go to the accelerator as they are, but that a token that uses only part of int8's
    range is shifted left, which is exact; only the scales are rounded, to the factors' format.
    It is not transformed, and neither are Q where K is `Quantized` and the other way round; K may
    still be smoothed. A negative softmax scale negates a query, and makes its -128 a 127.

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
class LogitTransform:
    """What K of one head and the queries that attend to it go through before they are rounded.

    The keys become ``(key - offset) @ key_matrix``, the queries ``query @ query_matrix``.

    Parameters
    ----------
    offset : (head_dim,) float64
    query_matrix, key_matrix : (head_dim, head_dim) float64
        ``query_matrix @ key_matrix.T`` is the identity.
    query_covariance : (head_dim, head_dim) float64 or None
        Of transformed queries: what errors of the keys are multiplied with. Up to a factor.
    weights : (rows, keys) float64 or None
        Attention weights of some of the queries.
    is_masked : bool
        Whether some queries may not attend to all keys.
    """

    offset: Float
    query_matrix: Float
    key_matrix: Float
    query_covariance: Float | None = None
    weights: Float | None = None
    is_masked: bool = False

    @functools.cached_property
    def mass(self) -> Float | None:
        """How much each key counts, (keys,), 1 on average."""
        return None if self.weights is None else mass(self.weights)


@dataclass(frozen=True)
class KeyTensor:
    """Quantized keys of one head: ``values * factors * 2**(exponent - FACTOR_BITS)``.

    Parameters
    ----------
    values : (keys, head_dim) int8
    factors : (keys,) uint16
    exponent : int
    query_matrix : (head_dim, head_dim) float64 or None
        What queries are multiplied with before they are rounded: their transform, and the linear
        map that fits them to the rounded keys.
    query_metric : (head_dim, head_dim) float64 or None
        Metric for `Rounding` the queries.
    """

    values: npt.NDArray[np.int8]
    factors: npt.NDArray[np.uint16]
    exponent: int
    query_matrix: Float | None = None
    query_metric: Float | None = None


@dataclass(frozen=True)
class ValueTensor:
    """Quantized V of one head.

    It stands for ``values * factors * 2**-FACTOR_BITS * scale @ transform + offset``.

    Parameters
    ----------
    values : (keys, value_dim) int8
    factors : (keys,) uint16
    scale : float
    offset : (value_dim,) float64
        The mean that smoothing took out, else zeros.
    transform : (value_dim, value_dim) float64 or None
        Undoes rotation and balancing; None for the identity.
    result_fraction : int
        Fraction bits of the accelerator's result.
    """

    values: npt.NDArray[np.int8]
    factors: npt.NDArray[np.uint16]
    scale: float
    offset: Float
    transform: Float | None = None
    result_fraction: int = SAFE_FRACTION

    def restore(self, result: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        """The attention that belongs to the one of ``values * factors * 2**-FACTOR_BITS * scale``.

        Parameters
        ----------
        result : (..., value_dim) ndarray
        """
        return (result if self.transform is None else result @ self.transform) + self.offset


@dataclass(frozen=True)
class QueryTensor:
    """Quantized queries of the heads that share one head of keys.

    Parameters
    ----------
    values : (heads, queries, head_dim) int8
    factors : (heads, queries) uint16
    exponents : (tiles,) int64
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


def logit_transform(
    queries: Operand,
    keys: Operand,
    softmax_scale: float,
    options: AttentionOptions,
    limits: npt.NDArray[np.integer] | None = None,
) -> LogitTransform:
    """The transform of K of one head and of the queries that attend to it.

    Parameters
    ----------
    queries : Operand, (heads, queries, head_dim)
    keys : Operand, (keys, head_dim)
    softmax_scale : float
    options : AttentionOptions
    limits : (queries,) int ndarray, optional
        Keys that each query may attend to, counted from the first. Only accuracy depends on it.
    """
    dim = keys.values.shape[-1]
    key, key_exponent = _floats(keys)
    query, query_exponent = _floats(queries)
    offset = np.zeros(dim)
    if options.smooth_keys and keys.scale is None:
        offset = key.mean(axis=0)
    key = key - offset
    with np.errstate(over="ignore"):
        scale = float(np.ldexp(softmax_scale, query_exponent + key_exponent))
    weights = sample_attention(query.reshape(queries.values.shape), key, scale, limits)
    metric = None
    query_matrix = key_matrix = np.eye(dim)
    if queries.scale is None and keys.scale is None:
        if options.balance_keys:
            counts = mass(weights)
            key_covariance = covariance(_centered(key, counts), counts)
            query_matrix = balance(covariance(query), key_covariance)
            key_matrix = np.linalg.inv(query_matrix).T
        if options.rotate_keys:
            query_matrix, key_matrix = query_matrix @ rotation(dim), key_matrix @ rotation(dim)
    if options.error_feedback:
        metric = covariance(query @ query_matrix)
    offset = np.ldexp(offset, key_exponent)
    return LogitTransform(offset, query_matrix, key_matrix, metric, weights, limits is not None)


def quantize_keys(
    keys: Operand, options: AttentionOptions, transform: LogitTransform | None = None
) -> KeyTensor:
    """Quantize K of one head, (keys, head_dim).

    Parameters
    ----------
    keys : Operand
    options : AttentionOptions
    transform : LogitTransform, optional
        If absent, K is rounded as it is.
    """
    if keys.scale is None:
        floats, exponent = _normalized(keys.values)
        rounding = Rounding()
        if transform is not None:
            floats = floats - np.ldexp(transform.offset, -exponent[0])
            floats = floats @ transform.key_matrix
            rounding = Rounding(transform.query_covariance)
        scales = _scales(floats, options.per_token_key)
        if options.search_scales and options.per_token_key:
            scales = rounding.best_scales(floats, scales, SCALE_GROWTH)
        base = _base(scales.max())
        factors, stored = _store(scales, base)
        values = rounding(floats, stored)
    else:
        values, scale = _use_range(keys.values, keys.scale)
        scales, exponent = _normalized(scale)
        floats = values * scales
        base = _base(scales.max())
        factors, stored = _store(scales, base)
    exponent = int(exponent.item() + base)
    if transform is None:
        return KeyTensor(values, factors[:, 0], exponent)
    matrix, metric = transform.query_matrix, None
    if options.error_feedback:
        fit, metric = _fit(floats, values * stored, transform.mass)
        matrix = matrix @ fit
    return KeyTensor(values, factors[:, 0], exponent, matrix, metric)


def _fit(keys: Float, rounded: Float, counts: Float | None) -> tuple[Float, Float]:
    """The map of queries whose logits with rounded keys are closest to those with exact ones.

    Returns
    -------
    fit, metric : (head_dim, head_dim) float64 ndarray
        ``query @ fit`` solves the least squares problem, weighted by how much keys count, with a
        ridge that keeps it close to `query`; the metric is the covariance of the rounded keys.
    """
    exact, rounded = _centered(keys, counts), _centered(rounded, counts)
    metric = covariance(rounded, counts)
    ridge = _RIDGE * np.trace(metric) / len(metric) * np.eye(len(metric))
    if not ridge.any():
        return np.eye(len(metric)), metric
    weighted = exact if counts is None else exact * counts[:, None]
    return np.linalg.solve(metric + ridge, rounded.T @ weighted + ridge).T, metric


def quantize_values(
    values: Operand,
    options: AttentionOptions,
    logits: LogitTransform | None = None,
) -> ValueTensor:
    """Quantize V of one head, (keys, value_dim).

    Parameters
    ----------
    values : Operand
    options : AttentionOptions
    logits : LogitTransform, optional
        Says how much each key counts. If absent, all do alike, and the result fraction is the
        safe one.
    """
    dim = values.values.shape[-1]
    offset, transform, rounding = np.zeros(dim), None, Rounding()
    if values.scale is None:
        floats, exponent = _normalized(values.values)
        if options.smooth_values:
            mean = floats.mean(axis=0)
            floats, offset = floats - mean, np.ldexp(mean, exponent[0])
        matrix = np.eye(dim)
        if options.balance_values:
            matrix = balance_values(covariance(floats, None if logits is None else logits.mass))
        if options.rotate_values:
            matrix = matrix @ rotation(dim)
        if options.balance_values or options.rotate_values:
            floats, transform = floats @ matrix, np.asarray(np.linalg.inv(matrix), np.float64)
            if options.error_feedback:
                rounding = Rounding(transform @ transform.T)
        scales = _scales(floats, options.per_token_value)
        if options.search_scales and options.per_token_value:
            scales = rounding.best_scales(floats, scales, SCALE_GROWTH)
    else:
        integers, scale = _use_range(values.values, values.scale)
        scales, exponent = _normalized(scale)
    base = scales.max() * (_MAX_FACTOR + 1) / _MAX_FACTOR or 1.0
    stored = np.ceil(scales / base * (_MAX_FACTOR + 1)).clip(0, _MAX_FACTOR)
    if values.scale is None:
        integers = rounding(floats, stored * (base / (_MAX_FACTOR + 1)))
    scale = float(np.ldexp(base, exponent.item()))
    fraction = options.result_fraction
    if fraction is None:
        fraction = SAFE_FRACTION
        if logits is not None and logits.weights is not None and not logits.is_masked:
            fraction = _likely_fraction(logits.weights @ (integers * (stored / (_MAX_FACTOR + 1))))
    return ValueTensor(integers, stored[:, 0].astype(np.uint16), scale, offset, transform, fraction)


def _likely_fraction(results: Float) -> int:
    """The largest result fraction with which twice these results do not saturate."""
    spare = RESULT_BITS - 2 - int(np.frexp(np.abs(results).max())[1])
    return min(max(spare, SAFE_FRACTION), MAX_RESULT_FRACTION)


def quantize_queries(
    queries: Operand,
    keys: KeyTensor,
    softmax_scale: float,
    widths: Widths,
    tiles: Sequence[npt.NDArray[np.integer]],
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
    tiles : sequence of int ndarray
        Rows of each query tile, which share an exponent, the queries of one head after those of
        the other. Rows in no tile are not used.
    options : AttentionOptions

    Notes
    -----
    The logarithm saturates at ``2**score_integer_bits``. A row whose logits could reach that, by
    the Cauchy-Schwarz bound over all keys, is scaled down to it: their order is kept where
    saturation would make them equal. With 12 integer bits this concerns logits beyond 2800.
    """
    if queries.scale is None:
        floats, exponent = _normalized(queries.values)
        if keys.query_matrix is not None:
            floats = floats @ keys.query_matrix
        rounding = Rounding(keys.query_metric)
        scales = _scales(floats, options.per_token_query)
        if options.search_scales and options.per_token_query:
            scales = rounding.best_scales(floats, scales, SCALE_GROWTH)
        values = rounding(floats, scales)
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

    peaks = np.array([wanted.reshape(-1)[rows].max() for rows in tiles])
    lowest = GAIN_BITS - widths.score_drop - widths.fraction - MAX_SCORE_SHIFT
    exponents = np.maximum(_base(peaks), lowest)
    per_row = _base(wanted)
    for rows, exponent in zip(tiles, exponents, strict=True):
        per_row.reshape(-1)[rows] = exponent
    factors, stored = _store(wanted, per_row)
    if queries.scale is None:
        growth = np.divide(stored, wanted, out=np.ones_like(wanted), where=wanted > 0)
        values = rounding(floats, scales * growth)
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


def _floats(operand: Operand) -> tuple[Float, int]:
    """What an operand stands for, scaled by a power of two, (..., dim) as (tokens, dim)."""
    numbers = operand.values if operand.scale is None else operand.scale
    floats, exponent = _normalized(numbers.reshape(-1, numbers.shape[-1]))
    if operand.scale is not None:
        floats = floats * operand.values.reshape(-1, operand.values.shape[-1])
    return floats, int(exponent.item())


def _centered(x: Float, weights: Float | None) -> Float:
    """Less its weighted mean over the tokens."""
    return x - np.average(x, axis=0, weights=weights)


def _scales(x: Float, per_token: bool) -> Float:
    """Scales, (..., tokens, 1), that take the largest magnitude to 127."""
    peak = np.abs(x).max(axis=-1, keepdims=True)
    if not per_token:
        peak = np.broadcast_to(peak.max(axis=-2, keepdims=True), peak.shape)
    return peak / Rounding.LEVELS


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
