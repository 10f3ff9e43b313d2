"""Keys and values that stay on the accelerator, for decoding."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import FACTOR_BITS, MAX_RESULT_FRACTION, Widths

from .arrays import array_of, like
from .attention import Job, operand_of
from .device import Device
from .frozen import FrozenKeys, FrozenValues, Rows, freeze
from .masks import HeadMask, resolve_masks
from .options import AttentionOptions
from .program import Program
from .quantize import SAFE_FRACTION, KeyTensor, Operand, ValueTensor, quantize_queries
from .schedule import HeadGroup, append_program, load_program, resident_program
from .tiling import query_tiles

__all__ = ["KeyValueCache"]


class KeyValueCache:
    """Keys and values of some heads on a device, to which tokens are appended.

    Each token has its own scales. The transforms (mean, balance, rotation) are fixed by the first
    tokens. While the cache is on the device, `run_attention` has the device's other banks. Only new
    keys and values and the queries cross the link.

    The host keeps the integers as well: `evict` gives the room on the device back, and the next
    `attend` loads all tokens again. Results do not depend on that.

    Parameters
    ----------
    key : array or tensor, (..., H, S, E)
    value : array or tensor, (..., H, S, Ev)
        Floating point; of the first tokens.
    capacity : int
        Tokens that there is room for.
    device : Device
    query : array or tensor, (..., Hq, n, E), optional
        The queries that attend to the first tokens, those of the last n. With them, keys are
        rounded so that errors cancel where these queries see them: about 5 dB.
    scale : float, optional
        Of the logits, ``1 / sqrt(E)`` if absent.
    headroom : float
        How many times larger than the largest of the first tokens a later one may be. One that
        exceeds it costs all others a second rounding, and the next `attend` loads the cache again.
        Each doubling costs a bit of the 16 bits of a weight.

    Attributes
    ----------
    capacity, length : int
        Tokens that there is room for, and that there are.

    Raises
    ------
    TypeError, ValueError
        As `run_attention`; or if the device has no room for the cache. Nothing has been sent then.
    """

    def __init__(
        self,
        key: Any,
        value: Any,
        *,
        capacity: int,
        device: Device,
        query: Any = None,
        scale: float | None = None,
        headroom: float = 4.0,
    ) -> None:
        keys, values = self._tensors(key, value)
        if isinstance(capacity, bool) or not isinstance(capacity, int):
            raise TypeError(f"capacity must be an int, not {capacity!r}")
        if capacity < keys.shape[-2]:
            raise ValueError(f"capacity ({capacity}) must be at least the {keys.shape[-2]} tokens")
        if not 1 <= headroom <= 1 << 12:
            raise ValueError(f"headroom must be between 1 and {1 << 12}, not {headroom}")
        for name, array in (("key", keys), ("value", values)):
            if array.shape[-1] > device.config.max_head_dim:
                raise ValueError(
                    f"head dimension {array.shape[-1]} of {name} exceeds the device's maximum of "
                    f"{device.config.max_head_dim}"
                )
        self.capacity, self.length = capacity, keys.shape[-2]
        self._device, self._headroom, self._is_closed = device, headroom, False
        self._lead, self._dims = keys.shape[:-2], (keys.shape[-1], values.shape[-1])
        self._scale = self._softmax_scale(scale, self._dims[0] ** -0.5)
        heads = [x.reshape(-1, *x.shape[-2:]) for x in (keys, values)]
        queries: list[Any] = [None] * len(heads[0])
        if query is not None:
            queries = list(self._queries(query).values.astype(np.float64))
        self._frozen: list[tuple[FrozenKeys, FrozenValues]] = []
        self._rows: list[tuple[Rows, Rows]] = []
        for head_keys, head_values, head_queries in zip(*heads, queries, strict=True):
            tensors = (head_keys, head_values)
            frozen = freeze(*tensors, head_queries, self._scale)
            self._frozen.append(frozen)
            rows = [
                part.quantize(tensor, part.exponent(tensor, headroom), headroom)
                for part, tensor in zip(frozen, tensors, strict=True)
            ]
            self._rows.append((rows[0], rows[1]))
        self._slots: list[int] = []
        self._load()

    @property
    def slots(self) -> int:
        """Key tiles that the cache takes on the device."""
        return len(self._rows) * self._slots_per_head

    @property
    def first_slot(self) -> int:
        """The first of them, while the cache is on the device."""
        return min(self._slots)

    @property
    def is_resident(self) -> bool:
        """Whether the cache is on the device."""
        return bool(self._slots)

    def append(self, key: Any, value: Any) -> None:
        """Append tokens.

        Parameters
        ----------
        key : array or tensor, (..., H, n, E)
        value : array or tensor, (..., H, n, Ev)

        Raises
        ------
        TypeError, ValueError
            If shapes do not fit, or there is no room. The cache is as it was then.
        """
        self._check_open()
        keys, values = self._tensors(key, value)
        for name, array, dim in zip(("key", "value"), (keys, values), self._dims, strict=True):
            expected = (*self._lead, keys.shape[-2], dim)
            if array.shape != expected:
                raise ValueError(f"{name} has shape {array.shape}, the cache needs {expected}")
        count = keys.shape[-2]
        if self.length + count > self.capacity:
            raise ValueError(
                f"{count} more tokens: the cache holds {self.length} of at most {self.capacity}"
            )
        rows, is_wider = [], False
        flat = zip(*(x.reshape(-1, *x.shape[-2:]) for x in (keys, values)), strict=True)
        for frozen, old, tensors in zip(self._frozen, self._rows, flat, strict=True):
            pair = []
            for part, before, tensor in zip(frozen, old, tensors, strict=True):
                new = part.quantize(tensor, before.exponent, self._headroom)
                if new.exponent > before.exponent:
                    before, is_wider = before.widened(new.exponent), True
                pair.append(_joined(before, new))
            rows.append((pair[0], pair[1]))
        before = self._rows, self.length
        self._rows, self.length = rows, self.length + count
        if is_wider:
            self.evict()
        if not self.is_resident:
            return
        stored = [self._stored(head) for head in range(len(rows))]
        try:
            self._send(append_program(self._device.config, stored, self._slots, before[1]))
        except BaseException:
            self._rows, self.length = before
            raise

    def attend(
        self,
        query: Any,
        attn_mask: Any = None,
        *,
        is_causal: bool | None = None,
        window: int | None = None,
        scale: float | None = None,
    ) -> Any:
        """Attention of queries to the tokens of the cache.

        Parameters
        ----------
        query : array or tensor, (..., Hq, n, E)
            Hq is a multiple of H; consecutive heads share a head of the cache.
        attn_mask : array or tensor, broadcastable to (..., Hq, n, S), optional
            As `run_attention` takes it, over the S tokens of the cache.
        is_causal : bool, optional
            The queries belong to the last n tokens, and attend to no later ones. So it is, if
            there is no `attn_mask`.
        window : int, optional
            Attend only to so many tokens up to the query's own.
        scale : float, optional
            That of the cache if absent.

        Returns
        -------
        array or tensor, (..., Hq, n, Ev)

        Raises
        ------
        TypeError, ValueError
            As `run_attention`; or if the cache was evicted and the device has no room for it.
        """
        self._check_open()
        queries = self._queries(query)
        heads, _, count, _ = queries.values.shape
        softmax_scale = self._softmax_scale(scale, self._scale)
        shape: tuple[int, ...] = array_of(query).shape
        masks, index = resolve_masks(
            *(shape[:-2], count, self.length),
            attn_mask=None if attn_mask is None else array_of(attn_mask),
            is_causal=attn_mask is None if is_causal is None else is_causal,
            causal_alignment="bottom_right",
            window=window,
        )
        members = np.arange(index.size).reshape(heads, -1)
        groups = [
            self._attending(
                head, members[head], queries[head], [masks[i] for i in chosen], softmax_scale
            )
            for head, chosen in enumerate(index.reshape(heads, -1))
        ]
        load = None if self.is_resident else self._load()
        slots = {id(group.heads): slot for group, slot in zip(groups, self._slots, strict=True)}
        job = Job(
            groups,
            lambda some: iter(
                [resident_program(self._device.config, some, [slots[id(g.heads)] for g in some])]
            ),
            (*shape[:-1], self._dims[1]),
        )
        result = job.run(self._device).dequantize()
        if load is not None:
            assert self._device.report is not None
            peak = self._device.config.multipliers
            self._device.report = self._device.report.followed(load, peak)
        return like(query, result)

    def crop(self, length: int) -> None:
        """Forget all tokens behind the first `length`; nothing is sent.

        Raises
        ------
        ValueError
            If there are not so many, or none would be left.
        """
        self._check_open()
        if not 1 <= operator.index(length) <= self.length:
            raise ValueError(f"length must be between 1 and the {self.length} tokens, not {length}")
        self._rows = [
            (_cropped(keys, length), _cropped(values, length)) for keys, values in self._rows
        ]
        self.length = length

    def reorder(self, index: Any) -> None:
        """Put the tokens of batch element ``index[i]`` in place of those of element i.

        Only what is there more than once afterwards is sent to the device.

        Parameters
        ----------
        index : (batch,) array or tensor of int

        Raises
        ------
        ValueError
            If there is no batch, or `index` does not fit it.
        """
        self._check_open()
        source = array_of(index)
        if len(self._lead) < 2 or source.shape != self._lead[:1]:
            raise ValueError(f"index has shape {source.shape}, the cache {self._lead} heads")
        if not ((source >= 0) & (source < len(source))).all():
            raise ValueError(f"index must be between 0 and {len(source) - 1}, not {source}")
        heads = np.arange(len(self._rows)).reshape(self._lead)[source].ravel().tolist()
        self._rows = [self._rows[head] for head in heads]
        self._frozen = [self._frozen[head] for head in heads]
        if not self.is_resident:
            return
        old, self._slots = self._slots, []
        first, base = {}, min(old)
        for place, head in enumerate(heads):
            first.setdefault(head, place)
        free = [slot for head, slot in enumerate(old) if head not in first]
        copies = [place for place, head in enumerate(heads) if first[head] != place]
        self._slots = [
            old[head] if first[head] == place else free.pop() for place, head in enumerate(heads)
        ]
        assert min(self._slots) == base
        if copies:
            self._send(self._loading(copies))

    def evict(self) -> None:
        """Give the room on the device back until the cache is used again."""
        slots, self._slots = self._slots, []
        if slots:
            self._device.release(min(slots))

    def close(self) -> None:
        """Give the room on the device back for good; closing twice does nothing."""
        self.evict()
        self._is_closed = True

    def __enter__(self) -> KeyValueCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise ValueError("the cache is closed")

    @staticmethod
    def _softmax_scale(scale: float | None, default: float) -> float:
        if scale is not None and not math.isfinite(scale):
            raise ValueError(f"scale must be finite, not {scale}")
        return default if scale is None else float(scale)

    @staticmethod
    def _tensors(key: Any, value: Any) -> tuple[npt.NDArray, npt.NDArray]:
        keys, values = (
            operand_of(name, x).values.astype(np.float64)
            for name, x in (("key", key), ("value", value))
        )
        if (
            keys.ndim < 2
            or keys.shape[:-1] != values.shape[:-1]
            or 0 in (*keys.shape, *values.shape)
        ):
            raise ValueError(
                f"key of shape {keys.shape} and value of shape {values.shape} do not fit each other"
            )
        return keys, values

    def _queries(self, query: Any) -> Operand:
        """Queries by head of the cache, (heads, queries of the group, n, dim)."""
        queries = operand_of("query", query)
        shape: tuple[int, ...] = queries.values.shape
        dim, shared = self._dims[0], max(self._lead[-1:], default=1)
        fits = len(shape) == len(self._lead) + 2 and shape[:-3] == self._lead[:-1]
        if not fits or shape[-1] != dim or 0 in shape or math.prod(shape[-3:-2]) % shared:
            raise ValueError(
                f"query has shape {shape}: the cache needs (*{self._lead[:-1]}, a multiple of "
                f"{shared}, n, {dim})"
            )
        return Operand(queries.values.reshape(math.prod(self._lead), -1, *shape[-2:]), None)

    @property
    def _slots_per_head(self) -> int:
        return -(-self.capacity // self._device.config.key_rows)

    def _load(self) -> Any:
        """Take room on the device and load all tokens; returns the report."""
        count, size = len(self._rows), self._slots_per_head
        what = f"a cache of {count} heads of {self.capacity} tokens"
        first = self._device.reserve(count * size, what)
        self._slots = [first + head * size for head in range(count)]
        return self._send(self._loading(range(count)))

    def _loading(self, heads: Sequence[int]) -> Program:
        stored = [self._stored(head) for head in heads]
        return load_program(self._device.config, stored, [self._slots[head] for head in heads])

    def _send(self, program: Program) -> Any:
        try:
            return self._device.run(program, np.zeros((0, 0, 1), np.int16))
        except BaseException:
            self.evict()
            raise

    def _stored(self, head: int) -> tuple[KeyTensor, ValueTensor]:
        """The tokens of a head; the result fraction is the largest that cannot saturate."""
        (keys, values), (frozen_keys, frozen_values) = self._rows[head], self._frozen[head]
        spare = FACTOR_BITS - int(values.factors.max()).bit_length()
        return (
            KeyTensor(
                *(keys.values, keys.factors, keys.exponent),
                frozen_keys.query_matrix,
                frozen_keys.query_metric,
            ),
            ValueTensor(
                values.values,
                values.factors,
                math.ldexp(1.0, values.exponent),
                np.zeros(self._dims[1]),
                frozen_values.inverse,
                min(SAFE_FRACTION + spare, MAX_RESULT_FRACTION),
            ),
        )

    def _attending(
        self,
        head: int,
        members: npt.NDArray[np.int64],
        queries: Operand,
        masks: list[HeadMask],
        softmax_scale: float,
    ) -> HeadGroup:
        config = self._device.config
        keys, values = self._stored(head)
        logits = 0.0
        if any(mask.bias is not None for mask in masks):
            logits = self._logit_range(head, queries, softmax_scale)
        tiles = query_tiles(config, masks, logits)
        rows = [tile.rows for tile in tiles]
        options = AttentionOptions()
        quantized = quantize_queries(queries, keys, softmax_scale, Widths(config), rows, options)
        return HeadGroup(members, quantized, keys, values, masks, tiles)

    def _logit_range(self, head: int, queries: Operand, softmax_scale: float) -> float:
        """A bound on the magnitude of the logits, in base 2 (Cauchy-Schwarz)."""
        keys = self._rows[head][0]
        transformed = queries.values.astype(np.float64) @ self._frozen[head][0].query_matrix
        norms = np.linalg.norm(keys.values.astype(np.float64), axis=-1) * keys.factors
        largest = math.ldexp(float(norms.max()), keys.exponent - FACTOR_BITS)
        longest = float(np.linalg.norm(transformed, axis=-1).max())
        return min(abs(softmax_scale) * math.log2(math.e) * longest * largest, 1e6)


def _joined(before: Rows, after: Rows) -> Rows:
    values = np.concatenate([before.values, after.values])
    return Rows(values, np.concatenate([before.factors, after.factors]), after.exponent)


def _cropped(rows: Rows, length: int) -> Rows:
    return dataclasses.replace(rows, values=rows.values[:length], factors=rows.factors[:length])
