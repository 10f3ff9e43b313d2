"""Hugging Face models on an accelerator: ``attn_implementation="celosia"``.

Importing this module registers it.

::

    import celosia, celosia.transformers
    from transformers import AutoModel

    model = AutoModel.from_pretrained(name, attn_implementation="celosia").eval()
    with celosia.open_device("sim"):
        model(**inputs)

Attention runs on the innermost ``with celosia.open_device(...)``. `DeviceCache`, as
``past_key_values``, keeps keys and values on the device.
"""

from __future__ import annotations

from typing import Any

try:
    import torch
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
except ModuleNotFoundError as error:
    raise ImportError(
        f'celosia.transformers needs the package {error.name}: pip install "celosia[transformers]"'
    ) from error

from .device_cache import DeviceCache, DeviceTensor
from .nn import attention

__all__ = ["NAME", "DeviceCache", "attention_forward"]

NAME = "celosia"
"""What `attention_forward` is registered as."""

_WITHOUT_EFFECT = frozenset(
    # What models hand on that attention of its arguments does not depend on. The mask that the
    # library makes holds position_ids and sliding_window already.
    (
        *("cache_position", "deterministic", "logits_to_keep", "num_items_in_batch"),
        *("output_hidden_states", "output_router_logits", "position_ids", "return_dict"),
        *("sliding_window", "use_cache"),
    )
)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a model of the library, on the device.

    Parameters
    ----------
    module : Module
        The attention layer. Its `is_causal` counts where that of the call is absent.
    query : (batch, Hq, L, E) tensor
    key : (batch, H, S, E) tensor
        Or what `DeviceCache` returned, as `value`. Hq is a multiple of H.
    value : (batch, H, S, Ev) tensor
    attention_mask : (batch, 1 or Hq, L, S) tensor or None
        As `run_attention` takes it. Absent, attention is causal if `is_causal` says so and L is
        not 1.
    dropout : float
        Must be 0.
    scaling : float, optional
        ``1 / sqrt(E)`` if absent.
    is_causal : bool, optional
    position_bias : (1 or batch, Hq, L, S) tensor, optional
        Added to the scaled logits.
    **kwargs
        None, or what attention does not depend on.

    Returns
    -------
    output : (batch, L, Hq, Ev) tensor
        With a gradient, as of `celosia.nn.attention`, but where a `DeviceCache` holds the keys.
        Rows that the mask keeps from all keys are 0.
    weights : None

    Raises
    ------
    TypeError, ValueError
        As `run_attention`; and for dropout, gradients through a `DeviceCache`, attention weights,
        tensors of several devices, and other keywords. Nothing has been sent to the device then.
    DeviceError
        If no device is open.
    """
    _check_call(dropout, kwargs)
    _check_tensors(
        {
            "query": query,
            "key": key,
            "value": value,
            "attention_mask": attention_mask,
            "position_bias": position_bias,
        }
    )
    queries, keys = query.shape[2], key.shape[2]
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    is_causal = bool(is_causal) and attention_mask is None and queries > 1
    if isinstance(key, DeviceTensor):
        if module.training and torch.is_grad_enabled() and query.requires_grad:
            raise ValueError(
                "attention to what a DeviceCache holds has no gradient: train without a cache, or "
                "use torch.no_grad()"
            )
        # The queries are those of the last tokens.
        attention_mask = _with_bias(attention_mask, position_bias, is_causal, keys - queries)
        causal = is_causal and attention_mask is None
        output = key.layer.attend(query, attention_mask, is_causal=causal, scale=scaling)
    else:
        # As in PyTorch, the queries are those of the first tokens: a static cache being filled.
        attention_mask = _with_bias(attention_mask, position_bias, is_causal, 0)
        DeviceCache.make_room()
        output = attention(
            *(query, key, value, attention_mask),
            is_causal=is_causal and attention_mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    return output.transpose(1, 2).contiguous(), None


def _check_call(dropout: float, kwargs: dict[str, Any]) -> None:
    if dropout:
        raise ValueError(
            f"dropout of attention weights must be 0 on the accelerator, not {dropout}: call "
            "model.eval(), or set the configuration's attention dropout to 0"
        )
    given = {name for name, value in kwargs.items() if value is not None and value is not False}
    if "output_attentions" in given:
        raise ValueError(
            "output_attentions: the accelerator returns no attention weights; use "
            'attn_implementation="eager" for these'
        )
    if unknown := sorted(given - _WITHOUT_EFFECT):
        raise ValueError(f"attention on the accelerator cannot honour {', '.join(unknown)}")


def _check_tensors(tensors: dict[str, Any]) -> None:
    where = tensors["query"].device
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, not {type(tensor).__name__}")
        if tensor.device != where or tensor.is_meta:
            raise ValueError(f"{name} is on {tensor.device}, query on {where}: both must be one")
        if tensor.dtype not in _DTYPES and (name != "attention_mask" or tensor.dtype != torch.bool):
            raise TypeError(
                f"{name} is {tensor.dtype}: it must be float16, bfloat16, float32 or float64"
                + (", or bool" if name == "attention_mask" else "")
            )


def _with_bias(
    mask: torch.Tensor | None, bias: torch.Tensor | None, is_causal: bool, offset: int
) -> torch.Tensor | None:
    """`mask` and `bias` in one mask; query i is token ``i + offset`` if they are causal."""
    if bias is None:
        return mask
    if mask is not None and mask.dtype != torch.bool:
        return bias + mask
    if mask is None and is_causal:
        query, key = (torch.arange(n, device=bias.device) for n in bias.shape[-2:])
        mask = key <= query[:, None] + offset
    return bias if mask is None else bias.masked_fill(~mask, -torch.inf)


AttentionInterface.register(NAME, attention_forward)
# Without a mask function of this name, the library would hand on no mask, and padding with it.
AttentionMaskInterface.register(NAME, sdpa_mask)
