"""Latent attention to chosen keys in a port, whose modules lie as HF's do."""

from __future__ import annotations

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.kinds import condition_of
from trtllm_scaffold.spec import IndexerSpec, LayerKind, ModelSpec, NormSpec, Quantity, TensorSpec

#: TensorRT-LLM's modules that such an attention is made of.
SYMBOLS = ("Linear", "Mapping", "RMSNorm", "RotaryEmbedding")

#: Roles of one tensor -> the module of the port that holds them together, and their layout.
_MODULES = {
    ("q_a",): ("q_a_proj", "whole"),
    ("q_a_norm",): ("q_a_layernorm", "whole"),
    ("q_b",): ("q_b_proj", "whole"),
    ("q_b", "gate"): ("q_b_proj", "per_head"),
    ("kv_a", "k_rope"): ("kv_a_proj_with_mqa", "rows"),
    ("kv_a_norm",): ("kv_a_layernorm", "whole"),
    ("k_b", "v_b"): ("kv_b_proj", "per_head"),
    ("o",): ("o_proj", "whole"),
    ("index_q",): ("indexer.wq_b", "whole"),
    ("index_k",): ("indexer.wk", "whole"),
    ("index_k_norm",): ("indexer.k_norm", "whole"),
    ("index_weights",): ("indexer.weights_proj", "whole"),
}


def indexer_of(spec: ModelSpec) -> IndexerSpec | None:
    """The choice of keys, if the model has one."""
    mla = spec.layer.attention.mla
    return None if mla is None else mla.indexer


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
    if indexer is None or mla is None or mla.q_norm is None:
        return {}
    return {
        "q_a_layernorm": mla.q_norm,
        "kv_a_layernorm": mla.kv_norm,
        "index_k_norm": indexer.key_norm,
    }


def plan_indexer(spec: ModelSpec) -> Answers:
    """Answers of the choice of keys; empty ones without it."""
    indexer, mla = indexer_of(spec), spec.layer.attention.mla
    if indexer is None or mla is None:
        return {
            "indexer": "",
            "indexer_condition": "",
            "index_layers": [],
            "latent_dim": "",
            "latent_raw": False,
            "latent_gate": False,
        }
    condition, kinds = "", spec.layer_kinds
    if any(map(_shares_choice, kinds)):
        condition = condition_of(spec, "attention.indexer", _shares_choice, False)
    return {
        "indexer": indexer.style,
        "indexer_condition": condition,
        "index_layers": [
            index
            for index, kind in enumerate(spec.layer_pattern)
            if condition and not _shares_choice(kinds[kind])
        ],
        "latent_dim": code(mla.kv_lora_rank),
        "latent_raw": mla.raw_latent,
        "latent_gate": spec.layer.attention.output_gate is not None,
    }


def _shares_choice(kind: LayerKind) -> bool:
    return kind.attention.shares_choice


def own_target(spec: ModelSpec, tensor: TensorSpec) -> str | None:
    """The parameter that a tensor of such an attention fills as it is; None for other tensors.

    Raises:
        Refused: It would have to be taken apart.
    """
    if indexer_of(spec) is None or {role.split(".")[0] for role in tensor.roles} != {"attention"}:
        return None
    parts = tuple(role.split(".")[1] for role in tensor.roles)
    module, layout = _MODULES.get(parts, ("", ""))
    if not module or tensor.layout != layout or tensor.transposed:
        raise Refused(
            "checkpoint",
            f"{tensor.name} holds {tensor.roles} in layout {tensor.layout!r}, and keys are chosen",
        )
    return f"model.layers.{{i}}.self_attn.{module}.{tensor.roles[0].rpartition('.')[2]}"
