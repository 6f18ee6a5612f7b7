"""Tiny HuggingFace models, with heads, widths and vocabulary that hide nothing."""

from __future__ import annotations

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

COMMON = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1234.0},
    "attn_implementation": "eager",
    "torch_dtype": torch.float32,
    "attention_bias": False,
    "eos_token_id": None,
}


def llama(**changes):
    config = LlamaConfig(**{**COMMON, "tie_word_embeddings": False, **changes})
    return config, LlamaForCausalLM


def mistral(**changes):
    config = MistralConfig(**{**COMMON, "tie_word_embeddings": False, "sliding_window": 5})
    return config, MistralForCausalLM


def qwen3(**changes):
    config = Qwen3Config(**{**COMMON, "tie_word_embeddings": True, **changes})
    return config, Qwen3ForCausalLM


def opt(**changes):
    config = OPTConfig(
        **{
            "vocab_size": 97,
            "hidden_size": 48,
            "ffn_dim": 88,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 48,
            "do_layer_norm_before": True,
            "attn_implementation": "eager",
            "torch_dtype": torch.float32,
            "dropout": 0.0,
            "eos_token_id": None,
            **changes,
        }
    )
    return config, OPTForCausalLM


#: Port file, class, and the HF family it copies.
CASES = {
    "llama": ("llama", "HandLlamaForCausalLM", llama),
    "mistral": ("llama", "HandMistralForCausalLM", mistral),
    "qwen3": ("qwen3", "HandQwen3ForCausalLM", qwen3),
    "qwen3-unfused": ("qwen3", "HandUnfusedQwen3ForCausalLM", qwen3),
    "opt": ("opt", "HandOPTForCausalLM", opt),
}
