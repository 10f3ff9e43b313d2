"""Every way to say which keys a query attends to, in one form per head."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["HeadMask", "resolve_masks"]

_ALIGNMENTS = ("top_left", "bottom_right")


@dataclass(frozen=True, eq=False)
class HeadMask:
    """Which keys each query of a head attends to, and what is added to the scaled logits.

    Parameters
    ----------
    low, high : (L,) int64 ndarray
        Row i attends only to keys ``low[i] <= j < high[i]``, the first and last of which it does
        attend to; both are 0 where it attends to none.
    keys : int
        S.
    allowed : (L, S) bool ndarray, optional
        The keys attended to, if some row has others between them; then it is the whole mask.
    bias : (L, S) float64 ndarray, optional
        Added to the scaled logits (natural logarithm): finite, 0 where not attended to, absent
        if 0 everywhere.
    slope : float, optional
        ALiBi, positive: ``slope * (j - position(i))`` is added as well. Only where no row
        attends to keys behind its position; elsewhere ALiBi is in `bias`.
    offset : int
        ``position(i) = i + offset``: 0 for "top_left", S - L for "bottom_right".
    """

    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    keys: int
    allowed: npt.NDArray[np.bool_] | None = None
    bias: npt.NDArray[np.float64] | None = None
    slope: float | None = None
    offset: int = 0

    def allowed_pairs(self) -> int:
        """The number of pairs of a query and a key that it attends to."""
        if self.allowed is not None:
            return int(np.count_nonzero(self.allowed))
        return int((self.high - self.low).sum())

    @property
    def is_empty(self) -> npt.NDArray[np.bool_]:
        """The rows that attend to no key, (L,)."""
        return self.low == self.high

    def matrix(self) -> npt.NDArray[np.bool_]:
        """The whole mask, (L, S): True where a query attends to a key."""
        if self.allowed is not None:
            return self.allowed
        return _between(self.low, self.high, self.keys)

    def total_bias(self) -> npt.NDArray[np.float64] | None:
        """Everything added to the scaled logits, (L, S): `bias` and that of `slope`."""
        if self.slope is None:
            return self.bias
        alibi = _alibi(self.slope, len(self.low), self.keys, self.offset)
        return np.where(self.matrix(), alibi if self.bias is None else self.bias + alibi, 0.0)


def resolve_masks(
    lead: tuple[int, ...],
    queries: int,
    keys: int,
    *,
    attn_mask: Any = None,
    mask_minimum: float | None = None,
    is_causal: bool = False,
    causal_alignment: str = "top_left",
    key_length: Any = None,
    window: int | None = None,
    document_ids: Any = None,
    alibi_slopes: Any = None,
) -> tuple[list[HeadMask], npt.NDArray[np.int64]]:
    """Everything asked of a mask, combined.

    A key is attended to if every argument allows it.

    Parameters
    ----------
    lead : tuple of int
        Batch and head dimensions of the result. The batch is everything before the heads; if
        there is one dimension only, it is both the batch and the heads.
    queries, keys : int
        L and S, at least 1.
    attn_mask : array, optional
        Broadcast to (*lead, L, S). bool: True where a query attends to a key. float16, float32
        or float64: added to the scaled logits; -infinity, and what is at most half the most
        negative number of the dtype, keeps a query from a key.
    mask_minimum : float, optional
        The most negative number of the dtype `attn_mask` had before it was converted.
    is_causal : bool
        Attend to keys up to position(i) only. Not together with `attn_mask`, as in PyTorch.
    causal_alignment : str
        Where query i is among the keys: "top_left" at key i, "bottom_right" at i + S - L.
    key_length : int or array of int, optional
        Only the first keys are attended to: one number for all, or one per batch element.
    window : int, optional
        Attend to position(i) and the `window` - 1 keys before it only.
    document_ids : array of int, (S,) or (*batch, S), optional
        Tokens attend to those of the same number only. L must be S.
    alibi_slopes : array of float, (H,) or (*batch, H), optional
        ``-slope * abs(position(i) - j)`` is added to the scaled logits.

    Returns
    -------
    masks : list of HeadMask
        Heads that broadcasting gives the same arguments share one.
    index : (heads,) int64 ndarray
        The mask of each head.

    Raises
    ------
    TypeError
        If an argument is not of the kind above.
    ValueError
        If a shape does not fit, a number is out of range, or arguments exclude each other.
    """
    if attn_mask is not None and is_causal:
        raise ValueError("attn_mask and is_causal=True exclude each other: put both in attn_mask")
    offset = _offset(causal_alignment, queries, keys)
    end = np.arange(1, queries + 1) + offset
    sources = [_positions(math.prod(lead), end, is_causal, window)]
    if attn_mask is not None:
        sources.append(_attention_mask(attn_mask, mask_minimum, lead, queries, keys))
    if key_length is not None:
        sources.append(_key_length(key_length, lead, keys))
    if document_ids is not None:
        sources.append(_documents(document_ids, lead, queries, keys))
    if alibi_slopes is not None:
        sources.append(_slopes(alibi_slopes, lead))

    numbers: dict[tuple[int, ...], int] = {}
    which = zip(*(index.tolist() for _, index in sources), strict=True)
    index = [numbers.setdefault(choice, len(numbers)) for choice in which]
    masks = []
    for choice in numbers:
        parts = [parts[i] for (parts, _), i in zip(sources, choice, strict=True)]
        masks.append(_combine(parts, queries, keys, offset))
    return masks, np.array(index, np.int64)


@dataclass(frozen=True, eq=False)
class _Part:
    """What one argument asks of a head; arrays broadcast to (L,) and (L, S)."""

    low: npt.NDArray[np.int64] | int = 0
    high: npt.NDArray[np.int64] | int = np.iinfo(np.int64).max
    allowed: npt.NDArray[np.bool_] | None = None
    bias: npt.NDArray[np.float64] | None = None
    slope: float = 0.0


# The different parts an argument asks for, and which of them each head has.
_Source = tuple[list[_Part], npt.NDArray[np.int64]]


def _combine(parts: list[_Part], queries: int, keys: int, offset: int) -> HeadMask:
    low, high = np.zeros(queries, np.int64), np.full(queries, keys, np.int64)
    for part in parts:
        low, high = np.maximum(low, part.low), np.minimum(high, part.high)
    low, high = np.where(low < high, (low, high), 0)
    allowed = None
    matrices = [part.allowed for part in parts if part.allowed is not None]
    if matrices:
        allowed = _between(low, high, keys)
        for matrix in matrices:
            allowed &= matrix
        low, high, allowed = _intervals(allowed)

    biases = [part.bias for part in parts if part.bias is not None]
    slope = sum(part.slope for part in parts)
    behind = high > np.maximum(np.arange(queries) + offset + 1, 0)
    on_device = slope > 0 and not behind.any()
    if slope and not on_device:
        biases.append(_alibi(slope, queries, keys, offset))
    mask = HeadMask(low, high, keys, allowed, None, slope if on_device else None, offset)
    if not biases:
        return mask
    bias = np.where(mask.matrix(), sum(biases), 0.0)
    return replace(mask, bias=bias) if bias.any() else mask


def _between(
    low: npt.NDArray[np.int64], high: npt.NDArray[np.int64], keys: int
) -> npt.NDArray[np.bool_]:
    """(L, S): True where ``low[i] <= j < high[i]``."""
    key = np.arange(keys)
    return (key >= low[:, None]) & (key < high[:, None])


def _intervals(
    allowed: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
    """The interval from the first to the last True of each row; `allowed` if that is not all."""
    count = np.count_nonzero(allowed, axis=1)
    low = allowed.argmax(axis=1).astype(np.int64)
    last = allowed.shape[1] - allowed[:, ::-1].argmax(axis=1)
    high = np.where(count > 0, last, 0).astype(np.int64)
    return low, high, None if (high - low == count).all() else allowed


def _alibi(slope: float, queries: int, keys: int, offset: int) -> npt.NDArray[np.float64]:
    position = np.arange(queries)[:, None] + offset
    return -slope * np.abs(position - np.arange(keys))


def _offset(alignment: str, queries: int, keys: int) -> int:
    if alignment not in _ALIGNMENTS:
        choices = " or ".join(map(repr, _ALIGNMENTS))
        raise ValueError(f"causal_alignment must be {choices}, not {alignment!r}")
    return 0 if alignment == "top_left" else keys - queries


def _positions(heads: int, end: npt.NDArray[np.int64], is_causal: bool, window: Any) -> _Source:
    """`is_causal` and `window`, the same for all heads; `end` is behind each query's position."""
    part = _Part(high=end) if is_causal else _Part()
    if window is not None:
        # A longer one than the last query's hides nothing, and may not fit int64.
        part = _Part(end - min(_window(window), int(end[-1])), end)
    return [part], np.zeros(heads, np.int64)


def _window(window: Any) -> int:
    if isinstance(window, (bool, np.bool_)):
        raise TypeError(f"window must be an integer, not {window}")
    try:
        window = operator.index(window)
    except TypeError:
        raise TypeError(f"window must be an integer, not {window!r}") from None
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    return window


def _attention_mask(
    attn_mask: Any, minimum: float | None, lead: tuple[int, ...], queries: int, keys: int
) -> _Source:
    mask = np.asarray(attn_mask)
    if mask.dtype not in (np.bool_, np.float16, np.float32, np.float64):
        raise TypeError(
            f"attn_mask is {mask.dtype}: it must be bool, float16, bfloat16, float32 or float64"
        )
    shape = (*lead, queries, keys)
    if not _broadcasts(mask.shape, shape):
        raise ValueError(
            f"attn_mask of shape {mask.shape} does not broadcast to {shape}: batch and heads, "
            "queries, keys"
        )
    # What was broadcast already is looked at once.
    mask = mask[tuple(slice(None) if stride else slice(1) for stride in mask.strides)]
    if mask.dtype != np.bool_:
        _check_bias(mask)
    mask = np.atleast_2d(np.broadcast_to(mask, (*mask.shape[:-1], keys)))
    heads = mask.reshape(-1, *mask.shape[-2:])
    if mask.dtype == np.bool_:
        parts = [_boolean(head) for head in heads]
    else:
        limit = (float(np.finfo(mask.dtype).min) if minimum is None else minimum) / 2
        parts = [_additive(head, limit) for head in heads]
    return parts, _spread(mask.shape[:-2], lead)


def _check_bias(mask: npt.NDArray[Any]) -> None:
    bad = np.argwhere(~(mask < np.inf))
    if len(bad):
        where = tuple(map(int, bad[0]))
        kind = "NaN" if np.isnan(mask[where]) else "+infinity"
        raise ValueError(f"attn_mask contains {kind}, first at index {where}")


def _boolean(allowed: npt.NDArray[np.bool_]) -> _Part:
    return _Part(*_intervals(allowed))


def _additive(mask: npt.NDArray[Any], limit: float) -> _Part:
    """A mask whose numbers above `limit` are bias."""
    allowed = mask > limit
    bias = np.where(allowed, mask, 0).astype(np.float64)
    return replace(_boolean(allowed), bias=bias if bias.any() else None)


def _key_length(key_length: Any, lead: tuple[int, ...], keys: int) -> _Source:
    lengths = np.asarray(key_length)
    if not np.issubdtype(lengths.dtype, np.integer):
        raise TypeError(f"key_length must be of integers, not {lengths.dtype}")
    batch = _batch(lead)
    if lengths.size != 1 and lengths.shape != batch:
        raise ValueError(f"key_length has shape {lengths.shape}, but the batch has shape {batch}")
    wrong = lengths[(lengths < 0) | (lengths > keys)]
    if wrong.size:
        raise ValueError(f"key_length must be between 0 and {keys}, not {wrong[0]}")
    unique, index = np.unique(lengths.ravel(), return_inverse=True)
    index = index.reshape(() if lengths.size == 1 else batch)
    return [_Part(high=length) for length in unique.tolist()], _per_head(index, lead)


def _documents(document_ids: Any, lead: tuple[int, ...], queries: int, keys: int) -> _Source:
    ids = np.asarray(document_ids)
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"document_ids must be of integers, not {ids.dtype}")
    if queries != keys:
        raise ValueError(f"document_ids needs as many queries as keys, not {queries} and {keys}")
    batch = _batch(lead)
    if ids.shape[-1:] != (keys,) or not _broadcasts(ids.shape[:-1], batch):
        raise ValueError(
            f"document_ids has shape {ids.shape}: it must be {(keys,)}, or broadcast to "
            f"{(*batch, keys)}, the batch and the keys"
        )
    parts = [_same_document(row) for row in ids.reshape(-1, keys)]
    return parts, _per_head(_spread(ids.shape[:-1], batch).reshape(batch), lead)


def _same_document(ids: npt.NDArray[Any]) -> _Part:
    starts = np.concatenate(([0], np.flatnonzero(ids[1:] != ids[:-1]) + 1))
    if len(np.unique(ids[starts])) < len(starts):
        return _Part(allowed=ids[:, None] == ids)
    sizes = np.diff(starts, append=len(ids))
    return _Part(np.repeat(starts, sizes), np.repeat(starts + sizes, sizes))


def _slopes(alibi_slopes: Any, lead: tuple[int, ...]) -> _Source:
    slopes = np.asarray(alibi_slopes)
    if slopes.dtype.kind not in "iuf":
        raise TypeError(f"alibi_slopes must be of real numbers, not {slopes.dtype}")
    if not lead:
        raise ValueError("alibi_slopes needs a dimension of heads, so at least 3 dimensions")
    if not _broadcasts(slopes.shape, lead):
        raise ValueError(
            f"alibi_slopes of shape {slopes.shape} does not broadcast to {lead}, batch and heads"
        )
    # Within float32 no sum or product with one overflows float64.
    wrong = slopes[~(np.abs(slopes.astype(np.float64)) <= np.finfo(np.float32).max)]
    if wrong.size:
        raise ValueError(f"alibi_slopes must be finite and within float32, not {wrong[0]}")
    unique, index = np.unique(slopes.astype(np.float64), return_inverse=True)
    index = np.broadcast_to(index.reshape(slopes.shape), lead).ravel()
    return [_Part(slope=slope) for slope in unique.tolist()], index


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Whether an array of this shape broadcasts to `target`."""
    sizes = zip(shape[::-1], target[::-1], strict=False)
    return len(shape) <= len(target) and all(size in (1, wanted) for size, wanted in sizes)


def _spread(shape: tuple[int, ...], target: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Which element of an array of this shape each element of `target` is, both flattened."""
    return np.broadcast_to(np.arange(math.prod(shape)).reshape(shape), target).ravel()


def _batch(lead: tuple[int, ...]) -> tuple[int, ...]:
    return lead[:-1] if len(lead) > 1 else lead


def _per_head(index: npt.NDArray[np.int64], lead: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Give each head what its batch element has."""
    if index.ndim < len(lead):
        index = index[..., None]
    return np.broadcast_to(index, lead).ravel()
