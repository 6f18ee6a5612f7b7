"""How an Attention layer is put together: mapping, projections, rope module, registration."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from torch import nn

from trtllm_scaffold.standin.attention.selection import create_attention, get_attention_backend
from trtllm_scaffold.standin.generation import active
from trtllm_scaffold.standin.interface import PositionalEmbeddingParams
from trtllm_scaffold.standin.logger import logger
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.modules.linear import (
    Linear,
    TensorParallelMode,
    WeightMode,
    WeightsLoadingConfig,
)
from trtllm_scaffold.standin.modules.rotary import MRotaryEmbedding, RotaryEmbedding
from trtllm_scaffold.standin.utils import get_model_extra_attrs

if TYPE_CHECKING:
    from trtllm_scaffold.standin.attention.attention import Attention
    from trtllm_scaffold.standin.attention.mla import MLA
    from trtllm_scaffold.standin.model_config import ModelConfig

#: Fields of ``ModelConfig`` that the constructor reads without a default in each generation.
CONFIG_FIELDS: dict[str, tuple[str, ...]] = {
    "1.2": (),
    "1.4": (
        "use_cute_dsl_blockscaling_mm",
        "use_cute_dsl_blockscaling_bmm",
        "use_cute_dsl_bf16_bmm",
        "use_cute_dsl_bf16_gemm",
    ),
}


def extract_extra_attrs(layer_idx: str, attn_type: str) -> tuple[Any, Any]:
    """The batch and the layer that a custom op finds by the layer's index.

    Raises:
        AssertionError: If the model's extra attributes lack one of them.
    """
    assert attn_type in ("mla", "attn"), f"attn_type {attn_type!r} is neither 'mla' nor 'attn'"
    attrs = get_model_extra_attrs()
    assert attrs is not None, "model extra attrs are not set"
    metadata = attrs.get("attention_metadata")
    assert metadata is not None, "attention_metadata is not in the model's extra attrs"
    layer = attrs.get(f"{attn_type}_layers", {}).get(layer_idx)
    assert layer is not None, f"layer {layer_idx!r} is not in the model's extra attrs"
    return metadata(), layer()


def register(layer: Attention | MLA, config: ModelConfig[Any], kind: str = "attn") -> str:
    """Let custom ops find the layer by its index; a second layer of an index gets a suffix."""
    known = config.extra_attrs.setdefault(f"{kind}_layers", {})
    name, suffix = str(layer.layer_idx), 0
    while name in known:
        name, suffix = f"{layer.layer_idx}_{suffix}", suffix + 1
    known[name] = weakref.ref(layer)
    return name


def attention_mapping(mapping: Mapping) -> Mapping:
    """``mapping`` as attention sees it: attention data parallelism replicates the weights."""
    if mapping.cp_size > 1:
        raise NotImplementedError("the stand-in has no context parallelism")
    if not mapping.enable_attention_dp:
        return mapping
    return Mapping(
        world_size=mapping.world_size,
        rank=mapping.rank,
        gpus_per_node=mapping.gpus_per_node,
        tp_size=1,
        pp_size=mapping.pp_size * mapping.tp_size,
        enable_attention_dp=True,
    )


def make_qkv_projection(layer: Attention, bias: bool, options: dict[str, Any]) -> Linear:
    """The column-parallel projection to ``[q | k | v]``, per rank.

    With an output gate the q part holds ``[q | gate]`` of each head.
    """
    q_rows = layer.q_size * (2 if layer.attn_output_gate else 1)
    return Linear(
        layer.hidden_size,
        layer.tp_size * (q_rows + 2 * layer.kv_size),
        bias=bias,
        tensor_parallel_mode=TensorParallelMode.COLUMN,
        weights_loading_config=WeightsLoadingConfig(weight_mode=WeightMode.FUSED_QKV_LINEAR),
        fused_weight_shard_indices_mapping={
            "q": (0, q_rows),
            "k": (q_rows, layer.kv_size),
            "v": (q_rows + layer.kv_size, layer.kv_size),
        },
        **options,
    )


def make_output_projection(
    layer: Attention, reduce_output: bool, options: dict[str, Any]
) -> Linear:
    """The row-parallel projection back to ``hidden_size``."""
    return Linear(
        layer.tp_size * layer.q_size,
        layer.hidden_size,
        bias=layer.dense_bias,
        tensor_parallel_mode=TensorParallelMode.ROW,
        reduce_output=reduce_output,
        lora=layer.o_lora,
        **options,
    )


def linear_options(config: ModelConfig[Any], **own: Any) -> dict[str, Any]:
    """Arguments that both projections take from the model's config, and ``own``."""
    return {
        "quant_config": config.get_quant_config(),
        "skip_create_weights_in_init": config.skip_create_weights_in_init,
        "allreduce_strategy": config.allreduce_strategy,
        "force_dynamic_quantization": config.force_dynamic_quantization,
        **own,
    }


def fuses_rope(attn_backend: str, asked: bool | None) -> bool:
    """Whether the backend rotates: as asked if it can, by default if it can."""
    capable = get_attention_backend(attn_backend).support_fused_rope()
    if asked and not capable:
        logger.warning_once(f"{attn_backend} does not rotate: rope_fusion is switched off")
    return capable if asked is None else asked and capable


def make_rotary(params: PositionalEmbeddingParams | None, head_dim: int) -> nn.Module | None:
    """The module that rotates outside the backend, None without rope parameters."""
    if params is None or params.rope is None:
        return None
    options: dict[str, Any] = {"head_dim": head_dim, "is_neox": params.is_neox}
    if params.type.is_mrope():
        options |= {
            "mrope_section": params.mrope_section,
            "mrope_interleaved": params.mrope_interleaved,
        }
        return MRotaryEmbedding(params.rope, **options)
    return RotaryEmbedding(params.rope, **options)


def make_backend(layer: Attention, config: ModelConfig[Any]) -> Any:
    """The layer's backend. It gets the positions if it is to rotate.

    1.4 also hands over positions that are no rotation, relative biases for instance.
    """
    params = layer.pos_embd_params
    if params is not None and not layer.rope_fusion:
        keeps = active() == "1.4" and not params.type.is_rope() and params.rope is None
        params = params if keeps else None
    return create_attention(
        layer.attn_backend,
        layer.layer_idx,
        layer.num_heads,
        layer.head_dim,
        layer.num_key_value_heads,
        pos_embd_params=params,
        quant_config=layer.quant_config,
        skip_create_weights_in_init=config.skip_create_weights_in_init,
        q_scaling=layer.q_scaling,
        attention_chunk_size=layer.attention_chunk_size,
    )
