"""`MultiHeadAttention`: a layer that runs on an accelerator, its projections too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..attention import opened
from ..device import Device
from ..parallel import DevicePool
from .functional import check_tensors
from .session import DeviceSession, Session, active

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(nn.Module):
    """Multi-head attention, the five steps of which run on an accelerator.

    Query, key and value projection, attention, output projection: matrix products of int8 matrices
    with a scale for each row and output, and `celosia.run_attention`. Biases, scales and the
    transforms before rounding are the host's. It has no dropout.

    Parameters
    ----------
    input_dim : int
        Features of queries.
    output_dim : int
        Features of the result; a multiple of `num_heads`.
    num_heads : int
    bias : bool
        Whether the linear layers have one.
    key_dim, value_dim : int, optional
        Features of keys and values; `input_dim` if absent.
    dtype, torch_device
        Of the parameters, as in `torch.nn.Linear`.

    Attributes
    ----------
    query, key, value, output : torch.nn.Linear

    Raises
    ------
    ValueError
        If a dimension is not positive, or `output_dim` no multiple of `num_heads`.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        num_heads: int,
        *,
        bias: bool = True,
        key_dim: int | None = None,
        value_dim: int | None = None,
        dtype: torch.dtype | None = None,
        torch_device: Any = None,
    ) -> None:
        super().__init__()
        key_dim = input_dim if key_dim is None else key_dim
        value_dim = input_dim if value_dim is None else value_dim
        dims = {
            **{"input_dim": input_dim, "output_dim": output_dim, "num_heads": num_heads},
            **{"key_dim": key_dim, "value_dim": value_dim},
        }
        for name, number in dims.items():
            if isinstance(number, bool) or not isinstance(number, int):
                raise TypeError(f"{name} must be an int, not {number!r}")
            if number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")
        if output_dim % num_heads:
            raise ValueError(f"output_dim ({output_dim}) is no multiple of num_heads ({num_heads})")
        self.num_heads = num_heads
        options: dict[str, Any] = {"bias": bias, "dtype": dtype, "device": torch_device}
        self.query = nn.Linear(input_dim, output_dim, **options)
        self.key = nn.Linear(key_dim, output_dim, **options)
        self.value = nn.Linear(value_dim, output_dim, **options)
        self.output = nn.Linear(output_dim, output_dim, **options)

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> MultiHeadAttention:
        """A layer with a copy of the weights of a `torch.nn.MultiheadAttention`.

        Raises
        ------
        TypeError
            If it is another module.
        ValueError
            If it has `add_bias_kv` or `add_zero_attn`, or is in training with dropout.

        Notes
        -----
        Batches come first here whatever its `batch_first`, and a boolean mask is True where a
        query attends to a key, as in `scaled_dot_product_attention`; there it is the opposite.
        """
        if not isinstance(module, nn.MultiheadAttention):
            raise TypeError(f"not a torch.nn.MultiheadAttention: {type(module).__name__}")
        if module.bias_k is not None or module.add_zero_attn:
            raise ValueError("add_bias_kv and add_zero_attn are not supported")
        if module.training and module.dropout:
            raise ValueError(
                f"the module is in training with a dropout of {module.dropout}, which the "
                "accelerator has not: call its eval(), or set its dropout to 0"
            )
        weight = module.out_proj.weight
        layer = cls(
            *(module.embed_dim, module.embed_dim, module.num_heads),
            bias=module.in_proj_bias is not None,
            key_dim=module.kdim,
            value_dim=module.vdim,
            dtype=weight.dtype,
            torch_device=weight.device,
        )
        if module.in_proj_weight is None:
            weights: list[Any] = [module.q_proj_weight, module.k_proj_weight, module.v_proj_weight]
        else:
            weights = list(module.in_proj_weight.chunk(3))
        weights.append(weight)
        biases: list[Any] = [None] * 4
        if module.in_proj_bias is not None:
            biases = [*module.in_proj_bias.chunk(3), module.out_proj.bias]
        linears = (layer.query, layer.key, layer.value, layer.output)
        with torch.no_grad():
            for linear, weight, bias in zip(linears, weights, biases, strict=True):
                linear.weight.copy_(weight)
                if bias is not None:
                    linear.bias.copy_(bias)
        return layer.train(module.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        device: Device | DevicePool | str | None = None,
    ) -> Tensor:
        """Attend.

        Parameters
        ----------
        query : Tensor, (..., L, input_dim)
        key : Tensor, (..., S, key_dim), optional
            `query` if absent.
        value : Tensor, (..., S, value_dim), optional
            `key` if absent.
        attn_mask : Tensor, broadcastable to (..., num_heads, L, S), optional
            As of `scaled_dot_product_attention`: True where a query attends to a key, or added to
            the logits. For padding of a batch, (batch, 1, 1, S).
        is_causal : bool
            Query i attends to the keys up to i.
        device : Device, DevicePool or str, optional
            The accelerator; that of `attention_on`, or the default device, if absent.

        Returns
        -------
        Tensor, (..., L, output_dim)

        Raises
        ------
        TypeError, ValueError, DeviceError
            As `celosia.run_attention`, or if a tensor has other features.
        """
        key = query if key is None else key
        value = key if value is None else value
        inputs = {"query": query, "key": key, "value": value}
        check_tensors(True, **inputs, attn_mask=attn_mask, weight=self.query.weight)
        for name, x in inputs.items():
            wanted = getattr(self, name).in_features
            if x.ndim < 2 or x.shape[-1] != wanted:
                raise ValueError(
                    f"{name} has shape {tuple(x.shape)}: it must be (..., tokens, {wanted})"
                )
        with _session(device) as session:
            parts = (session.linear(self, name, x) for name, x in inputs.items())
            q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2) for x in parts)
            y = session.attention(self, q, k, v, attn_mask, is_causal=is_causal)
            return session.linear(self, "output", y.transpose(-3, -2).flatten(-2))

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}"


@contextlib.contextmanager
def _session(device: Device | DevicePool | str | None) -> Iterator[Session]:
    running = active.get()
    if device is None and running is not None:
        yield running
    else:
        with opened(device) as accelerator:
            yield DeviceSession(accelerator)
