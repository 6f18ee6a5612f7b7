"""Choosing an attention backend by name and making the one of a layer."""

from __future__ import annotations

from typing import Any

import torch

from trtllm_scaffold.standin.attention.backend import AttentionBackend
from trtllm_scaffold.standin.attention.backends import (
    FlashInferAttention,
    TrtllmAttention,
    VanillaAttention,
)
from trtllm_scaffold.standin.generation import active, contract
from trtllm_scaffold.standin.interface import PositionalEmbeddingParams
from trtllm_scaffold.standin.logger import logger

BACKENDS: dict[str, type[AttentionBackend[Any]]] = {
    "VANILLA": VanillaAttention,
    "TRTLLM": TrtllmAttention,
    "FLASHINFER": FlashInferAttention,
}


@contract("get_attention_backend")
def get_attention_backend(
    backend_name: str, sparse_attn_config: Any = None, sparse_params: Any = None
) -> type[AttentionBackend[Any]]:
    """Class of a backend.

    A name that is not known gives TRTLLM: 1.2 says nothing, 1.4 warns and ignores the case.
    """
    if sparse_attn_config is not None or sparse_params is not None:
        raise NotImplementedError("the stand-in has no sparse attention")
    if active() == "1.4":
        backend_name = backend_name.upper()
        if backend_name not in BACKENDS:
            logger.warning(f"unknown attention backend {backend_name!r}, using TRTLLM")
    return BACKENDS.get(backend_name, TrtllmAttention)


@contract("create_attention")
def create_attention(
    backend_name: str,
    layer_idx: int | None,
    num_heads: int,
    head_dim: int,
    num_kv_heads: int | None = None,
    pos_embd_params: PositionalEmbeddingParams | None = None,
    quant_config: Any = None,
    q_scaling: float | None = None,
    is_mla_enable: bool = False,
    q_lora_rank: int | None = None,
    kv_lora_rank: int | None = None,
    qk_rope_head_dim: int | None = None,
    qk_nope_head_dim: int | None = None,
    v_head_dim: int | None = None,
    rope_append: bool | None = None,
    hidden_size: int | None = None,
    predicted_tokens_per_seq: int | None = 1,
    skip_create_weights_in_init: bool = False,
    attention_chunk_size: int | None = None,
    sparse_attention_config: Any = None,
    sparse_params: Any = None,
    dtype: torch.dtype | None = None,
    aux_stream: Any = None,
    kv_cache_dtype: str = "auto",
    skip_correction_threshold: float = 0.0,
) -> AttentionBackend[Any]:
    """The backend of one layer.

    Raises:
        ValueError: If ``attention_chunk_size`` is given to another backend than TRTLLM.
        NotImplementedError: For MLA and sparse attention.
    """
    if is_mla_enable:
        raise NotImplementedError("latent attention is part of the stand-in's MLA module")
    if sparse_attention_config is not None or sparse_params is not None:
        raise NotImplementedError("the stand-in has no sparse attention")
    if attention_chunk_size is not None and backend_name.upper() != "TRTLLM":
        raise ValueError(f"attention_chunk_size needs the TRTLLM backend, not {backend_name}")
    chosen = get_attention_backend(backend_name)
    return chosen(
        layer_idx,
        num_heads,
        head_dim,
        num_kv_heads,
        quant_config=quant_config,
        q_scaling=q_scaling,
        pos_embd_params=pos_embd_params,
        attention_chunk_size=attention_chunk_size,
    )
