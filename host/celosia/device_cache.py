"""A cache of Hugging Face transformers whose keys and values stay on the accelerator."""

from __future__ import annotations

import contextlib
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .cache import KeyValueCache
from .device import Device, default_device

__all__ = ["DeviceCache", "DeviceLayer", "DeviceTensor"]

_clock = itertools.count()
_caches: weakref.WeakSet[DeviceCache] = weakref.WeakSet()


class DeviceTensor(torch.Tensor):
    """Stands for the keys or the values of a `DeviceLayer`: a shape and a dtype, no numbers.

    Parameters
    ----------
    layer : DeviceLayer
    shape : tuple of int
    like : tensor
        Gives the dtype and the torch device.

    Raises
    ------
    TypeError
        If anything is computed with it.
    """

    layer: DeviceLayer

    @staticmethod
    def __new__(cls, layer: DeviceLayer, shape: tuple[int, ...], like: torch.Tensor) -> Any:
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        self.layer = layer
        return self

    def __init__(self, *arguments: Any) -> None:
        pass

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):
        raise TypeError(
            f"{function} of keys or values that are on the accelerator: a model with a DeviceCache "
            'needs attn_implementation="celosia", and may not compute with what is cached'
        )


class DeviceLayer(CacheLayerMixin):
    """Keys and values of one layer of a model. Made by `DeviceCache`."""

    is_sliding = False
    is_croppable = True

    def __init__(self, cache: DeviceCache) -> None:
        super().__init__()
        self.cache = cache
        self.used = next(_clock)
        self._pending: tuple[torch.Tensor, torch.Tensor] | None = None
        self.store: KeyValueCache | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to make before the first tokens."""
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take tokens, and return what stands for all tokens of the layer."""
        length = self.get_seq_length() + key_states.shape[2]
        if length > self.cache.capacity:
            raise ValueError(
                f"{length} tokens: the cache was made for at most {self.cache.capacity}"
            )
        if self.store is not None:
            with self.cache.counting():
                self.store.append(key_states, value_states)
        elif self._pending is not None:
            new = zip(self._pending, (key_states, value_states), strict=True)
            keys, values = (torch.cat(pair, dim=2) for pair in new)
            self._pending = keys, values
        else:
            # They go to the device with the first queries, which say how to round them.
            self._pending = key_states.detach(), value_states.detach()
        self.is_initialized = True
        shapes = [(*x.shape[:2], length, x.shape[3]) for x in (key_states, value_states)]
        keys = self.keys = DeviceTensor(self, shapes[0], key_states)
        values = self.values = DeviceTensor(self, shapes[1], value_states)
        return keys, values

    def attend(
        self,
        query: torch.Tensor,
        attn_mask: torch.Tensor | None,
        *,
        is_causal: bool,
        scale: float | None,
    ) -> torch.Tensor:
        """Attention of queries, those of the last tokens, to all tokens of the layer."""
        if self._pending is not None:
            keys, values = self._pending
            device, capacity = self.cache.device, self.cache.capacity
            heads, tiles = keys.shape[0] * keys.shape[1], -(-capacity // device.config.key_rows)
            self._make_room(heads * tiles)
            with self.cache.counting():
                self.store = KeyValueCache(
                    *(keys, values), capacity=capacity, device=device, query=query, scale=scale
                )
            self._pending = None
        if self.store is None:
            raise ValueError("the cache is empty")
        if not self.store.is_resident:
            self._make_room(self.store.slots)
            self.cache.traffic["loads"] += 1
        self.used = next(_clock)
        with self.cache.counting():
            return self.store.attend(query, attn_mask, is_causal=is_causal, scale=scale)

    def _make_room(self, slots: int) -> None:
        """Evict other layers until so many slots are free.

        First those that have not been used since this one was; else the one used last, since a
        model takes its layers in turn.
        """
        device = self.cache.device
        while True:
            try:
                device.release(device.reserve(slots, f"a layer of {self.cache}"))
            except ValueError:
                others = [layer for layer in _resident(device) if layer is not self]
                if not others:
                    raise
                stale = [layer for layer in others if layer.used < self.used]
                chosen = min(stale or others, key=lambda layer: layer.used)
                if not stale:
                    chosen = max(others, key=lambda layer: layer.used)
                assert chosen.store is not None
                chosen.store.evict()
            else:
                return

    def get_seq_length(self) -> int:
        """Tokens of the layer."""
        if self._pending is not None:
            return self._pending[0].shape[2]
        return 0 if self.store is None else self.store.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number and first position of the keys that so many new queries attend to."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Tokens that there is room for."""
        return self.cache.capacity

    def reset(self) -> None:
        """Forget all tokens, and give the room on the device back."""
        if self.store is not None:
            self.store.close()
        self.store = self._pending = None
        self.keys = self.values = None
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens, -`tokens_to_remove` of them; nothing is sent."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes minus the tokens to remove, not {tokens_to_remove}")
        length = self.get_seq_length() + tokens_to_remove
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        if length <= 0:
            self.reset()
            return
        if self._pending is not None:
            keys, values = (x[:, :, :length] for x in self._pending)
            self._pending = keys, values
        if self.store is not None:
            self.store.crop(length)
        self._reshape()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Reorder the batch; only what is there more than once afterwards is sent."""
        if self._pending is not None:
            keys, values = (x.index_select(0, beam_idx.to(x.device)) for x in self._pending)
            self._pending = keys, values
        if self.store is not None:
            with self.cache.counting():
                self.store.reorder(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Not possible: raises."""
        raise NotImplementedError("the batch of a DeviceCache cannot grow: repeat the inputs")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Not possible: raises."""
        raise NotImplementedError("the batch of a DeviceCache cannot shrink: use reorder_cache")

    def offload(self) -> None:
        """Leave the device until the layer is used again."""
        if self.store is not None:
            self.store.evict()

    def prefetch(self) -> None:
        """The next use loads the layer."""

    def _reshape(self) -> None:
        length = self.get_seq_length()
        keys, values = (
            DeviceTensor(self, (*x.shape[:2], length, x.shape[3]), x)
            for x in (self.keys, self.values)
            if x is not None
        )
        self.keys, self.values = keys, values


class DeviceCache(Cache):
    """Keys and values of a model on the device; pass it as ``past_key_values``.

    Only new tokens and queries cross the link, while all layers fit the device's key banks
    together. A layer takes ``batch * heads * ceil(capacity / key_rows)`` of the
    ``key_banks * max_keys / key_rows`` key tiles, and has to fit alone. Where not all fit, some are
    evicted and loaded again when it is their turn, with the same results; `traffic` tells how
    often. Attention that does not use the cache evicts what is in the first bank, if no bank is
    free.

    Parameters
    ----------
    capacity : int
        Tokens of a sequence that there is room for.
    device : Device, optional
        The innermost ``with open_device(...)`` if absent.

    Attributes
    ----------
    traffic : dict of int
        Since the cache was made: ``clocks``, ``bytes_sent``, ``bytes_received``, and ``loads``,
        layers that were loaded again.

    Raises
    ------
    TypeError, ValueError
        If `capacity` is no integer, or less than 1.
    DeviceError
        If no device is open.
    """

    def __init__(self, capacity: int, device: Device | None = None) -> None:
        if isinstance(capacity, bool) or not isinstance(capacity, int):
            raise TypeError(f"capacity must be an int, not {capacity!r}")
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        if not (device is None or isinstance(device, Device)):
            raise TypeError(f"device must be an open Device, not {device!r}")
        self.capacity = capacity
        self.device = default_device() if device is None else device
        self.traffic = {"clocks": 0, "bytes_sent": 0, "bytes_received": 0, "loads": 0}
        super().__init__(layers=[])
        _caches.add(self)

    def __repr__(self) -> str:
        return f"DeviceCache(capacity={self.capacity}, layers={len(self.layers)})"

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take tokens of a layer, and return what stands for all of its tokens."""
        while len(self.layers) <= layer_idx:
            self.layers.append(DeviceLayer(self))
        layer = self.layers[layer_idx]
        assert isinstance(layer, DeviceLayer)
        return layer.update(key_states, value_states)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Tokens that there is room for."""
        return self.capacity

    def close(self) -> None:
        """Forget all tokens, and give the room on the device back, as `reset` does."""
        self.reset()

    def __enter__(self) -> DeviceCache:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Add what the device runs meanwhile, at most one run, to `traffic`."""
        before = self.device.report
        yield
        report = self.device.report
        if report is not None and report is not before:
            for name in ("clocks", "bytes_sent", "bytes_received"):
                self.traffic[name] += getattr(report, name)

    def __del__(self) -> None:
        for layer in getattr(self, "layers", ()):
            layer.reset()

    @staticmethod
    def make_room() -> None:
        """Free a bank of the default device for attention that does not use a cache."""
        device = default_device()
        while device.free_banks == 0 and (layers := _resident(device)):
            lowest = min(layers, key=lambda layer: layer.store.first_slot)  # type: ignore[union-attr]
            assert lowest.store is not None
            lowest.store.evict()


def _resident(device: Device) -> list[DeviceLayer]:
    """The layers of all caches that are on a device."""
    return [
        layer
        for cache in _caches
        if cache.device is device
        for layer in cache.layers
        if isinstance(layer, DeviceLayer) and layer.store is not None and layer.store.is_resident
    ]
