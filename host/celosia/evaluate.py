"""How far a result is from attention in floating point, and how far int8 alone would be."""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import FACTOR_BITS

from .attention import Job
from .masks import resolve_masks

__all__ = ["Float32", "ideal_attention", "metrics", "reference_attention", "reference_name"]

Float32 = npt.NDArray[np.float32]


def reference_name() -> str:
    """What `reference_attention` runs on: "PyTorch" where it is installed, else "NumPy"."""
    return "PyTorch" if importlib.util.find_spec("torch") else "NumPy"


def reference_attention(
    query: Float32, key: Float32, value: Float32, **mask: Any
) -> npt.NDArray[np.float32]:
    """Attention in float32, by PyTorch's `scaled_dot_product_attention` where it is installed.

    Parameters
    ----------
    query : (H, L, E) float32
    key : (Hk, S, E) float32
    value : (Hk, S, Ev) float32
        H is a multiple of Hk.
    **mask
        As `celosia.masks.resolve_masks` takes them.
    """
    heads, queries, keys = len(query), query.shape[1], key.shape[1]
    group = heads // len(key)
    masks, index = resolve_masks((heads,), queries, keys, **mask)
    result = np.zeros((*query.shape[:-1], value.shape[-1]), np.float32)
    attend = _torch_attention if reference_name() == "PyTorch" else _numpy_attention
    for head in range(heads):
        mask_of_head, shared = masks[index[head]], head // group
        allowed, bias = mask_of_head.matrix(), mask_of_head.total_bias()
        if bias is not None:
            allowed = np.where(allowed, bias, -np.inf).astype(np.float32)
        attended = attend(query[head], key[shared], value[shared], allowed)
        result[head] = np.where(mask_of_head.is_empty[:, None], 0, attended)
    return result


def _torch_attention(query: Float32, key: Float32, value: Float32, mask: Any) -> Float32:
    import torch

    # Contiguous copies in four dimensions: what PyTorch's own kernels take.
    q, k, v = (torch.from_numpy(np.array(x[None, None])) for x in (query, key, value))
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.no_grad():
        return attend(q, k, v, attn_mask=torch.from_numpy(np.array(mask)))[0, 0].numpy()


def _numpy_attention(query: Float32, key: Float32, value: Float32, mask: Any) -> Float32:
    from celosia_sim.reference import attention

    bias = None
    if mask.dtype != bool:
        mask, bias = np.isfinite(mask), np.where(np.isfinite(mask), mask, 0)
    return attention(query, key, value, mask=mask, bias=bias, dtype=np.float32).astype(np.float32)


def ideal_attention(job: Job) -> npt.NDArray[np.float64]:
    """Attention of the quantized Q, K and V of a job with everything else exact, in float64."""
    from celosia_sim.reference import attention

    result = np.zeros(job.shape)
    flat = result.reshape(-1, *job.shape[-2:])
    unit = 2.0**-FACTOR_BITS
    for group in job.groups:
        queries, keys, values = group.queries, group.keys, group.values
        exponents = np.zeros(queries.factors.shape, np.int64)
        for tile, exponent in zip(group.tiles, queries.exponents, strict=True):
            exponents.reshape(-1)[tile.rows] = exponent
        logit_keys = keys.values * (keys.factors * unit)[:, None]
        averaged = values.values * (values.factors * (unit * values.scale))[:, None]
        scales = np.ldexp(queries.factors * unit, exponents)[..., None]
        for head, rows, scale, mask in zip(
            group.heads, queries.values, scales, group.masks, strict=True
        ):
            # The logits of quantized tensors have base 2.
            exact = attention(
                *(rows * scale, logit_keys, averaged),
                scale=math.log(2),
                low=mask.low,
                high=mask.high,
                mask=mask.allowed,
                bias=mask.total_bias(),
            )
            flat[head] = np.where(mask.is_empty[:, None], 0, values.restore(exact))
    return result


def metrics(reference: npt.NDArray, result: npt.NDArray) -> dict[str, float]:
    """Signal to noise in dB, cosine, root mean square and maximal absolute error."""
    from celosia_sim.reference import cosine, max_abs_error, rmse, sqnr_db

    return {
        "sqnr_db": sqnr_db(reference, result),
        "cosine": cosine(reference, result),
        "rmse": rmse(reference, result),
        "max_abs_error": max_abs_error(reference, result),
    }
