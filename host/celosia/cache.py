"""Keys and values that stay on the accelerator, for decoding."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from celosia_hw.arithmetic import FACTOR_BITS, MAX_RESULT_FRACTION, Widths

from .arrays import like
from .attention import Job, operand_of
from .device import Device
from .masks import HeadMask, resolve_masks
from .options import AttentionOptions
from .quantize import SAFE_FRACTION, KeyTensor, Operand, ValueTensor, quantize_queries
from .schedule import HeadGroup, append_program, load_program, resident_program
from .tiling import query_tiles
from .transforms import rotation

__all__ = ["KeyValueCache"]

_TOP = (1 << FACTOR_BITS) - 1
_LEVELS = 127


class KeyValueCache:
    """Keys and values of some heads on a device, to which tokens are appended.

    Each token has its own scales. What they are relative to, and the mean that is taken out of
    the keys, are fixed by the first tokens; `headroom` says how much larger later ones may be.
    While the cache is open, `run_attention` has the device's other banks. Only new keys and values
    and the queries cross the link.

    Parameters
    ----------
    key : array or tensor, (..., H, S, E)
    value : array or tensor, (..., H, S, Ev)
        Floating point; of the first tokens.
    capacity : int
        Tokens that there is room for.
    device : Device
    headroom : float
        How many times larger than the largest of the first tokens a later one may be. Each
        doubling costs a bit of the 16 bits of a weight.

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
        self, key: Any, value: Any, *, capacity: int, device: Device, headroom: float = 16.0
    ) -> None:
        keys, values = self._tensors(key, value)
        if isinstance(capacity, bool) or not isinstance(capacity, int):
            raise TypeError(f"capacity must be an int, not {capacity!r}")
        if capacity < keys.shape[-2]:
            raise ValueError(f"capacity ({capacity}) must be at least the {keys.shape[-2]} tokens")
        if not 1 <= headroom <= 1 << 12:
            raise ValueError(f"headroom must be between 1 and {1 << 12}, not {headroom}")
        config = device.config
        for name, array in (("key", keys), ("value", values)):
            if array.shape[-1] > config.max_head_dim:
                raise ValueError(
                    f"head dimension {array.shape[-1]} of {name} exceeds the device's maximum of "
                    f"{config.max_head_dim}"
                )
        self.capacity, self.length = capacity, 0
        self._device, self._lead = device, keys.shape[:-2]
        keys, values = (x.reshape(-1, *x.shape[-2:]) for x in (keys, values))
        heads, _, dim = keys.shape
        self._offset = keys.mean(axis=1, keepdims=True)
        # The mean of few tokens may be all there is to them: it counts too.
        whole = np.maximum(np.abs(self._rotated_keys(keys)), np.abs(keys @ rotation(dim)))
        self._key_base = self._base(whole, headroom)
        self._value_base = self._base(values @ rotation(values.shape[-1]), headroom)
        self._keys = np.zeros((heads, capacity, dim), np.int8)
        self._values = np.zeros((heads, capacity, values.shape[-1]), np.int8)
        self._factors = np.zeros((2, heads, capacity), np.uint16)
        tokens = self._quantize(keys, values)
        slots = -(-capacity // config.key_rows)
        first = device.reserve(heads * slots, f"a cache of {heads} heads of {capacity} tokens")
        self._slots = [first + head * slots for head in range(heads)]
        try:
            self._store(tokens)
            groups = [self._stored(head) for head in range(heads)]
            device.run(load_program(config, groups, self._slots), np.zeros((0, 0, 1), np.int16))
        except BaseException:
            self.close()
            raise

    def append(self, key: Any, value: Any) -> None:
        """Append tokens.

        Parameters
        ----------
        key : array or tensor, (..., H, n, E)
        value : array or tensor, (..., H, n, Ev)

        Raises
        ------
        TypeError, ValueError
            If shapes do not fit, there is no room, or a token exceeds the headroom. The cache is
            as it was then.
        """
        self._check_open()
        keys, values = self._tensors(key, value)
        wanted = (self._keys.shape[-1], self._values.shape[-1])
        for name, array, dim in (("key", keys, wanted[0]), ("value", values, wanted[1])):
            expected = (*self._lead, keys.shape[-2], dim)
            if array.shape != expected:
                raise ValueError(f"{name} has shape {array.shape}, the cache needs {expected}")
        count = keys.shape[-2]
        if self.length + count > self.capacity:
            raise ValueError(
                f"{count} more tokens: the cache holds {self.length} of at most {self.capacity}"
            )
        flat = (x.reshape(-1, *x.shape[-2:]) for x in (keys, values))
        tokens, start = self._quantize(*flat), self.length
        self._store(tokens)
        groups = [self._stored(head) for head in range(len(self._keys))]
        program = append_program(self._device.config, groups, self._slots, start)
        try:
            self._device.run(program, np.zeros((0, 0, 1), np.int16))
        except BaseException:
            self.length = start
            raise

    def attend(
        self,
        query: Any,
        *,
        is_causal: bool = True,
        window: int | None = None,
        scale: float | None = None,
    ) -> Any:
        """Attention of queries to the tokens of the cache.

        Parameters
        ----------
        query : array or tensor, (..., Hq, n, E)
            Hq is a multiple of H; consecutive heads share a head of the cache.
        is_causal : bool
            The queries belong to the last n tokens, and attend to no later ones.
        window : int, optional
            Attend only to so many tokens up to the query's own.
        scale : float, optional
            ``1 / sqrt(E)`` if absent.

        Returns
        -------
        array or tensor, (..., Hq, n, Ev)

        Raises
        ------
        TypeError, ValueError
            As `run_attention`.
        """
        self._check_open()
        queries = operand_of("query", query)
        shape: tuple[int, ...] = queries.values.shape
        dim = self._keys.shape[-1]
        heads = math.prod(self._lead)
        fits = len(shape) == len(self._lead) + 2 and shape[:-3] == self._lead[:-1]
        groups = math.prod(shape[-3:-2])
        if not fits or shape[-1] != dim or 0 in shape or groups % max(self._lead[-1:], default=1):
            raise ValueError(
                f"query has shape {shape}: the cache needs (*{self._lead[:-1]}, a multiple of "
                f"{max(self._lead[-1:], default=1)}, n, {dim})"
            )
        softmax_scale = dim**-0.5 if scale is None else float(scale)
        if not math.isfinite(softmax_scale):
            raise ValueError(f"scale must be finite, not {scale}")
        (mask,), _ = resolve_masks(
            *((), shape[-2], self.length),
            is_causal=is_causal,
            causal_alignment="bottom_right",
            window=window,
        )
        flat = Operand(queries.values.reshape(heads, -1, *shape[-2:]), None)
        members = np.arange(math.prod(shape[:-2])).reshape(heads, -1)
        parts = [
            self._attending(head, members[head], flat[head], mask, softmax_scale)
            for head in range(heads)
        ]
        job = Job(
            parts,
            lambda groups: iter([resident_program(self._device.config, groups, self._slots)]),
            (*shape[:-1], self._values.shape[-1]),
        )
        return like(query, job.run(self._device).dequantize())

    def close(self) -> None:
        """Give the room on the device back; closing twice does nothing."""
        slots, self._slots = self._slots, []
        if slots:
            self._device.release(slots[0])

    def __enter__(self) -> KeyValueCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._slots:
            raise ValueError("the cache is closed")

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

    def _rotated_keys(self, keys: npt.NDArray) -> npt.NDArray:
        return (keys - self._offset) @ rotation(keys.shape[-1])

    @staticmethod
    def _base(tokens: npt.NDArray, headroom: float) -> int:
        """Exponent of what factors are fractions of."""
        peak = max(float(np.abs(tokens).max()) / _LEVELS * headroom, 2.0**-900)
        return math.frexp(peak)[1]

    def _quantize(self, keys: npt.NDArray, values: npt.NDArray) -> tuple[npt.NDArray, ...]:
        rotated = values @ rotation(values.shape[-1])
        key_values, key_factors = _to_int8("key", self._rotated_keys(keys), self._key_base)
        integers, value_factors = _to_int8("value", rotated, self._value_base)
        return key_values, key_factors, integers, value_factors

    def _store(self, tokens: tuple[npt.NDArray, ...]) -> None:
        key_values, key_factors, integers, value_factors = tokens
        end = self.length + key_values.shape[1]
        new = slice(self.length, end)
        self._keys[:, new], self._values[:, new] = key_values, integers
        self._factors[0][:, new], self._factors[1][:, new] = key_factors, value_factors
        self.length = end

    def _stored(self, head: int) -> tuple[KeyTensor, ValueTensor]:
        """The tokens of a head; the result fraction is the largest that cannot saturate."""
        used = slice(0, self.length)
        factors = self._factors[1, head, used]
        spare = FACTOR_BITS - int(factors.max()).bit_length()
        dims = self._keys.shape[-1], self._values.shape[-1]
        return (
            KeyTensor(
                self._keys[head, used],
                self._factors[0, head, used],
                self._key_base,
                rotation(dims[0]),
            ),
            ValueTensor(
                self._values[head, used],
                factors,
                math.ldexp(1.0, self._value_base),
                np.zeros(dims[1]),
                rotation(dims[1]).T,
                min(SAFE_FRACTION + spare, MAX_RESULT_FRACTION),
            ),
        )

    def _attending(
        self,
        head: int,
        members: npt.NDArray[np.int64],
        queries: Operand,
        mask: HeadMask,
        softmax_scale: float,
    ) -> HeadGroup:
        config = self._device.config
        keys, values = self._stored(head)
        masks = [mask] * len(members)
        tiles = query_tiles(config, masks, 0.0)
        rows = [tile.rows for tile in tiles]
        options = AttentionOptions()
        quantized = quantize_queries(queries, keys, softmax_scale, Widths(config), rows, options)
        return HeadGroup(members, quantized, keys, values, masks, tiles)


def _to_int8(
    name: str, tokens: npt.NDArray, base: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.uint16]]:
    """Values and factors of tokens, (heads, tokens, dim); factors are fractions of ``2**base``."""
    scales = np.abs(tokens).max(axis=-1) / _LEVELS
    factors = np.ceil(np.ldexp(scales, FACTOR_BITS - base))
    if factors.max() > _TOP:
        limit = math.ldexp(_LEVELS * _TOP, base - FACTOR_BITS)
        raise ValueError(
            f"a {name} of {np.abs(tokens).max():g} (after rotation) exceeds the cache's headroom, "
            f"which ends at {limit:g}"
        )
    stored = np.ldexp(factors, base - FACTOR_BITS)[..., None]
    ratio = np.divide(tokens, stored, out=np.zeros_like(tokens), where=stored > 0)
    return np.rint(ratio).astype(np.int8), factors.astype(np.uint16)
