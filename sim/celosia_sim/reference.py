"""Attention in floating point, and how far a result is from it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["attention", "cosine", "max_abs_error", "rmse", "sqnr_db"]


def attention(
    query: npt.ArrayLike,
    key: npt.ArrayLike,
    value: npt.ArrayLike,
    *,
    scale: float | None = None,
    mask: npt.ArrayLike | None = None,
    bias: npt.ArrayLike | None = None,
    low: npt.ArrayLike | None = None,
    high: npt.ArrayLike | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> npt.NDArray[np.floating]:
    """``softmax(query @ key.T * scale) @ value`` over the allowed keys.

    Parameters
    ----------
    query : (..., rows, head_dim)
    key : (..., keys, head_dim)
    value : (..., keys, value_dim)
        Leading dimensions broadcast.
    scale : float, optional
        ``1 / sqrt(head_dim)`` if absent.
    mask : (..., rows, keys) bool, optional
        True where a row may attend to a key.
    bias : (..., rows, keys), optional
        Added to the scaled scores.
    low, high : (..., rows) int, optional
        Further restrict a row to the keys from `low` up to, not including, `high`.
    dtype : dtype
        Floating-point type of the inputs and of every step.

    Returns
    -------
    (..., rows, value_dim)
        Rows without an allowed key are 0.
    """
    query, key, value = (np.asarray(x, dtype) for x in (query, key, value))
    if scale is None:
        scale = query.shape[-1] ** -0.5
    scores = query @ np.swapaxes(key, -1, -2) * np.asarray(scale, dtype)
    if bias is not None:
        scores = scores + np.asarray(bias, dtype)
    position = np.arange(key.shape[-2])
    allowed = np.asarray(True if mask is None else mask, bool)
    if low is not None:
        allowed = allowed & (position >= np.asarray(low)[..., None])
    if high is not None:
        allowed = allowed & (position < np.asarray(high)[..., None])
    scores = np.where(allowed, scores, -np.inf)
    maximum = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isfinite(maximum), maximum, 0))
    total = weights.sum(axis=-1, keepdims=True)
    return weights @ value / np.where(total > 0, total, 1)


def sqnr_db(reference: npt.ArrayLike, result: npt.ArrayLike) -> float:
    """Power of the reference over the power of the error, over the whole tensor, in dB.

    Infinite where the two are equal, and minus infinite for a wrong result where only zeros
    were due.
    """
    signal, error = _pair(reference, result)
    power, noise = float(np.vdot(signal, signal)), float(np.vdot(error, error))
    if noise == 0:
        return float("inf")
    return float(10 * np.log10(power / noise)) if power else float("-inf")


def cosine(reference: npt.ArrayLike, result: npt.ArrayLike) -> float:
    """Cosine of the angle between the two tensors as vectors; 0 if either is zero."""
    signal, error = _pair(reference, result)
    other = signal + error
    norm = float(np.linalg.norm(signal) * np.linalg.norm(other))
    return float(np.vdot(signal, other)) / norm if norm else 0.0


def rmse(reference: npt.ArrayLike, result: npt.ArrayLike) -> float:
    """Root of the mean squared error."""
    _, error = _pair(reference, result)
    return float(np.sqrt(np.mean(error**2)))


def max_abs_error(reference: npt.ArrayLike, result: npt.ArrayLike) -> float:
    """Largest absolute error."""
    _, error = _pair(reference, result)
    return float(np.abs(error).max())


def _pair(reference: npt.ArrayLike, result: npt.ArrayLike) -> tuple[npt.NDArray, npt.NDArray]:
    """The reference and the error, as float64 vectors."""
    signal, other = np.asarray(reference, np.float64), np.asarray(result, np.float64)
    if signal.shape != other.shape:
        raise ValueError(f"shapes {signal.shape} and {other.shape} differ")
    return signal.ravel(), (other - signal).ravel()
