"""Who computes the attention of a model at present: a device, or PyTorch for `calibrate`."""

from __future__ import annotations

import contextvars
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..device import Device
from ..options import AttentionOptions
from ..parallel import DevicePool
from .functional import attention, float_attention, float_linear, linear
from .layers import LayerStack
from .report import Call, CallLog, errors

__all__ = ["DeviceSession", "Session", "active"]


class Session(Protocol):
    """Computes attention and linear layers of modules."""

    def attention(
        self,
        module: nn.Module | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        **settings: Any,
    ) -> Tensor:
        """As `celosia.nn.attention`; `module` makes the call."""
        ...

    def linear(self, module: nn.Module, layer: str, input: Tensor) -> Tensor:
        """The layer of this name in `module`."""
        ...


active: contextvars.ContextVar[Session | None] = contextvars.ContextVar(
    "celosia_session", default=None
)


class DeviceSession:
    """Computes on an accelerator, with the static scales that modules carry.

    Parameters
    ----------
    device : Device or DevicePool
    options : AttentionOptions, optional
    compare : bool
        Compute everything in PyTorch as well, for the log.
    layers : LayerStack, optional
        Names modules.
    log : CallLog, optional
        What was computed.
    """

    def __init__(
        self,
        device: Device | DevicePool,
        *,
        options: AttentionOptions | None = None,
        compare: bool = False,
        layers: LayerStack | None = None,
        log: CallLog | None = None,
    ) -> None:
        self._device, self._options, self._compare = device, options, compare
        self._layers, self._log = layers, log

    def attention(
        self,
        module: nn.Module | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        **settings: Any,
    ) -> Tensor:
        scales = getattr(module, "celosia_scales", None)
        result = attention(
            *(query, key, value, attn_mask),
            **settings,
            options=self._options,
            scales=scales,
            device=self._device,
        )
        tensors = (query, key, value)
        self._record(module, "", "attention", tensors, result, (*tensors, attn_mask), settings)
        return result

    def linear(self, module: nn.Module, layer: str, input: Tensor) -> Tensor:
        part: Any = getattr(module, layer)
        scale = getattr(part, "celosia_scales", None)
        result = linear(*(input, part.weight, part.bias), input_scale=scale, device=self._device)
        tensors = (input, part.weight)
        self._record(module, layer, "linear", tensors, result, (*tensors, part.bias), {})
        return result

    def _record(
        self,
        module: nn.Module | None,
        layer: str,
        kind: str,
        tensors: tuple[Tensor, ...],
        result: Tensor,
        inputs: tuple[Tensor | None, ...],
        settings: dict[str, Any],
    ) -> None:
        if self._log is None:
            return
        found: dict[str, Any] = {}
        if self._compare:
            compute: Any = float_attention if kind == "attention" else float_linear
            with torch.no_grad():
                reference = compute(*inputs, **settings)
            found = errors(reference.double().cpu().numpy(), result.detach().double().cpu().numpy())
        name = "" if self._layers is None else self._layers.name(module) or ""
        name = ".".join(part for part in (name, layer) if part)
        shapes = tuple(tuple(x.shape) for x in tensors)
        self._log.calls.append(Call(name, kind, shapes, self._device.report, **found))
