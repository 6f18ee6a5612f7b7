"""Latent attention of a port's own, to chosen keys or not, whose modules lie as HF's do."""

from __future__ import annotations

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.plan.kinds import condition_of
from trtllm_scaffold.plan.latents import has_own_latents
from trtllm_scaffold.spec import (
    IndexerSpec,
    LayerKind,
    ModelSpec,
    NormSpec,
    Quantity,
    TensorSpec,
)

#: TensorRT-LLM's modules that such an attention is made of.
SYMBOLS = ("Linear", "Mapping", "RMSNorm", "RotaryEmbedding")

#: Roles of one tensor -> the module of the port that holds them together, and their layout.
_MODULES = {
    ("q_a",): ("q_a_proj", "whole"),
    ("q_a_norm",): ("q_a_layernorm", "whole"),
    ("q_b",): ("q_b_proj", "whole"),
    ("q",): ("q_proj", "whole"),
    ("q_b", "gate"): ("q_b_proj", "per_head"),
    ("kv_a", "k_rope"): ("kv_a_proj_with_mqa", "rows"),
    ("kv_a_norm",): ("kv_a_layernorm", "whole"),
    ("k_rope_norm",): ("k_rope_layernorm", "whole"),
    ("k_b", "v_b"): ("kv_b_proj", "per_head"),
    ("gate",): ("gate_proj", "whole"),
    ("o",): ("o_proj", "whole"),
    ("index_q",): ("indexer.wq_b", "whole"),
    ("index_k",): ("indexer.wk", "whole"),
    ("index_k_norm",): ("indexer.k_norm", "whole"),
    ("index_weights",): ("indexer.weights_proj", "whole"),
}


_NOTHING: Answers = {
    "indexer": "",
    "indexer_condition": "",
    "indexer_shared": False,
    "index_layers": [],
}


def indexer_of(spec: ModelSpec) -> IndexerSpec | None:
    """The choice of keys, if the model has one."""
    found = (kind.attention.mla for kind in spec.layer_kinds)
    return next((mla.indexer for mla in found if mla and mla.indexer), None)


def indexer_sizes(spec: ModelSpec) -> dict[str, Quantity]:
    """Its numbers by the names that the port reads; none without it."""
    indexer = indexer_of(spec)
    if indexer is None:
        return {}
    return {
        "index_n_heads": indexer.num_heads,
        "index_head_dim": indexer.head_dim,
        "index_topk": indexer.top_k,
    }


def indexer_norms(spec: ModelSpec) -> dict[str, NormSpec]:
    """The norms that the port's own attention makes, by the names the template asks for."""
    indexer, mla = indexer_of(spec), spec.layer.attention.mla
    if mla is None or not has_own_latents(spec):
        return {}
    norms = {
        "q_a_layernorm": mla.q_norm,
        "kv_a_layernorm": mla.kv_norm,
        "k_rope_layernorm": mla.rope_norm,
        "index_k_norm": indexer and indexer.key_norm,
    }
    return {name: norm for name, norm in norms.items() if norm}


def plan_indexer(spec: ModelSpec) -> Answers:
    """Answers of the choice of keys; empty ones without it."""
    indexer = indexer_of(spec)
    if indexer is None:
        return dict(_NOTHING)
    _check_choices(spec)
    condition, kinds = condition_of(spec, "attention.indexer", _chooses, True), spec.layer_kinds
    return {
        "indexer": indexer.style,
        "indexer_condition": condition,
        "indexer_shared": any(map(_shares_choice, kinds)),
        "index_layers": [
            index
            for index, kind in enumerate(spec.layer_pattern)
            if condition and _chooses(kinds[kind])
        ],
    }


def _check_choices(spec: ModelSpec) -> None:
    """Refuses layers with windows that choose keys, and a choice shared past those without one."""
    kinds = [kind.attention for kind in spec.layer_kinds]
    if any(kind.window and (kind.mla and kind.mla.indexer) for kind in kinds):
        raise Refused("attention.window", "a window in a layer that sees chosen keys")
    own = [name for name, size in indexer_sizes(spec).items() if "layer_idx" in size.expr]
    if own:
        raise Refused("attention.indexer", f"layers have {', '.join(own)} of their own")
    plain = any(kind.mla and kind.mla.indexer is None for kind in kinds)
    if plain and any(map(_shares_choice, spec.layer_kinds)):
        raise Refused(
            "attention.indexer", "some layers share a choice of keys, and others see all keys"
        )


def _chooses(kind: LayerKind) -> bool:
    mla = kind.attention.mla
    return mla is not None and mla.indexer is not None and not _shares_choice(kind)


def _shares_choice(kind: LayerKind) -> bool:
    return kind.attention.shares_choice


def own_target(spec: ModelSpec, tensor: TensorSpec) -> str | None:
    """The parameter that a tensor of such an attention fills as it is; None for other tensors.

    Raises:
        Refused: It would have to be taken apart.
    """
    if not has_own_latents(spec) or {role.split(".")[0] for role in tensor.roles} != {"attention"}:
        return None
    parts = tuple(role.split(".")[1] for role in tensor.roles)
    module, layout = _MODULES.get(parts, ("", ""))
    if not module or tensor.layout != layout or tensor.transposed:
        raise Refused(
            "checkpoint",
            f"{tensor.name} holds {tensor.roles} in layout {tensor.layout!r}, and the "
            "port's own attention reads it",
        )
    return f"model.layers.{{i}}.self_attn.{module}.{tensor.roles[0].rpartition('.')[2]}"
