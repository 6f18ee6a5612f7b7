"""Names that configurations give to sizes and scalars: synonyms, never meaning by family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

#: Role (the canonical name of transformers) -> the keys that families use for it.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "n_embed", "d_model"),
    "num_attention_heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "num_key_value_heads": (
        "num_key_value_heads",
        "num_kv_heads",
        "n_head_kv",
        "n_kv_heads",
        "kv_n_heads",
    ),
    "head_dim": ("head_dim", "dim_head", "d_kv", "kv_channels"),
    "intermediate_size": (
        "intermediate_size",
        "ffn_dim",
        "ffn_hidden_size",
        "n_inner",
        "d_ff",
        "dff",
        "dim_ff",
    ),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "vocab_size": ("vocab_size",),
    "max_position_embeddings": (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "max_seq_len",
        "seq_length",
    ),
    "embedding_size": ("word_embed_proj_dim", "embedding_size"),
    "sliding_window": ("sliding_window", "window_size", "sliding_window_size", "local_attention"),
    "rotary_dim": ("rotary_dim",),
    "q_lora_rank": ("q_lora_rank",),
    "kv_lora_rank": ("kv_lora_rank",),
    "qk_nope_head_dim": ("qk_nope_head_dim",),
    "qk_rope_head_dim": ("qk_rope_head_dim",),
    "v_head_dim": ("v_head_dim",),
    "qk_head_dim": ("qk_head_dim",),
    "index_head_dim": ("index_head_dim",),
    "index_n_heads": ("index_n_heads",),
    "index_block_size": ("index_block_size",),
    "index_topk_blocks": ("index_topk_blocks",),
    "norm_gate_rank": ("gated_norm_rank",),
}

ROLE_OF = {key: role for role, keys in SYNONYMS.items() for key in keys}

#: Keys that name a token: they must stay inside the vocabulary.
TOKEN_SUFFIXES = ("_token_id", "_token_index", "_token_ids")

#: Parts of names of numbers that a forward pass in evaluation mode never uses: rates of
#: training, and settings of generation that older configurations carry.
INERT_PARTS = (
    "drop",
    "initializer",
    "init_std",
    "init_range",
    "loss",
    "coef",
    "temperature",
    "penalty",
    "top_p",
    "typical_p",
)

#: Parts of names of integers that act as scalars (query_pre_attn_scalar, rope_theta).
SCALAR_PARTS = ("scalar", "scale", "scaling", "multiplier", "softcap", "theta", "base", "eps")

#: Numbers of tokens by names that sound like factors.
LENGTHS = ("floor_scale",)

#: Fractions of a size: changed together with it, never as a free scalar.
FRACTIONS = ("partial_rotary_factor", "rotary_pct")


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether `value` is an int or a float, and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_size(value: Any) -> TypeGuard[int]:
    """Whether `value` is a positive int."""
    return is_number(value) and isinstance(value, int) and value > 0


def is_token(key: str) -> bool:
    """Whether a key names a token, or several."""
    return key.endswith(TOKEN_SUFFIXES)


def is_inert(key: str) -> bool:
    """Whether a number has no effect on a forward pass in evaluation mode."""
    return any(part in key for part in INERT_PARTS)


def is_scalar(key: str, value: Any) -> bool:
    """Whether a number is a free scalar: an eps, a theta, a multiplier, a cap."""
    if not is_number(value) or isinstance(value, bool) or is_inert(key) or key in FRACTIONS:
        return False
    if (
        key in LENGTHS or key in ROLE_OF or is_token(key) or "normaliz" in key
    ):  # the order of a norm, or a switch
        return False
    return isinstance(value, float) or any(part in key for part in SCALAR_PARTS)


def keys_of(role: str, attribute_map: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys that may hold a role, the class's own canonical mapping first."""
    mapped = attribute_map.get(role)
    keys = SYNONYMS[role]
    return keys if mapped is None or mapped in keys else (mapped, *keys)
