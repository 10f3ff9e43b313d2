"""Attention and linear layers on an accelerator as functions with gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..attention import run_attention
from ..device import Device
from ..matmul import run_matmul
from ..options import AttentionOptions
from ..parallel import DevicePool
from .scales import AttentionScales, quantize_input

__all__ = ["attention", "linear"]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    options: AttentionOptions | None = None,
    scales: AttentionScales | None = None,
    device: Device | DevicePool | str | None = None,
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` on an accelerator, with gradients.

    Parameters
    ----------
    query : Tensor, (..., Hq, L, E)
    key : Tensor, (..., H, S, E)
    value : Tensor, (..., H, S, Ev)
        Of one floating-point dtype, on one device.
    attn_mask, is_causal, scale, enable_gqa
        As in PyTorch, and as `celosia.run_attention` describes.
    options : AttentionOptions, optional
        How to quantize.
    scales : AttentionScales, optional
        Static scales, instead of such as fit the tensors.
    device : Device, DevicePool or str, optional
        The accelerator, as of `celosia.run_attention`.

    Returns
    -------
    Tensor, (..., Hq, L, Ev)

    Raises
    ------
    TypeError, ValueError, DeviceError
        As `celosia.run_attention`; or if tensors are on different devices or of different dtypes.

    Notes
    -----
    The gradient is that of attention in floating point with the same tensors, the
    straight-through estimator of Bengio, Léonard and Courville (2013): rounding and clipping
    count as the identity. It has no gradient of its own.
    """
    check_tensors(True, query=query, key=key, value=value, attn_mask=attn_mask)
    settings = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}

    def run(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None) -> Tensor:
        if scales is None:
            return run_attention(
                query, key, value, attn_mask, **settings, options=options, device=device
            )
        quantized = scales.quantize(query, key, value)
        result = run_attention(*quantized, attn_mask, **settings, options=options, device=device)
        return scales.restore(result).to(query.dtype)

    surrogate = functools.partial(float_attention, **settings)
    return _StraightThrough.apply(run, surrogate, query, key, value, attn_mask)  # type: ignore


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    input_scale: float | None = None,
    device: Device | DevicePool | str | None = None,
) -> Tensor:
    """`torch.nn.functional.linear` with the product on an accelerator, with gradients.

    Parameters
    ----------
    input : Tensor, (..., in_features)
        Rounded to int8 with a scale for each row, or with `input_scale`.
    weight : Tensor, (out_features, in_features)
        Rounded to int8 with a scale for each output.
    bias : Tensor, (out_features,), optional
        Added in floating point.
    input_scale : float, optional
        A static scale: what a step of int8 stands for.
    device : Device, DevicePool or str, optional
        The accelerator, as of `celosia.run_attention`.

    Returns
    -------
    Tensor, (..., out_features)
        Of the dtype of `input`.

    Raises
    ------
    TypeError, ValueError, DeviceError
        As `celosia.run_matmul`; or if tensors are on different devices.

    Notes
    -----
    The gradient is that of the linear layer in floating point, as for `attention`.
    """
    check_tensors(False, input=input, weight=weight, bias=bias)
    if weight.ndim != 2 or input.ndim < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"input of shape {tuple(input.shape)} and weight of shape {tuple(weight.shape)}: they "
            "must be (..., in_features) and (out_features, in_features)"
        )

    def run(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows: Any = input.reshape(-1, input.shape[-1])
        if input_scale is not None:
            rows = quantize_input(rows, input_scale)
        product = run_matmul(rows, weight.T, device=device)
        if bias is not None:
            product = product + bias
        return product.to(input.dtype).reshape(*input.shape[:-1], -1)

    return _StraightThrough.apply(run, float_linear, input, weight, bias)  # type: ignore


def float_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, **settings: Any
) -> Tensor:
    """The same in PyTorch, wherever it is called."""
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        attn_mask = attn_mask.to(query.dtype)
    with torch._C.DisableTorchFunction():
        return F.scaled_dot_product_attention(query, key, value, attn_mask, **settings)


def float_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same in PyTorch."""
    bias = None if bias is None else bias.to(input.dtype)
    return F.linear(input, weight.to(input.dtype), bias)


def check_tensors(one_dtype: bool, /, **tensors: Any) -> None:
    """Raise unless all are tensors of one device, and those but `attn_mask` of one dtype."""
    given = {name: x for name, x in tensors.items() if x is not None}
    for name, x in given.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch tensor, not {type(x).__name__}")
    (first, like), *others = given.items()
    for name, x in others:
        if x.device != like.device:
            raise ValueError(f"{first} is on the device {like.device}, {name} on {x.device}")
        if one_dtype and name != "attn_mask" and x.dtype != like.dtype:
            raise TypeError(f"{first} is {like.dtype}, {name} is {x.dtype}: they must be the same")


class _StraightThrough(torch.autograd.Function):
    """``run(*inputs)`` with the gradient of ``surrogate(*inputs)``."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, run: Callable[..., Tensor], surrogate: Callable[..., Tensor], *inputs: Any
    ) -> Tensor:
        ctx.surrogate = surrogate
        ctx.save_for_backward(*inputs)
        return run(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        inputs = [
            None if x is None else x.detach().requires_grad_(needed)
            for x, needed in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        wanted = [x for x in inputs if x is not None and x.requires_grad]
        with torch.enable_grad(), torch.autocast(gradient.device.type, enabled=False):
            gradients = iter(torch.autograd.grad(ctx.surrogate(*inputs), wanted, gradient))
        given = (x is not None and x.requires_grad for x in inputs)
        return (None, None, *(next(gradients) if needed else None for needed in given))
