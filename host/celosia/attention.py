"""`run_attention`: scaled dot-product attention on an accelerator."""

from __future__ import annotations

import contextlib
import math
import operator
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import Widths
from celosia_hw.config import AcceleratorConfig

from .device import Device, default_device, open_device
from .options import AttentionOptions
from .quantize import Operand, Quantized, quantize_keys, quantize_queries, quantize_values
from .schedule import HeadGroup, Program, schedule

__all__ = ["Job", "RawResult", "plan_attention", "run_attention", "run_attention_raw"]


@dataclass(frozen=True)
class RawResult:
    """The accelerator's own result: attention is ``values * scale + offset``.

    Parameters
    ----------
    values : (..., L, Ev) int16 ndarray
    scale : (..., 1, 1) float64 ndarray
        One per head.
    offset : (..., 1, Ev) float64 ndarray
        The mean that smoothing took out of V, else zeros.
    """

    values: npt.NDArray[np.int16]
    scale: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]

    def dequantize(self) -> npt.NDArray[np.float64]:
        """The result in floating point, (..., L, Ev)."""
        with np.errstate(over="ignore"):  # inputs at the end of float64's range
            return self.values * self.scale + self.offset


def run_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    key_length: Any = None,
    window: int | None = None,
    causal_alignment: str = "top_left",
    options: AttentionOptions | None = None,
    device: Device | str | None = None,
) -> Any:
    """``softmax(query @ key.T * scale) @ value`` on an accelerator.

    The arguments that `torch.nn.functional.scaled_dot_product_attention` has too mean the same.

    Parameters
    ----------
    query : array or tensor, (..., Hq, L, E)
    key : array or tensor, (..., H, S, E)
    value : array or tensor, (..., H, S, Ev)
        NumPy arrays or torch tensors, floating point, or `Quantized`; all of one rank, 2 or
        more. Leading dimensions of size 1 are broadcast.
    attn_mask : None
        Not implemented yet.
    is_causal : bool
        Query i attends to the keys 0 ... i, also where L and S differ.
    scale : float, optional
        ``1 / sqrt(E)`` if absent. May be negative or zero.
    enable_gqa : bool
        Consecutive query heads share a head of keys and values: Hq is a multiple of H.
    key_length : int or array of int, optional
        Only the first keys are attended to: one number for all, or one per batch element. The
        batch is everything before the heads; in three dimensions it is the first. Where it is
        0 the result is 0.
    window : None
        Not implemented yet.
    causal_alignment : str
        Only "top_left" is implemented yet.
    options : AttentionOptions, optional
        How to quantize.
    device : Device or str, optional
        An open device, or what to open for this call, as in `open_device`. The innermost
        ``with open_device(...)`` if absent.

    Returns
    -------
    array or tensor, (..., Hq, L, Ev)
        Of the query's kind, dtype and torch device, without a gradient; float32 for a `Quantized`
        query.

    Raises
    ------
    TypeError
        If a tensor is neither floating point nor `Quantized`.
    ValueError
        If shapes do not fit each other or the device, a dimension is empty (where PyTorch
        returns an empty tensor or NaN), or a tensor contains NaN or infinity. Nothing has been
        sent to the device then.
    NotImplementedError
        For the arguments named above.
    DeviceError
        If there is no device, or it fails.

    Notes
    -----
    Logits beyond what the accelerator's base-2 logarithm holds (about 2800 with the default 12
    integer bits) are scaled down, row by row, so that their order is kept.
    """
    raw = run_attention_raw(
        query,
        key,
        value,
        attn_mask,
        is_causal=is_causal,
        scale=scale,
        enable_gqa=enable_gqa,
        key_length=key_length,
        window=window,
        causal_alignment=causal_alignment,
        options=options,
        device=device,
    )
    return _like(query, raw.dequantize())


def run_attention_raw(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    key_length: Any = None,
    window: int | None = None,
    causal_alignment: str = "top_left",
    options: AttentionOptions | None = None,
    device: Device | str | None = None,
) -> RawResult:
    """Like `run_attention`, but return the int16 result and its scales.

    Returns
    -------
    RawResult
    """
    if attn_mask is not None:
        raise NotImplementedError("attn_mask is not implemented yet: use is_causal or key_length")
    if window is not None:
        raise NotImplementedError("window is not implemented yet")
    if causal_alignment != "top_left":
        raise NotImplementedError(
            f"causal_alignment {causal_alignment!r} is not implemented yet, only 'top_left'"
        )
    with _opened(device) as accelerator:
        job = plan_attention(
            accelerator.config,
            query,
            key,
            value,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            key_length=key_length,
            options=options,
        )
        return job.run(accelerator)


@dataclass(frozen=True)
class Job:
    """An attention that is checked, quantized and scheduled for one configuration.

    Parameters
    ----------
    groups : list of HeadGroup
    program : Program
    shape : tuple of int
        Of the result.
    result_fraction : int
    """

    groups: list[HeadGroup]
    program: Program
    shape: tuple[int, ...]
    result_fraction: int

    def run(self, device: Device) -> RawResult:
        """Run on a device of the same configuration."""
        *lead, queries, value_dim = self.shape
        heads = math.prod(lead)
        values = np.zeros((heads, queries, value_dim), np.int16)
        device.run(self.program, values)
        scale, offset = np.zeros((heads, 1, 1)), np.zeros((heads, 1, value_dim))
        for group in self.groups:
            scale[group.heads] = np.ldexp(group.values.scale, -self.result_fraction)
            offset[group.heads] = group.values.offset
        return RawResult(
            values.reshape(self.shape),
            scale.reshape(*lead, 1, 1),
            offset.reshape(*lead, 1, value_dim),
        )


def plan_attention(
    config: AcceleratorConfig,
    query: Any,
    key: Any,
    value: Any,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    key_length: Any = None,
    options: AttentionOptions | None = None,
) -> Job:
    """Check, quantize and schedule what `run_attention` would run.

    Returns
    -------
    Job
        Its packets suit any device of this configuration.
    """
    options = AttentionOptions() if options is None else options
    if not isinstance(options, AttentionOptions):
        raise TypeError(f"options must be AttentionOptions, not {type(options).__name__}")
    tensors = {"query": query, "key": key, "value": value}
    operands = {name: _operand(name, tensor) for name, tensor in tensors.items()}
    shapes = {name: operand.values.shape for name, operand in operands.items()}
    _check_shapes(shapes, config)
    for name, operand in operands.items():
        _check_finite(name, operand)
    head_dim, keys = shapes["key"][-1], shapes["key"][-2]
    softmax_scale = head_dim**-0.5 if scale is None else float(scale)
    if not math.isfinite(softmax_scale):
        raise ValueError(f"scale must be finite, not {scale}")

    lead, index = _broadcast(shapes, enable_gqa)
    lengths = _key_lengths(key_length, lead, keys)
    if lengths.max() > config.key_capacity:
        raise ValueError(
            f"{lengths.max()} keys, but the device holds {config.key_capacity} "
            f"({config.key_banks} banks of {config.max_keys})"
        )

    flat = {
        name: Operand(*(_flatten(x) for x in (operand.values, operand.scale)))
        for name, operand in operands.items()
    }
    # Query heads that attend to the same keys share them, whatever made them the same.
    shared: dict[tuple[int, int, int], list[int]] = {}
    for head in range(lengths.size):
        where = (int(index["key"][head]), int(index["value"][head]), int(lengths[head]))
        shared.setdefault(where, []).append(head)
    groups = []
    for (key_head, value_head, length), members in shared.items():
        if length == 0:
            continue
        heads = np.array(members)
        quantized = quantize_keys(flat["key"][key_head, :length], options)
        groups.append(
            HeadGroup(
                heads,
                quantize_queries(
                    flat["query"][index["query"][heads]],
                    quantized,
                    softmax_scale,
                    Widths(config),
                    config.query_lanes,
                    options,
                ),
                quantized,
                quantize_values(flat["value"][value_head, :length], options),
                bool(is_causal),
            )
        )
    shape = (*lead, shapes["query"][-2], shapes["value"][-1])
    program = schedule(config, groups, options.result_fraction)
    return Job(groups, program, shape, options.result_fraction)


@contextlib.contextmanager
def _opened(device: Device | str | None) -> Iterator[Device]:
    """The device to use; closed again if it was opened here."""
    if device is None:
        yield default_device()
    elif isinstance(device, Device):
        yield device
    else:
        opened = open_device(device)
        try:
            yield opened
        finally:
            opened.close()


def _is_tensor(x: Any) -> bool:
    """Whether `x` is a torch tensor; if torch is not imported, nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def _array(x: Any) -> npt.NDArray[Any]:
    if _is_tensor(x):
        x = x.detach().cpu()
        if str(x.dtype) == "torch.bfloat16":  # NumPy has none; float32 holds it exactly
            x = x.float()
        return x.numpy()
    return np.asarray(x)


def _operand(name: str, tensor: Any) -> Operand:
    if not isinstance(tensor, Quantized):
        values = _array(tensor)
        if values.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(
                f"{name} is {values.dtype}: it must be float16, bfloat16, float32 or float64, "
                "or Quantized(values, scale)"
            )
        return Operand(values)
    values = _array(tensor.values)
    if values.dtype != np.int8:
        raise TypeError(f"{name}.values is {values.dtype}: Quantized holds int8")
    scale = _array(tensor.scale).astype(np.float64)
    try:
        scale = np.broadcast_to(scale, (*values.shape[:-1], 1))
    except ValueError:
        raise ValueError(
            f"{name}.scale of shape {scale.shape} does not broadcast to "
            f"{(*values.shape[:-1], 1)}, one scale per token"
        ) from None
    if (scale < 0).any():
        raise ValueError(f"{name}.scale is negative: {scale.min()}")
    return Operand(values, scale)


def _check_shapes(shapes: dict[str, tuple[int, ...]], config: AcceleratorConfig) -> None:
    for name, shape in shapes.items():
        if len(shape) < 2:
            raise ValueError(f"{name} has shape {shape}: it needs at least 2 dimensions")
    query, key, value = shapes["query"], shapes["key"], shapes["value"]
    if not len(query) == len(key) == len(value):
        raise ValueError(
            f"query, key and value have {len(query)}, {len(key)} and {len(value)} dimensions: "
            "they need the same number"
        )
    if query[-1] != key[-1]:
        raise ValueError(f"head dimensions of query ({query[-1]}) and key ({key[-1]}) differ")
    if key[-2] != value[-2]:
        raise ValueError(f"key has {key[-2]} tokens, value {value[-2]}")
    for name, shape in shapes.items():
        if 0 in shape:
            raise ValueError(f"{name} is empty: shape {shape}")
        if shape[-1] > config.max_head_dim:
            raise ValueError(
                f"head dimension {shape[-1]} of {name} exceeds the device's maximum of "
                f"{config.max_head_dim}"
            )


def _check_finite(name: str, operand: Operand) -> None:
    if operand.scale is not None:
        name, numbers = f"{name}.scale", operand.scale
    else:
        numbers = operand.values
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        where = tuple(map(int, bad[0]))
        kind = "NaN" if np.isnan(numbers[where]) else "infinity"
        raise ValueError(f"{name} contains {kind}, first at index {where}")


def _broadcast(
    shapes: dict[str, tuple[int, ...]], enable_gqa: bool
) -> tuple[tuple[int, ...], dict[str, npt.NDArray[np.int64]]]:
    """Leading dimensions of the result, and for each of its heads the head of each operand."""
    index = {
        name: np.arange(math.prod(shape[:-2])).reshape(shape[:-2]) for name, shape in shapes.items()
    }
    if enable_gqa:
        if len(shapes["query"]) < 3:
            raise ValueError("enable_gqa needs a dimension of heads, so at least 3 dimensions")
        heads = shapes["query"][-3]
        for name in ("key", "value"):
            shared = shapes[name][-3]
            if heads % shared:
                raise ValueError(
                    f"enable_gqa: {heads} query heads are no multiple of {shared} {name} heads"
                )
            index[name] = np.repeat(index[name], heads // shared, axis=-1)
    try:
        arrays = np.broadcast_arrays(*index.values())
    except ValueError:
        sizes = ", ".join(f"{name} {shape[:-2]}" for name, shape in shapes.items())
        hint = "" if enable_gqa else " (enable_gqa lets query heads share key heads)"
        raise ValueError(f"batch and head dimensions do not fit: {sizes}{hint}") from None
    flat = {name: array.ravel() for name, array in zip(index, arrays, strict=True)}
    return arrays[0].shape, flat


def _key_lengths(key_length: Any, lead: tuple[int, ...], keys: int) -> npt.NDArray[np.int64]:
    """The number of keys of each head of the result."""
    if key_length is None:
        return np.full(math.prod(lead), keys)
    lengths = _array(key_length)
    if not np.issubdtype(lengths.dtype, np.integer):
        raise TypeError(f"key_length must be of integers, not {lengths.dtype}")
    if lengths.ndim:
        batch = lead[:-1] if len(lead) > 1 else lead
        if lengths.size != 1 and lengths.shape != batch:
            raise ValueError(
                f"key_length has shape {lengths.shape}, but the batch has shape {batch}"
            )
        lengths = np.broadcast_to(lengths, batch)
        lengths = lengths.reshape(*batch, *(1 for _ in lead[len(batch) :]))
    wrong = lengths[(lengths < 0) | (lengths > keys)]
    if wrong.size:
        raise ValueError(f"key_length must be between 0 and {keys}, not {operator.index(wrong[0])}")
    return np.broadcast_to(lengths, lead).ravel().astype(np.int64)


def _flatten(x: Any) -> Any:
    """Make the leading dimensions one."""
    return None if x is None else x.reshape(-1, *x.shape[-2:])


def _like(query: Any, result: npt.NDArray[np.float64]) -> Any:
    """`result` in the kind, dtype and torch device of the query."""
    template = query.values if isinstance(query, Quantized) else query
    if _is_tensor(template):
        torch = sys.modules["torch"]
        dtype = torch.float32 if isinstance(query, Quantized) else template.dtype
        limits = torch.finfo(dtype)
        # Rounding may carry the largest number of a type just beyond it.
        return torch.from_numpy(result.clip(limits.min, limits.max)).to(template.device, dtype)
    dtype = np.float32 if isinstance(query, Quantized) else np.asarray(template).dtype
    limits = np.finfo(dtype)
    return result.clip(float(limits.min), float(limits.max)).astype(dtype)
