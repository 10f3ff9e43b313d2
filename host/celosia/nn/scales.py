"""Static scales: what tensors are rounded with that were not seen before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..arrays import array_of, like
from ..quantize import Quantized
from ..transforms import Rounding, rotation

__all__ = ["AttentionScales", "heads_of", "quantize_input", "rotated"]

Float = npt.NDArray[np.float64]


@dataclass(frozen=True)
class AttentionScales:
    """Scales of an attention: what a step of int8 stands for, per head, after the rotation.

    Q, K and V are rotated, as `AttentionOptions` describes, and a mean is taken out of K, which
    softmax does not see. What exceeds 127 steps is clipped.

    Parameters
    ----------
    query : (Hq,) float64 ndarray
    key, value : (H,) float64 ndarray
    key_mean : (H, E) float64 ndarray

    Notes
    -----
    Heads are the third dimension from the last of tensors of four and more; others have one.
    """

    query: Float
    key: Float
    value: Float
    key_mean: Float

    def quantize(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Quantized, Quantized, Quantized]:
        """Q, K and V in int8.

        Raises
        ------
        ValueError
            If they have other heads or another head dimension than the scales.
        """
        arrays = {"query": array_of(query), "key": array_of(key), "value": array_of(value)}
        for name, array in arrays.items():
            scale = getattr(self, name)
            if heads_of(array) != len(scale):
                raise ValueError(
                    f"{name} has {heads_of(array)} heads, its static scales are for {len(scale)}"
                )
        if arrays["key"].shape[-1] != self.key_mean.shape[1]:
            raise ValueError(
                f"the head dimension is {arrays['key'].shape[-1]}, the static scales are for "
                f"{self.key_mean.shape[1]}"
            )
        q, k, v = (
            _rounded(rotated(array, self.key_mean if name == "key" else None), getattr(self, name))
            for name, array in arrays.items()
        )
        # The result is of the query's kind.
        return Quantized(like(query, q.values, np.int8), q.scale), k, v

    def restore(self, result: Tensor) -> Tensor:
        """Undo the rotation of V."""
        array = array_of(result)
        return like(result, array @ rotation(array.shape[-1]).T)


def heads_of(array: npt.NDArray) -> int:
    """The heads that have scales of their own."""
    return array.shape[-3] if array.ndim > 3 else 1


def rotated(array: npt.NDArray, mean: Float | None = None) -> Float:
    """What is rounded, of Q, K or V, (..., heads, tokens, dim)."""
    array = array.astype(np.float64)
    if mean is not None:
        array = array - (mean[:, None] if array.ndim > 3 else mean)
    return array @ rotation(array.shape[-1])


def quantize_input(rows: Tensor, scale: float) -> Quantized:
    """Rows of a linear layer's input in int8."""
    rounded = _rounded(array_of(rows).astype(np.float64), np.array([scale]))
    return Quantized(like(rows, rounded.values, np.int8), rounded.scale)


def _rounded(array: Float, scale: Float) -> Quantized:
    if not np.isfinite(array).all():
        raise ValueError("a tensor contains NaN or infinity")
    scales: Any = scale[:, None, None] if array.ndim > 3 else scale[0]
    return Quantized(
        np.rint(array / scales).clip(-Rounding.LEVELS, Rounding.LEVELS).astype(np.int8), scales
    )
