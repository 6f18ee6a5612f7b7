"""AttentionForwardArgs: the options of one attention call, and which of them are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from trtllm_scaffold.standin.generation import contract
from trtllm_scaffold.standin.interface import (
    AttentionInputType,
    AttentionMask,
    PredefinedAttentionMask,
)


@contract("AttentionForwardArgs")
@dataclass(kw_only=True)
class AttentionForwardArgs:
    """Options of ``AttentionBackend.forward`` in 1.4; 1.2 takes the same names as keywords.

    Attributes:
        output: ``[tokens, heads * head_dim]`` to write to, or None to allocate.
        attention_mask: Causal, full or custom.
        attention_window_size: Visible keys of a causal query, its own included.
        attention_mask_data: Flattened boolean mask of the context tokens (custom mask).
        attention_sinks: ``[heads]`` float32 logits that join the softmax without a value.
        is_fused_qkv: Whether ``q`` holds q, k and v.
        update_kv_cache: Whether new keys and values are stored.
    """

    output: torch.Tensor | None = None
    output_sf: torch.Tensor | None = None
    out_scale: torch.Tensor | None = None
    out_scale_sf: torch.Tensor | None = None
    kv_scale_orig_quant: torch.Tensor | None = None
    kv_scale_quant_orig: torch.Tensor | None = None
    attention_mask: AttentionMask = PredefinedAttentionMask.CAUSAL
    attention_input_type: AttentionInputType = AttentionInputType.mixed
    attention_window_size: int | None = None
    attention_mask_data: torch.Tensor | None = None
    attention_sinks: torch.Tensor | None = None
    relative_attention_bias: torch.Tensor | None = None
    relative_attention_max_distance: int = 0
    cross_kv: torch.Tensor | None = None
    latent_cache: torch.Tensor | None = None
    q_pe: torch.Tensor | None = None
    mrope_rotary_cos_sin: torch.Tensor | None = None
    mrope_position_deltas: torch.Tensor | None = None
    softmax_stats_tensor: torch.Tensor | None = None
    chunked_prefill_buffer_batch_size: int = 1
    cu_q_seqlens: torch.Tensor | None = None
    cu_kv_seqlens: torch.Tensor | None = None
    fmha_scheduler_counter: torch.Tensor | None = None
    skip_mla_rope_generation: bool = False
    mla_bmm1_scale: torch.Tensor | None = None
    mla_bmm2_scale: torch.Tensor | None = None
    quant_q_buffer: torch.Tensor | None = None
    quant_scale_qkv: torch.Tensor | None = None
    dsv4_inv_rope_cos_sin_cache: torch.Tensor | None = None
    enable_dsv4_epilogue_fusion: bool = False
    kv_norm_weight: torch.Tensor | None = None
    kv_norm_eps: float = 1e-06
    sage_attn_num_elts_per_blk_q: int = 0
    sage_attn_num_elts_per_blk_k: int = 0
    sage_attn_num_elts_per_blk_v: int = 0
    sage_attn_qk_int8: bool = False
    is_fused_qkv: bool = False
    update_kv_cache: bool = True
    timestep: torch.Tensor | None = None
    sparse_backend_args: Any = None
    sparse_runtime_params: Any = None

    @property
    def mask_type(self) -> AttentionMask:
        """The mask."""
        return self.attention_mask


NAMES = tuple(item.name for item in fields(AttentionForwardArgs))

#: Options the stand-in computes; any other must be left at its default.
COMPUTED = frozenset(
    {
        "output",
        "attention_mask",
        "attention_input_type",
        "attention_window_size",
        "attention_mask_data",
        "attention_sinks",
        "is_fused_qkv",
        "update_kv_cache",
        "cu_q_seqlens",
        "cu_kv_seqlens",
        "relative_attention_max_distance",
        "chunked_prefill_buffer_batch_size",
    }
)


#: Name and default of every other option. A table: this is asked in every layer of every step.
_IGNORED = tuple(
    (item.name, item.default) for item in fields(AttentionForwardArgs) if item.name not in COMPUTED
)


def merge_attention_forward_args(
    forward_args: AttentionForwardArgs | None, kwargs: Mapping[str, Any]
) -> AttentionForwardArgs:
    """Options given as an object and as legacy keywords, in one object.

    Raises:
        ValueError: If a keyword is not an option.
    """
    unknown = [name for name in kwargs if name not in NAMES]
    if unknown:
        raise ValueError(f"unknown attention options {unknown}, known are {list(NAMES)}")
    if forward_args is None:
        return AttentionForwardArgs(**kwargs)
    return replace(forward_args, **kwargs) if kwargs else forward_args


def legacy_forward_args(kwargs: Mapping[str, Any]) -> AttentionForwardArgs:
    """The options among the keywords of a 1.2 call, which swallows what it does not know."""
    chosen = {name: value for name, value in kwargs.items() if name in NAMES}
    args = AttentionForwardArgs()
    for name, value in chosen.items():
        setattr(args, name, value)
    return args


def check_computed(args: AttentionForwardArgs) -> None:
    """Refuse options that the stand-in would have to ignore.

    Raises:
        NotImplementedError: If one is set.
    """
    for name, default in _IGNORED:
        value = getattr(args, name)
        if value is not None and value != default:
            raise NotImplementedError(f"the stand-in does not compute the attention option {name}")
