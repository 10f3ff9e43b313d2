"""Transforms and rounding that the first tokens of a cache fix for all later ones.

They are those of `celosia.transforms`, but covariances are drawn towards isotropic ones as far as
tokens are few: what has not been seen yet may point anywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import FACTOR_BITS

from .quantize import SCALE_GROWTH
from .transforms import (
    Rounding,
    balance,
    balance_values,
    covariance,
    mass,
    rotation,
    sample_attention,
)

__all__ = ["FrozenKeys", "FrozenValues", "Rows", "freeze"]

Float = npt.NDArray[np.float64]
_TOP = (1 << FACTOR_BITS) - 1
_LOWEST = -200  # of the exponent of scales; below all that float32 holds


@dataclass(frozen=True)
class Rows:
    """Quantized tokens: ``values * factors * 2**(exponent - FACTOR_BITS)``.

    Parameters
    ----------
    values : (n, dim) int8
    factors : (n,) uint16
    exponent : int
    """

    values: npt.NDArray[np.int8]
    factors: npt.NDArray[np.uint16]
    exponent: int

    def widened(self, exponent: int) -> Rows:
        """The same tokens with a larger exponent: rounded again."""
        floats = np.ldexp(self.values * (self.factors / (_TOP + 1.0))[:, None], self.exponent)
        return _rows(floats, Rounding(), exponent, ())


@dataclass(frozen=True)
class _Frozen:
    """What tokens of one head go through: ``(token - offset) @ matrix``, rounded.

    Parameters
    ----------
    offset : (dim,) float64
    matrix : (dim, dim) float64
    rounding : Rounding
    """

    offset: Float
    matrix: Float
    rounding: Rounding

    def exponent(self, tokens: Float, headroom: float) -> int:
        """That of rows whose scales are up to `headroom` times those of these tokens."""
        # What few tokens have in common may be all there is to them: the offset counts too.
        both = np.concatenate([self._transformed(tokens), tokens @ self.matrix])
        return _exponent(both, headroom)

    def quantize(self, tokens: Float, exponent: int, headroom: float) -> Rows:
        """Quantize (n, dim) tokens, with a larger exponent than this one if they need it."""
        floats = self._transformed(tokens)
        if _exponent(floats, 1.0) > exponent:
            exponent = _exponent(floats, headroom)
        return _rows(floats, self.rounding, exponent, SCALE_GROWTH)

    def _transformed(self, tokens: Float) -> Float:
        return (tokens - self.offset) @ self.matrix


@dataclass(frozen=True)
class FrozenKeys(_Frozen):
    """Of keys.

    Parameters
    ----------
    query_matrix : (dim, dim) float64
        What queries are multiplied with.
    query_metric : (dim, dim) float64 or None
        Metric for `Rounding` the queries.
    """

    query_matrix: Float
    query_metric: Float | None


@dataclass(frozen=True)
class FrozenValues(_Frozen):
    """Of values.

    Parameters
    ----------
    inverse : (dim, dim) float64
        Undoes `matrix` in the result.
    """

    inverse: Float


def freeze(
    keys: Float, values: Float, queries: Float | None, scale: float
) -> tuple[FrozenKeys, FrozenValues]:
    """Fix the transforms of one head of keys and values.

    Parameters
    ----------
    keys : (n, dim) float64 ndarray
    values : (n, value_dim) float64 ndarray
    queries : (heads, m, dim) float64 ndarray or None
        Those that attend to the keys, the last of them at the last key. Without them, keys are
        neither balanced nor rounded with error feedback.
    scale : float
        Factor of the logits.
    """
    offset = keys.mean(axis=0)
    # Powers of two keep squares in range.
    centered, key_exponent = _normalized(keys - offset)
    weights = None
    query_matrix = key_matrix = rotation(keys.shape[-1])
    key_metric = query_metric = None
    if queries is not None:
        query, query_exponent = _normalized(queries)
        with np.errstate(over="ignore"):
            factor = float(np.ldexp(scale, query_exponent + key_exponent))
        count = queries.shape[1]
        limits = np.arange(len(keys) - count, len(keys)) + 1
        weights = mass(sample_attention(query, centered, factor, limits))
        query = query.reshape(-1, query.shape[-1])
        spread = centered - np.average(centered, axis=0, weights=weights)
        of_queries, of_keys = _shrunk(query), _shrunk(spread, weights)
        balancing = balance(of_queries, of_keys)
        query_matrix = balancing @ query_matrix
        key_matrix = np.linalg.inv(balancing).T @ key_matrix
        key_metric = query_matrix.T @ of_queries @ query_matrix
        query_metric = key_matrix.T @ of_keys @ key_matrix
    normalized, _ = _normalized(values)
    value_matrix = balance_values(_shrunk(normalized, weights)) @ rotation(values.shape[-1])
    inverse = np.asarray(np.linalg.inv(value_matrix), np.float64)
    return (
        FrozenKeys(offset, key_matrix, Rounding(key_metric), query_matrix, query_metric),
        FrozenValues(
            np.zeros(values.shape[-1]), value_matrix, Rounding(inverse @ inverse.T), inverse
        ),
    )


def _shrunk(x: Float, weights: Float | None = None) -> Float:
    """Mean of ``x.T @ x`` over (n, dim), and over as many isotropic ones as there are dims."""
    count, dim = x.shape
    total = covariance(x, weights)
    isotropic = np.trace(total) / count * np.eye(dim)
    return (total + isotropic) / (count + dim)


def _normalized(x: Float) -> tuple[Float, int]:
    exponent = int(np.frexp(np.abs(x).max())[1])
    return np.ldexp(x, -exponent), exponent


def _exponent(floats: Float, headroom: float) -> int:
    scale = float(np.abs(floats).max()) / Rounding.LEVELS * max(SCALE_GROWTH) * headroom
    return math.frexp(max(scale, 2.0**_LOWEST))[1]


def _rows(floats: Float, rounding: Rounding, exponent: int, growth: tuple[float, ...]) -> Rows:
    scales = np.abs(floats).max(axis=-1, keepdims=True) / Rounding.LEVELS
    if growth:
        scales = rounding.best_scales(floats, scales, growth)
    factors = np.ceil(np.ldexp(scales, FACTOR_BITS - exponent)).clip(0, _TOP)
    stored = np.ldexp(factors, exponent - FACTOR_BITS)
    return Rows(rounding(floats, stored), factors[:, 0].astype(np.uint16), exponent)
