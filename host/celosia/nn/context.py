"""`attention_on`: the attention of any PyTorch code on an accelerator."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

from ..attention import opened
from ..device import Device, enter_default, leave_default
from ..options import AttentionOptions
from ..parallel import DevicePool
from .layers import LayerStack
from .report import Call, CallLog
from .routing import AttentionMode, routed
from .session import DeviceSession

__all__ = ["attention_on"]

_CHOICES = ("raise", "pytorch")


@contextlib.contextmanager
def attention_on(
    device: Device | DevicePool | str | None = None,
    *,
    compare: bool = False,
    options: AttentionOptions | None = None,
    unsupported: str = "raise",
) -> Iterator[CallLog]:
    """Context in which the attention of PyTorch code runs on an accelerator, with gradients.

    That is each call of `torch.nn.functional.scaled_dot_product_attention`, also by references
    imported before, of `torch.nn.MultiheadAttention` and `TransformerEncoderLayer` and all that is
    made of them, and the projections of `celosia.nn.MultiHeadAttention`, in the thread that
    entered. Modules that carry static scales (`Calibration.apply_to`) use them. docs/pytorch.md
    lists what cannot be routed.

    Parameters
    ----------
    device : Device, DevicePool or str, optional
        As of `celosia.run_attention`; a name is opened once, for the whole context. It is the
        default device inside.
    compare : bool
        Compute each call in PyTorch as well, and log how much they differ.
    options : AttentionOptions, optional
        How to quantize.
    unsupported : str
        What becomes of a call that the accelerator cannot do: "raise" an error, or "pytorch"
        computes it, and the log says why.

    Yields
    ------
    CallLog
        The calls until now: layer, shapes, clocks, utilization and error. As text it is a table.

    Raises
    ------
    TypeError, ValueError
        In the model's call, with "raise": if attention has dropout or `need_weights`, or tensors,
        masks or sizes are none that `celosia.run_attention` takes.
    DeviceError
        If there is no device, or it fails.

    Warns
    -----
    UserWarning
        At the end, if there was no call.
    """
    if unsupported not in _CHOICES:
        choices = " or ".join(map(repr, _CHOICES))
        raise ValueError(f"unsupported must be {choices}, not {unsupported!r}")
    if not (device is None or isinstance(device, (Device, DevicePool, str))):
        raise TypeError(f"device must be a Device, a DevicePool or a str, not {device!r}")
    log, layers = CallLog(), LayerStack()

    def rejected(module: Any, tensors: tuple[Any, ...], error: Exception) -> None:
        name = layers.name(module)
        if unsupported == "raise":
            raise type(error)(f"{name}: {error}" if name else str(error)) from error
        shapes = tuple(tuple(x.shape) for x in tensors)
        log.calls.append(Call(name or "", "attention", shapes, reason=str(error)))

    with opened(device) as accelerator:
        session = DeviceSession(
            accelerator, options=options, compare=compare, layers=layers, log=log
        )
        enter_default(accelerator)
        try:
            with routed(session, AttentionMode(session, layers, rejected), layers):
                yield log
        finally:
            leave_default(accelerator)
    if not log.calls:
        warnings.warn(
            "attention_on intercepted no call: no attention was computed in this thread, or in a "
            "way that cannot be routed (see docs/pytorch.md)",
            stacklevel=3,
        )
