"""Intercepting the attention that PyTorch code computes."""

from __future__ import annotations

import contextlib
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .layers import LayerStack
from .session import Session, active

__all__ = ["AttentionMode", "UnsupportedError", "routed"]

_NAME = "scaled_dot_product_attention"
_ATTENTION = (
    getattr(F, _NAME),
    getattr(torch.ops.aten, _NAME),
    getattr(torch.ops.aten, _NAME).default,
)


class UnsupportedError(ValueError):
    """A call that the accelerator cannot do; the message says how to avoid it."""


class AttentionMode(TorchFunctionMode):
    """Gives each call of attention in this thread to a session.

    It sees calls of functions whoever holds a reference to them, but not those inside of
    `multi_head_attention_forward`, which PyTorch runs with the mode off: that is run with another
    `scaled_dot_product_attention`.

    Parameters
    ----------
    session : Session
    layers : LayerStack
    rejected : callable
        Is told the module, the tensors and the error of a call that the session cannot do. If it
        returns, PyTorch computes.
    """

    def __init__(
        self,
        session: Session,
        layers: LayerStack,
        rejected: Callable[[Any, tuple[Any, ...], Exception], None],
    ) -> None:
        super().__init__()
        self._session, self._layers, self._rejected = session, layers, rejected
        forward = F.multi_head_attention_forward
        self._multi_head = types.FunctionType(
            forward.__code__,
            {**forward.__globals__, _NAME: self._attend},
            forward.__name__,
            forward.__defaults__,
            forward.__closure__,
        )
        self._signature = inspect.signature(forward)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ATTENTION:
            return torch.compiler.disable(self._attend)(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return torch.compiler.disable(self._attend_with_heads)(*args, **kwargs)
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        module = self._layers.current
        settings = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        try:
            if dropout_p:
                raise UnsupportedError(
                    f"dropout of {dropout_p}: the accelerator has none; call the model's eval(), "
                    "or set its attention dropout to 0 for training"
                )
            return self._session.attention(module, query, key, value, attn_mask, **settings)
        except (TypeError, ValueError) as error:
            self._rejected(module, (query, key, value), error)
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )

    def _attend_with_heads(self, *args: Any, **kwargs: Any) -> Any:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        if not bound.arguments["need_weights"]:
            return self._multi_head(*args, **kwargs)
        error = UnsupportedError(
            "need_weights=True: the accelerator does not return attention weights; call "
            "MultiheadAttention with need_weights=False"
        )
        self._rejected(self._layers.current, args[:3], error)
        return F.multi_head_attention_forward(*args, **kwargs)


@contextlib.contextmanager
def routed(session: Session, mode: AttentionMode, layers: LayerStack) -> Iterator[None]:
    """Let a session compute what PyTorch code and `MultiHeadAttention` ask for in this thread."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    token = active.set(session)
    # The fused path of whole layers makes no call that could be seen.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with layers, mode:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        active.reset(token)
