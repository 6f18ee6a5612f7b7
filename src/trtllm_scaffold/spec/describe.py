"""ModelSpec -> the document that `inspect --json` prints."""

from __future__ import annotations

from typing import Any

from trtllm_scaffold.spec.attention import AttentionSpec
from trtllm_scaffold.spec.mla import IndexerSpec, MlaSpec
from trtllm_scaffold.spec.model import ModelSpec
from trtllm_scaffold.spec.moe import MoeSpec
from trtllm_scaffold.spec.position import PositionSpec
from trtllm_scaffold.spec.quantity import Quantity


def _value(quantity: Quantity | None) -> int | float | None:
    return quantity.value if quantity else None


def _attention(attention: AttentionSpec, spec: ModelSpec) -> dict[str, Any]:
    norm = attention.qk_norm
    windows = [spec.layer_kinds[kind].attention.window for kind in spec.layer_pattern]
    biases = {"q": attention.q_bias, "k": attention.k_bias, "v": attention.v_bias}
    return {
        "kind": attention.kind,
        "num_attention_heads": attention.num_attention_heads.value,
        "num_key_value_heads": attention.num_key_value_heads.value,
        "head_dim": attention.head_dim.value,
        "bias": {**biases, "o": attention.o_bias},
        "scale": attention.scale.value,
        "window": next((_value(window) for window in windows if window), None),
        "window_layers": [index for index, window in enumerate(windows) if window],
        "qk_norm": {"kind": norm.norm.label, "scope": norm.scope, "when": norm.when}
        if norm
        else None,
        "softcap": _value(attention.softcap),
        "sinks": any(kind.attention.sinks for kind in spec.layer_kinds),
        "qkv_clip": _value(attention.qkv_clip),
        **_uneven(attention, spec),
        **({} if attention.mla is None else {"latent": _latent(attention.mla)}),
        **_blocks(spec),
    }


def _blocks(spec: ModelSpec) -> dict[str, Any]:
    """The choice of blocks of keys, and which layers make it; nothing where none do."""
    chosen = [spec.layer_kinds[kind].attention.block_indexer for kind in spec.layer_pattern]
    indexer = next((found for found in chosen if found), None)
    if indexer is None:
        return {}
    return {
        "blocks": {
            "num_heads": indexer.num_heads.value,
            "head_dim": indexer.head_dim.value,
            "block_size": indexer.block_size.value,
            "top_k": indexer.top_k.value,
            "local_blocks": indexer.local_blocks.value,
            "style": indexer.style,
            "layers": [index for index, found in enumerate(chosen) if found],
        }
    }


def _uneven(attention: AttentionSpec, spec: ModelSpec) -> dict[str, Any]:
    """Heads that differ from layer to layer, and values unlike keys, where there are such."""
    kinds = [spec.layer_kinds[kind].attention for kind in spec.layer_pattern]
    heads = spec.heads_by_layer or [kind.num_attention_heads.value for kind in kinds]
    shared = [kind.num_key_value_heads.value for kind in kinds]
    sinks = [index for index, kind in enumerate(kinds) if kind.sinks]
    found: dict[str, Any] = {}
    if len(set(heads)) > 1:
        found["layer_heads"] = list(heads)
    if len(set(shared)) > 1 and attention.mla is None:
        found["layer_kv_heads"] = shared
    found.update(_uneven_latents([kind.mla for kind in kinds if kind.mla]))
    if 0 < len(sinks) < len(kinds):
        found["sinks_layers"] = sinks
    if attention.value_dim is not None:
        found["value_dim"] = attention.value_dim.value
    if attention.value_scale is not None:
        found["value_scale"] = attention.value_scale.value
    return found


def _latent(mla: MlaSpec) -> dict[str, Any]:
    return {
        "q_lora_rank": _value(mla.q_lora_rank),
        "kv_lora_rank": mla.kv_lora_rank.value,
        "qk_nope_head_dim": mla.qk_nope_head_dim.value,
        "qk_rope_head_dim": mla.qk_rope_head_dim.value,
        "v_head_dim": mla.v_head_dim.value,
        "norm": {"kind": mla.kv_norm.label, "eps": mla.kv_norm.eps.value},
        "biases": list(mla.biases),
        **_latent_extras(mla),
        **({} if mla.indexer is None else {"indexer": _indexer(mla.indexer)}),
    }


def _uneven_latents(layers: list[MlaSpec]) -> dict[str, Any]:
    """The widths of latents that differ from layer to layer."""
    found = {
        f"layer_{name}": [getattr(mla, name).value for mla in layers]
        for name in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    }
    found["layer_q_lora_rank"] = [_value(mla.q_lora_rank) for mla in layers]
    return {name: values for name, values in found.items() if len(set(values)) > 1}


def _latent_extras(mla: MlaSpec) -> dict[str, Any]:
    """What happens to latents besides their norms; nothing where nothing does."""
    norm = mla.rope_norm
    found = {
        "raw_latent": mla.raw_latent or None,
        "q_scale": _value(mla.q_scale),
        "kv_scale": _value(mla.kv_scale),
        "shared_key_norm": norm and {"kind": norm.label, "eps": norm.eps.value},
    }
    return {name: value for name, value in found.items() if value is not None}


def _indexer(indexer: IndexerSpec) -> dict[str, Any]:
    return {
        "num_heads": indexer.num_heads.value,
        "head_dim": indexer.head_dim.value,
        "top_k": indexer.top_k.value,
        "style": indexer.style,
        "key_norm": {"kind": indexer.key_norm.label, "eps": indexer.key_norm.eps.value},
    }


def _position(position: PositionSpec) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": position.kind, "style": None}
    if position.rope:
        rope = position.rope
        scaling = rope.scaling
        found.update(style=rope.style, dim=rope.dim.value, theta=rope.theta.value)
        found["scaling"] = scaling and {"kind": scaling.kind, **dict(scaling.parameters)}
    if position.learned:
        found.update(offset=position.learned.offset, rows=position.learned.rows.value)
    return found


def _mlp(spec: ModelSpec) -> dict[str, Any]:
    """The feed-forward; of a model with experts one expert, and the choice beside it."""
    experts = [kind.moe is not None for kind in spec.layer_kinds]
    chosen = spec.layer_kinds[experts.index(True)] if any(experts) else spec.layer
    mlp = chosen.mlp
    found: dict[str, Any] = {
        "kind": "moe" if chosen.moe else mlp.kind,
        "activation": mlp.activation,
        "intermediate_size": mlp.intermediate_size.value,
        "bias": mlp.up_bias,
    }
    constants = {
        "clamp": _value(mlp.clamp),
        "swish_beta": _value(mlp.swish_beta),
        "up_offset": mlp.up_offset,
    }
    if chosen.moe is None:
        return {**found, **constants}
    dense = [index for index, kind in enumerate(spec.layer_pattern) if not experts[kind]]
    moe = {"expert": mlp.kind, **_moe(chosen.moe), **constants, "dense_layers": dense}
    return {**found, "moe": moe}


def _moe(moe: MoeSpec) -> dict[str, Any]:
    router, shared = moe.router, moe.shared
    grouped = router.num_groups is not None
    return {
        "scores": router.scores,
        "num_experts": router.num_experts.value,
        "top_k": router.top_k.value,
        "renormalised": router.renormalised,
        "epsilon": router.epsilon,
        "floor": _value(router.floor),
        "logit_bias": router.logit_bias,
        "selection_bias": router.selection_bias,
        "groups": {
            "count": _value(router.num_groups),
            "kept": _value(router.top_groups),
            "score": router.group_score,
        }
        if grouped
        else None,
        "scaling": _value(router.scaling),
        "softcap": _value(router.softcap),
        "jitter": _value(router.jitter),
        "weight_on": moe.weight_on,
        "shared": shared
        and {
            "join": shared.join,
            "activation": shared.mlp.activation,
            "intermediate_size": shared.mlp.intermediate_size.value,
        },
    }


def describe(spec: ModelSpec) -> dict[str, Any]:
    """Every fact of `spec`, axis by axis, as JSON-plain data (of the first layer kind)."""
    layer, head = spec.layer, spec.head
    norm = layer.block.norms[0][1] if layer.block.norms else head.final_norm
    return {
        "hidden_size": spec.hidden_size.value,
        "num_hidden_layers": spec.num_hidden_layers.value,
        "vocab_size": spec.vocab_size.value,
        "max_position_embeddings": spec.max_position_embeddings.value,
        "dtype": spec.dtype,
        "layer_kinds": len(spec.layer_kinds),
        "attention": _attention(layer.attention, spec),
        "position": _position(spec.position),
        "norm": {
            "kind": norm.label if norm else "none",
            "placement": layer.block.placement,
            "eps": norm.eps.value if norm else None,
            "final": head.final_norm is not None,
        },
        "mlp": _mlp(spec),
        "embedding": {
            "multiplier": _value(spec.embedding.multiplier),
            "projection": spec.embedding.projection,
        },
        "head": {
            "tied": head.tied,
            "bias": head.bias,
            "multiplier": _value(head.multiplier),
            "softcap": _value(head.softcap),
            "projection": head.projection,
        },
        "checkpoint": {
            "tensors": len(spec.checkpoint.tensors),
            "fused": sorted({t.layout for t in spec.checkpoint.tensors if len(t.roles) > 1}),
            "dropped": [name for name, _ in spec.checkpoint.dropped],
        },
        "quantization": spec.quantization.algorithm if spec.quantization else None,
    }
