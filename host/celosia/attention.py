"""`run_attention`: scaled dot-product attention on an accelerator."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import Widths
from celosia_hw.config import AcceleratorConfig

from .arrays import array_of, like, most_negative
from .device import Device, default_device, open_device
from .masks import HeadMask, resolve_masks
from .options import AttentionOptions
from .parallel import DevicePool
from .program import Program
from .quantize import (
    SAFE_FRACTION,
    Operand,
    Quantized,
    logit_transform,
    quantize_keys,
    quantize_queries,
    quantize_values,
)
from .schedule import HeadGroup, check_capacity, schedule
from .tiling import query_tiles

__all__ = [
    "Job",
    "RawResult",
    "opened",
    "operand_of",
    "plan_attention",
    "run_attention",
    "run_attention_raw",
]


@dataclass(frozen=True)
class RawResult:
    """The accelerator's own result: attention is ``values * scale @ transform + offset``.

    Parameters
    ----------
    values : (..., L, Ev) int16 ndarray
    scale : (..., 1, 1) float64 ndarray
        One per head.
    offset : (..., 1, Ev) or (..., L, Ev) float64 ndarray
        The mean that smoothing took out of V, else zeros.
    transform : (..., Ev, Ev) float64 ndarray or None
        Undoes the rotation and balancing of V; None for the identity.
    """

    values: npt.NDArray[np.int16]
    scale: npt.NDArray[np.float64]
    offset: npt.NDArray[np.float64]
    transform: npt.NDArray[np.float64] | None = None

    def dequantize(self) -> npt.NDArray[np.float64]:
        """The result in floating point, (..., L, Ev)."""
        with np.errstate(over="ignore"):  # inputs at the end of float64's range
            if self.transform is None:
                return self.values * self.scale + self.offset
            return self.values @ self.transform * self.scale + self.offset


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
    document_ids: Any = None,
    alibi_slopes: Any = None,
    causal_alignment: str = "top_left",
    options: AttentionOptions | None = None,
    device: Device | DevicePool | str | None = None,
) -> Any:
    """``softmax(query @ key.T * scale) @ value`` on an accelerator.

    The arguments that `torch.nn.functional.scaled_dot_product_attention` has too mean the same.

    Parameters
    ----------
    query : array or tensor, (..., Hq, L, E)
    key : array or tensor, (..., H, S, E)
    value : array or tensor, (..., H, S, Ev)
        NumPy arrays, torch tensors or arrays of another library that speaks DLPack or the array
        protocol (JAX, TensorFlow, CuPy), floating point, or `Quantized`; of 2 or more dimensions.
        Leading dimensions broadcast.
    attn_mask : array or tensor, broadcastable to (..., Hq, L, S), optional
        bool: True where a query attends to a key. Floating point: added to the scaled logits;
        -infinity, or at most half the most negative number of its dtype, where a query does not
        attend to a key. Not together with `is_causal`.
    is_causal : bool
        Query i attends to the keys up to its own position, also where L and S differ.
    scale : float, optional
        ``1 / sqrt(E)`` if absent. May be negative or zero.
    enable_gqa : bool
        Consecutive query heads share a head of keys and values: Hq is a multiple of H.
    key_length : int or array of int, optional
        Only the first keys are attended to: one number for all, or one per batch element. The
        batch is everything before the heads; in three dimensions it is the first. Where it is
        0 the result is 0.
    window : int, optional
        Attend only to the query's own position and the `window` - 1 keys before it.
    document_ids : array of int, (S,) or (batch, S), optional
        Packed documents: tokens attend only to those of the same number. L must be S.
    alibi_slopes : array of float, (H,) or (batch, H), optional
        ``-slope * abs(position - j)`` is added to the scaled logits of key j.
    causal_alignment : str
        Position of query i among the keys, for `is_causal`, `window` and
        `alibi_slopes`: "top_left" is key i, as in
        PyTorch, "bottom_right" key i + S - L, as in decoding.
    options : AttentionOptions, optional
        How to quantize.
    device : Device, DevicePool or str, optional
        An open device, several that share the heads, or what to open for this call, as in
        `open_device`. The innermost ``with open_device(...)`` if absent.

    Returns
    -------
    array or tensor, (..., Hq, L, Ev)
        Of the query's kind, dtype and own device, without a gradient; float32 for a `Quantized`
        query.

    Raises
    ------
    TypeError
        If a tensor is neither floating point nor `Quantized`.
    ValueError
        If shapes do not fit each other or the device, a dimension is empty (where PyTorch
        returns an empty tensor or NaN), or a tensor contains NaN or infinity. Nothing has been
        sent to the device then.
    DeviceError
        If there is no device, or it fails.

    Notes
    -----
    Logits beyond what the accelerator's base-2 logarithm holds (about 2800 with the default 12
    integer bits) are scaled down, row by row, so that their order is kept.

    A query that attends to no key has the result 0. So does PyTorch, but where a float mask has the
    most negative finite number in the whole row: there it gives the mean of V.
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
        document_ids=document_ids,
        alibi_slopes=alibi_slopes,
        causal_alignment=causal_alignment,
        options=options,
        device=device,
    )
    return like(query, raw.dequantize())


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
    document_ids: Any = None,
    alibi_slopes: Any = None,
    causal_alignment: str = "top_left",
    options: AttentionOptions | None = None,
    device: Device | DevicePool | str | None = None,
) -> RawResult:
    """Like `run_attention`, but return the int16 result and its scales.

    Returns
    -------
    RawResult
    """
    with opened(device) as accelerator:
        job = plan_attention(
            accelerator.config,
            query,
            key,
            value,
            attn_mask,
            is_causal=is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
            key_length=key_length,
            window=window,
            document_ids=document_ids,
            alibi_slopes=alibi_slopes,
            causal_alignment=causal_alignment,
            options=options,
            banks=accelerator.free_banks,
        )
        return job.run(accelerator)


@dataclass(frozen=True)
class Job:
    """An attention that is checked, quantized and scheduled for one configuration.

    Parameters
    ----------
    groups : list of HeadGroup
    programs : callable
        Gives the programs that compute groups, as `schedule` does.
    shape : tuple of int
        Of the result.
    """

    groups: list[HeadGroup]
    programs: Callable[[Sequence[HeadGroup]], Iterator[Program]]
    shape: tuple[int, ...]

    @functools.cached_property
    def program(self) -> Program:
        """The packets up to the point where the next ones depend on the replies."""
        return next(self.programs(self.groups))

    def run(self, device: Device | DevicePool) -> RawResult:
        """Run on a device of the same configuration, or spread the groups over those of a pool.

        Heads whose results saturate run again with the safe result fraction, if they were given a
        larger one.
        """
        *lead, queries, value_dim = self.shape
        count = math.prod(lead)
        values = np.zeros((count, queries, value_dim), np.int16)
        groups = self.groups
        if isinstance(device, DevicePool) and len(groups) > 1:
            parts = _portions(groups, len(device.devices))
            shape = values.shape
            results = device.run_parts(
                _run_portion, [(part, self.programs, shape) for part in parts]
            )
            groups = []
            for some, computed in results:
                groups += some
                values[_heads(some)] = computed
        elif isinstance(device, DevicePool):
            ((groups, values),) = device.run_parts(_run_groups, [(groups, self.programs, values)])
        else:
            groups, values = _run_groups(device, groups, self.programs, values)
        return self._assemble(groups, values)

    def _assemble(self, groups: list[HeadGroup], values: npt.NDArray[np.int16]) -> RawResult:
        *lead, queries, value_dim = self.shape
        heads = len(values)
        empty = any(mask.is_empty.any() for group in groups for mask in group.masks)
        scale = np.zeros((heads, 1, 1))
        offset = np.zeros((heads, queries if empty else 1, value_dim))
        transform = None
        if any(group.values.transform is not None for group in groups):
            transform = np.tile(np.eye(value_dim), (heads, 1, 1))
        for group in groups:
            scale[group.heads] = np.ldexp(group.values.scale, -group.values.result_fraction)
            offset[group.heads] = group.values.offset
            if empty:
                for head, mask in zip(group.heads, group.masks, strict=True):
                    offset[head, mask.is_empty] = 0
            if transform is not None and group.values.transform is not None:
                transform[group.heads] = group.values.transform
        return RawResult(
            values.reshape(self.shape),
            scale.reshape(*lead, 1, 1),
            offset.reshape(*lead, -1, value_dim),
            None if transform is None else transform.reshape(*lead, value_dim, value_dim),
        )


_Programs = Callable[[Sequence[HeadGroup]], Iterator[Program]]


def _portions(groups: Sequence[HeadGroup], count: int) -> list[list[HeadGroup]]:
    """Groups in portions of about the same work, in their order."""
    work = np.cumsum([group.useful_macs() for group in groups])
    middle = work - np.diff(work, prepend=0) / 2
    which = (middle * count // max(int(work[-1]), 1)).astype(int)
    portions = [
        [group for group, n in zip(groups, which, strict=True) if n == i] for i in range(count)
    ]
    return [portion for portion in portions if portion]


def _heads(groups: Sequence[HeadGroup]) -> npt.NDArray[np.int64]:
    return np.concatenate([group.heads for group in groups])


def _run_portion(
    device: Device, groups: list[HeadGroup], programs: _Programs, shape: tuple[int, ...]
) -> tuple[list[HeadGroup], npt.NDArray[np.int16]]:
    """`_run_groups` with the results of these groups' heads alone, one after the other."""
    groups, values = _run_groups(device, groups, programs, np.zeros(shape, np.int16))
    return groups, values[_heads(groups)]


def _run_groups(
    device: Device,
    groups: list[HeadGroup],
    programs: _Programs,
    values: npt.NDArray[np.int16],
) -> tuple[list[HeadGroup], npt.NDArray[np.int16]]:
    """Write the results of groups to `values`; the groups come back as they ran."""
    _run_programs(device, programs(groups), values)
    report = device.report
    ran, again = [], []
    for group in groups:
        if group.values.result_fraction > SAFE_FRACTION and _saturated(values[group.heads]):
            safe = dataclasses.replace(group.values, result_fraction=SAFE_FRACTION)
            group = dataclasses.replace(group, values=safe)
            again.append(group)
        ran.append(group)
    if again:
        _run_programs(device, programs(again), values)
        assert report is not None
        assert device.report is not None
        device.report = report.followed(device.report, device.config.multipliers)
    return ran, values


def _run_programs(device: Device, programs: Iterator[Program], values: npt.NDArray) -> None:
    """Run programs and report on all of them."""
    report = None
    for program in programs:
        following = device.run(program, values)
        if report is not None:
            following = report.followed(following, program.peak_macs)
        report = device.report = following


def _saturated(values: npt.NDArray[np.int16]) -> bool:
    limits = np.iinfo(np.int16)
    return bool(values.min() == limits.min or values.max() == limits.max)


def plan_attention(
    config: AcceleratorConfig,
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
    document_ids: Any = None,
    alibi_slopes: Any = None,
    causal_alignment: str = "top_left",
    options: AttentionOptions | None = None,
    banks: int | None = None,
) -> Job:
    """Check, quantize and schedule what `run_attention` would run.

    Parameters
    ----------
    banks : int, optional
        Key banks to use, from the first; all if absent.

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
    # As in broadcasting, dimensions of size 1 stand before the others.
    rank = max(map(len, shapes.values()))
    shapes = {name: (1,) * (rank - len(shape)) + shape for name, shape in shapes.items()}
    for name, operand in operands.items():
        _check_finite(name, operand)
    head_dim, key_count = shapes["key"][-1], shapes["key"][-2]
    softmax_scale = head_dim**-0.5 if scale is None else float(scale)
    if not math.isfinite(softmax_scale):
        raise ValueError(f"scale must be finite, not {scale}")

    lead, index = _broadcast(shapes, enable_gqa)
    masks, mask_index = resolve_masks(
        lead,
        shapes["query"][-2],
        key_count,
        attn_mask=None if attn_mask is None else array_of(attn_mask),
        mask_minimum=None if attn_mask is None else most_negative(attn_mask),
        is_causal=is_causal,
        key_length=None if key_length is None else array_of(key_length),
        window=window,
        document_ids=None if document_ids is None else array_of(document_ids),
        alibi_slopes=None if alibi_slopes is None else array_of(alibi_slopes),
        causal_alignment=causal_alignment,
    )
    usable = config.key_banks if banks is None else banks
    check_capacity(config, max(int(mask.high.max()) for mask in masks), usable)

    flat = {
        name: Operand(*(_flatten(x) for x in (operand.values, operand.scale)))
        for name, operand in operands.items()
    }
    # Query heads that attend to the same keys share them, whatever made them the same.
    ends = [int(mask.high.max()) for mask in masks]
    shared: dict[tuple[int, int, int], list[int]] = {}
    for head, mask in enumerate(mask_index):
        where = (int(index["key"][head]), int(index["value"][head]), ends[mask])
        shared.setdefault(where, []).append(head)
    groups = []
    for (key_head, value_head, end), members in shared.items():
        if end == 0:
            continue
        heads = np.array(members)
        groups.append(
            _head_group(
                config,
                heads,
                flat["query"][index["query"][heads]],
                flat["key"][key_head, :end],
                flat["value"][value_head, :end],
                [masks[mask] for mask in mask_index[heads]],
                softmax_scale,
                options,
            )
        )
    shape = (*lead, shapes["query"][-2], shapes["value"][-1])
    return Job(groups, functools.partial(schedule, config, banks=usable), shape)


def _logit_range(queries: Operand, keys: Operand, softmax_scale: float) -> float:
    """A bound on the magnitude of the logits, in base 2, before smoothing (Cauchy-Schwarz)."""
    norms = []
    for operand in (queries, keys):
        values = operand.values.astype(np.float64)
        with np.errstate(over="ignore"):
            scaled = values if operand.scale is None else values * operand.scale
            norms.append(float(np.linalg.norm(scaled, axis=-1).max()))
    return min(abs(softmax_scale) * math.log2(math.e) * norms[0] * norms[1], 1e6)


def _head_group(
    config: AcceleratorConfig,
    heads: npt.NDArray[np.int64],
    queries: Operand,
    keys: Operand,
    values: Operand,
    masks: list[HeadMask],
    softmax_scale: float,
    options: AttentionOptions,
) -> HeadGroup:
    """Quantize the heads that share keys and values, and cut them into tiles."""
    high = masks[0].high
    # A sample of attention says how large results become only where every query sees every key.
    plain = all(mask.allowed is None and mask.bias is None for mask in masks)
    limits = None if plain and (high == len(keys.values)).all() else high
    transform = logit_transform(queries, keys, softmax_scale, options, limits)
    quantized = quantize_keys(keys, options, transform)
    tiles = query_tiles(config, masks, _logit_range(queries, keys, softmax_scale))
    rows = [tile.rows for tile in tiles]
    return HeadGroup(
        heads,
        quantize_queries(queries, quantized, softmax_scale, Widths(config), rows, options),
        quantized,
        quantize_values(values, options, transform),
        masks,
        tiles,
    )


@contextlib.contextmanager
def opened(device: Device | DevicePool | str | None) -> Iterator[Any]:
    """The device to use; closed again if it was opened here."""
    if device is None:
        yield default_device()
    elif isinstance(device, (Device, DevicePool)):
        yield device
    else:
        opened = open_device(device)
        try:
            yield opened
        finally:
            opened.close()


def _operand(name: str, tensor: Any) -> Operand:
    if not isinstance(tensor, Quantized):
        values = array_of(tensor)
        if values.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(
                f"{name} is {values.dtype}: it must be float16, bfloat16, float32 or float64, "
                "or Quantized(values, scale)"
            )
        return Operand(values)
    values = array_of(tensor.values)
    if values.dtype != np.int8:
        raise TypeError(f"{name}.values is {values.dtype}: Quantized holds int8")
    scale = array_of(tensor.scale).astype(np.float64)
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


def operand_of(name: str, tensor: Any) -> Operand:
    """A floating-point tensor as an `Operand`, checked.

    Raises
    ------
    TypeError, ValueError
        If it is of another kind, or contains NaN or infinity.
    """
    if isinstance(tensor, Quantized):
        raise TypeError(f"{name} is Quantized: a cache takes floating point only")
    operand = _operand(name, tensor)
    _check_finite(name, operand)
    return operand


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


def _flatten(x: Any) -> Any:
    """Make the leading dimensions one."""
    return None if x is None else x.reshape(-1, *x.shape[-2:])
