"""How an MLA layer is put together: checks, projections, norms, rope module, cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trtllm_scaffold.standin.attention import build
from trtllm_scaffold.standin.attention.batch import Segment
from trtllm_scaffold.standin.attention.kernel import cache_rows
from trtllm_scaffold.standin.attention.metadata import AttentionMetadata
from trtllm_scaffold.standin.attention.selection import get_attention_backend
from trtllm_scaffold.standin.executor.bindings import CacheType
from trtllm_scaffold.standin.generation import active
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.modules.linear import Linear, TensorParallelMode
from trtllm_scaffold.standin.modules.norms import RMSNorm
from trtllm_scaffold.standin.modules.rotary import RotaryEmbedding

if TYPE_CHECKING:
    from trtllm_scaffold.standin.attention.mla import MLA
    from trtllm_scaffold.standin.model_config import ModelConfig


def check_supported(
    config: ModelConfig[Any],
    *,
    bias: bool,
    predicted_tokens_per_seq: int,
    grouped: bool,
    fused: bool,
) -> None:
    """Refuse what the stand-in would have to guess.

    Raises:
        AssertionError: If the backend has no latent attention.
        NotImplementedError: For an option whose effect was not read.
    """
    backend = get_attention_backend(config.attn_backend)
    assert backend.support_mla(), (
        f"the {backend.name} backend of TensorRT-LLM {active()} has no multi-head latent attention"
    )
    if bias:
        raise NotImplementedError("the stand-in's MLA has no biases: where they go was not read")
    if predicted_tokens_per_seq != 1:
        raise NotImplementedError("the stand-in has no speculative decoding")
    if grouped or not fused:
        raise NotImplementedError("the stand-in's MLA has one fused projection to the latents")
    if config.get_quant_config().quant_algo is not None:
        raise NotImplementedError("the stand-in's MLA is not quantized")


def make_projections(
    layer: MLA, config: ModelConfig[Any], mapping: Mapping, reduce_output: bool
) -> None:
    """The replicated projection to the latents, and those from them, cut by heads."""
    options = build.linear_options(config, dtype=layer.dtype)
    cut = {**options, "mapping": mapping, "bias": False}
    column = TensorParallelMode.COLUMN
    heads = layer.tp_size * layer.num_heads
    rows = layer.kv_lora_rank + layer.qk_rope_head_dim
    if layer.q_lora_rank is not None:
        rows += layer.q_lora_rank
    layer.kv_a_proj_with_mqa = Linear(layer.hidden_size, rows, bias=False, **options)
    query = Linear(
        layer.q_lora_rank or layer.hidden_size,
        heads * layer.qk_head_dim,
        tensor_parallel_mode=column,
        **cut,
    )
    if layer.is_lite:
        layer.q_proj = query
    else:
        layer.q_b_proj = query
    layer.kv_b_proj = Linear(
        layer.kv_lora_rank,
        heads * (layer.qk_nope_head_dim + layer.v_head_dim),
        tensor_parallel_mode=column,
        **cut,
    )
    layer.o_proj = Linear(
        heads * layer.v_head_dim,
        layer.hidden_size,
        tensor_parallel_mode=TensorParallelMode.ROW,
        reduce_output=reduce_output,
        **cut,
    )


def make_norms(layer: MLA, config: ModelConfig[Any], eps: float | None) -> None:
    """The norms of the latents: their eps is the model's, unless 1.4 is told another."""
    if eps is None:
        eps = config.pretrained_config.rms_norm_eps
    if layer.q_lora_rank is not None:
        layer.q_a_layernorm = RMSNorm(hidden_size=layer.q_lora_rank, eps=eps, dtype=layer.dtype)
    layer.kv_a_layernorm = RMSNorm(hidden_size=layer.kv_lora_rank, eps=eps, dtype=layer.dtype)


def make_rotary(layer: MLA) -> nn.Module:
    """The module that rotates: neighbours in the kernel, else as ``is_neox`` says.

    Raises:
        ValueError: If the kernel would read a table of another layout: it needs every number
            twice, which 1.2 makes for YaRN alone and 1.4 on request.
    """
    params = layer.pos_embd_params
    assert params is not None and params.rope is not None
    rope = params.rope
    if rope.dim != layer.qk_rope_head_dim:
        raise ValueError(f"the rotary table is {rope.dim} wide, not {layer.qk_rope_head_dim}")
    if layer.rope_fusion and not rope.has_duplicated_table:
        needed = "scale_type yarn" if active() == "1.2" else "duplicate_data=True"
        raise ValueError(f"the TRTLLM kernel of MLA needs a duplicated table: {needed}")
    neox = params.is_neox and not layer.rope_fusion
    return RotaryEmbedding(rope, head_dim=layer.qk_rope_head_dim, is_neox=neox)


def empty_parameter(shape: tuple[int, ...], dtype: torch.dtype | None) -> nn.Parameter:
    """A parameter that nobody has filled."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


def stored(
    layer: MLA, latents: torch.Tensor, metadata: AttentionMetadata
) -> Callable[[Segment], torch.Tensor]:
    """Store [tokens, kv_lora_rank + rope]; what is held [sequences, keys, ...] of each segment.

    Without a cache it is the batch's own tokens.
    """
    manager = metadata.kv_cache_manager
    if manager is None:
        return lambda segment: latents[segment.slots]
    cache = _latent_cache(layer, manager)
    slots = metadata.prepared().token_slots
    assert slots is not None
    cache.index_copy_(0, slots, latents.to(cache.dtype))
    return lambda segment: cache[segment.slots].to(latents.dtype)


def _latent_cache(layer: MLA, manager: Any) -> torch.Tensor:
    """``[rows, kv_lora_rank + rope]``, the rows of the layer's pool.

    Raises:
        ValueError: If the cache was made for keys and values, or for another width.
    """
    held: torch.Tensor = manager.get_buffers(layer.layer_idx)
    width = layer.kv_lora_rank + layer.qk_rope_head_dim
    if manager.kv_cache_type is not CacheType.SELFKONLY or held.shape[3:] != (1, width):
        raise ValueError(
            f"MLA needs a SELFKONLY cache with one head of width {width}, this one is "
            f"{manager.kv_cache_type.name} with {held.shape[3]} heads of width {held.shape[4]}"
        )
    return cache_rows(held).squeeze(1)
