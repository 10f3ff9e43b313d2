"""Exact identities of attention in floating point that leave less to lose to int8.

Logits are products of queries and keys: with an invertible matrix A, those of ``query @ A`` and
``key @ inv(A).T`` are the same (SmoothQuant: a diagonal A; QuaRot and SpinQuant: a rotation).
Softmax does not see what all logits of a row have in common, so a vector may be subtracted from
all keys (SageAttention). Weights sum to 1, so the result is that of ``value @ B``, times inv(B).

`Rounding` then rounds element after element, and lets the later ones make up for the error of the
earlier ones as far as a metric says that they can (GPTQ, with the other operand as the metric).
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

__all__ = [
    "Rounding",
    "balance",
    "balance_values",
    "covariance",
    "mass",
    "rotation",
    "sample_attention",
]

Float = npt.NDArray[np.float64]

_SEED = 0
_LEAST_EIGENVALUE = 1e-4  # of the mean one: bounds the condition of what `balance` inverts
_DAMPING = 0.01  # of the mean of the diagonal
_SAMPLES = 64
_LARGEST_LOGIT = 2.0**20


@functools.cache
def rotation(dim: int) -> Float:
    """An orthogonal matrix that spreads outliers; the same in every run.

    Random signs and a normalized Hadamard matrix where `dim` is a power of two (QuaRot), else
    the Q of the QR decomposition of a Gaussian matrix.

    Parameters
    ----------
    dim : int

    Returns
    -------
    (dim, dim) float64 ndarray
        Read-only.
    """
    rng = np.random.default_rng(_SEED)
    if dim & (dim - 1):
        matrix = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    else:
        matrix = np.ones((1, 1))
        while len(matrix) < dim:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        matrix = rng.choice([-1.0, 1.0], dim)[:, None] * matrix / np.sqrt(dim)
    matrix.flags.writeable = False
    return matrix


def covariance(x: Float, weights: Float | None = None) -> Float:
    """``x.T @ diag(weights) @ x``, (dim, dim), of (tokens, dim).

    Weights are 1 if absent.
    """
    return x.T @ (x if weights is None else x * weights[:, None])


def balance(query: Float, key: Float) -> Float:
    """The matrix A with which ``query @ A`` and ``key @ inv(A).T`` have the same covariance.

    A scale per token makes the rounding error of one operand proportional to its norm, and the
    logit's to both norms. This A minimizes the product of the mean squared norms, which becomes
    the squared sum of the singular values of ``sqrt(query) @ sqrt(key)``.

    Parameters
    ----------
    query, key : (dim, dim) float64 ndarray
        Covariances; small eigenvalues are raised.

    Returns
    -------
    (dim, dim) float64 ndarray
    """
    root, inverse = _power(query, 0.5), _power(query, -0.5)
    return inverse @ _power(root @ key @ root, 0.25)


def balance_values(value: Float) -> Float:
    """The matrix B that minimizes the error of ``round(value @ B) @ inv(B)``.

    Parameters
    ----------
    value : (dim, dim) float64 ndarray
        Covariance; small eigenvalues are raised.

    Returns
    -------
    (dim, dim) float64 ndarray
        Symmetric: the covariance to the power of -1/4.
    """
    return _power(value, -0.25)


def _power(matrix: Float, exponent: float) -> Float:
    values, vectors = np.linalg.eigh(matrix)
    mean = values.mean()
    if not mean > 0:
        return np.eye(len(matrix))
    # Relative to the mean, so that no power leaves the range of numbers.
    powers = np.maximum(values / mean, _LEAST_EIGENVALUE) ** exponent
    return np.asarray((vectors * powers) @ vectors.T * mean**exponent, np.float64)


def sample_attention(
    query: Float, key: Float, scale: float, limits: npt.NDArray[np.integer] | None = None
) -> Float:
    """Attention weights of at most 64 of the queries, evenly spaced.

    Parameters
    ----------
    query : (heads, queries, dim) float64 ndarray
    key : (keys, dim) float64 ndarray
    scale : float
        Factor of the logits; infinite where it is too large for a number.
    limits : (queries,) int ndarray, optional
        Keys that each query may attend to, counted from the first.

    Returns
    -------
    (rows, keys) float64 ndarray
        Rows sum to 1.
    """
    heads, count, dim = query.shape
    rows = np.unique(np.linspace(0, heads * count - 1, _SAMPLES).round().astype(int))
    logits = query.reshape(-1, dim)[rows] @ key.T
    largest = float(np.abs(logits).max())
    if largest > 0:
        logits *= np.copysign(min(abs(scale), _LARGEST_LOGIT / largest), scale)
    if limits is not None:
        allowed = np.arange(len(key)) < np.maximum(limits, 1)[rows % count, None]
        logits = np.where(allowed, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def mass(weights: Float) -> Float:
    """How much each key counts, (keys,), 1 on average, from a sample of attention weights.

    A tenth is spread evenly, since queries outside the sample may differ.
    """
    return 0.9 * weights.shape[1] * weights.mean(axis=0) + 0.1


class Rounding:
    """Rounding of (..., dim) to int8 that keeps an error small in a metric H, ``e @ H @ e``.

    Element i is rounded after the errors of the elements before it have been taken from it, each
    times a coefficient: the row of the Cholesky factor of inv(H) (GPTQ).

    Parameters
    ----------
    metric : (dim, dim) float64 ndarray or None
        Positive semidefinite. If absent or zero, each element is rounded to the nearest.
    """

    LEVELS = 127

    def __init__(self, metric: Float | None = None) -> None:
        self._feedback: Float | None = None
        if metric is None or not (mean := np.trace(metric) / len(metric)) > 0:
            return
        # What matters most first, while there is most left to make up for it.
        self._order = np.argsort(-np.diag(metric), kind="stable")
        damped = metric[np.ix_(self._order, self._order)] / mean + _DAMPING * np.eye(len(metric))
        factor = np.linalg.cholesky(np.linalg.inv(damped)).T
        diagonal = np.diag(factor)
        self._feedback = factor / diagonal[:, None]
        self._cost = diagonal**-2.0

    def __call__(self, x: Float, scales: Float) -> npt.NDArray[np.int8]:
        """``x / scales`` rounded, at most 127; 0 where the scale is.

        Parameters
        ----------
        x : (..., dim) float64 ndarray
        scales : (..., 1) float64 ndarray
        """
        return self._round(x, scales)[0]

    def best_scales(self, x: Float, scales: Float, growth: tuple[float, ...]) -> Float:
        """Of each token's scale times each of `growth`, the one with the least error."""
        errors = np.stack([self._round(x, scales * factor)[1] for factor in growth])
        return scales * np.asarray(growth)[errors.argmin(axis=0)]

    def _round(self, x: Float, scales: Float) -> tuple[npt.NDArray[np.int8], Float]:
        """Rounded values, and squared errors in the metric, (..., 1)."""
        ratio = np.divide(x, scales, out=np.zeros_like(x), where=scales > 0)
        if self._feedback is None:
            rounded = np.rint(ratio).clip(-self.LEVELS, self.LEVELS)
            cost = np.square(rounded - ratio).sum(axis=-1, keepdims=True)
            return rounded.astype(np.int8), cost * scales**2
        dim = x.shape[-1]
        targets = np.ascontiguousarray(ratio.reshape(-1, dim)[:, self._order].T)
        errors = np.empty_like(targets)
        rounded = np.empty(targets.shape, np.int8)
        for i, target in enumerate(targets):
            target -= self._feedback[:i, i] @ errors[:i]
            whole = np.rint(target).clip(-self.LEVELS, self.LEVELS)
            np.subtract(target, whole, out=errors[i])
            rounded[self._order[i]] = whole
        cost = (self._cost @ np.square(errors)).reshape(scales.shape) * scales**2
        return np.ascontiguousarray(rounded.T).reshape(x.shape), cost
