"""Models of transformers with random weights, small enough for `tiny`."""

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

# Large enough that attention has something to choose: with the usual 0.02 it is nearly uniform.
SPREAD = 0.2


def tiny_bert() -> Any:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=SPREAD,
    )
    return BertModel(config).eval()


def tiny_gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=50,
        n_embd=20,
        n_layer=2,
        n_head=2,
        n_positions=32,
        initializer_range=SPREAD,
    )
    return GPT2LMHeadModel(config).eval()


def tiny_llama(layers=2, **options) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=SPREAD,
        pad_token_id=0,
        **options,
    )
    return LlamaForCausalLM(config).eval()


def tiny_t5() -> Any:
    torch.manual_seed(0)
    options: dict[str, Any] = {"decoder_start_token_id": 0, "pad_token_id": 0}
    config = T5Config(
        vocab_size=50,
        d_model=24,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        initializer_factor=1.0,
        **options,
    )
    return T5ForConditionalGeneration(config).eval()


def tokens(*shape, seed=1) -> Any:
    """Random tokens, none of which is special in these models."""
    return torch.randint(3, 50, shape, generator=torch.Generator().manual_seed(seed))
