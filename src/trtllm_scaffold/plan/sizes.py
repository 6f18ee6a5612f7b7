"""The sizes of a port: recorded for the load proof, and set on the config by fixed names."""

from __future__ import annotations

from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.attention import RMS_NORM_EPS, has_native_qk_norm
from trtllm_scaffold.plan.block_indexer import block_indexer_sizes
from trtllm_scaffold.plan.gated_norm import gate_sizes
from trtllm_scaffold.plan.heads import head_sizes
from trtllm_scaffold.plan.indexer import indexer_sizes
from trtllm_scaffold.plan.latents import (
    has_own_latents,
    latent_sizes,
    rows_are_set,
    uneven_sizes,
)
from trtllm_scaffold.plan.mla import model_eps
from trtllm_scaffold.plan.moe import dense_kind, dense_width, expert_sizes
from trtllm_scaffold.spec import ModelSpec, Quantity


def _named_sizes(spec: ModelSpec) -> dict[str, Quantity]:
    """Every attribute that the runtime or the port reads by a fixed name.

    Order matters: an expression may read what an earlier line has set.
    """
    attention = spec.layer.attention
    sizes = {
        "hidden_size": spec.hidden_size,
        "num_hidden_layers": spec.num_hidden_layers,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        **head_sizes(spec),
        "head_dim": attention.head_dim,
        **latent_sizes(attention.mla),
        **indexer_sizes(spec),
        **block_indexer_sizes(spec),
        **gate_sizes(spec),
    }
    if attention.value_dim is not None:
        sizes["v_head_dim"] = attention.value_dim
    dense = dense_kind(spec)
    if dense is not None:
        sizes[dense_width(spec)] = dense.mlp.intermediate_size
    sizes.update(expert_sizes(spec))
    if spec.embedding.projection or spec.head.projection:
        sizes["embedding_size"] = spec.embedding.dim
    return sizes


def plan_sizes(spec: ModelSpec) -> Answers:
    """Answers with every size, and the assignments that `canonicalize` needs."""
    sizes = _named_sizes(spec)
    assigned = {name: code(size) for name, size in sizes.items() if size.expr != f"config.{name}"}
    if spec.layer.attention.mla is not None:
        del assigned["head_dim"]  # its parts have names; HF calls the rotated one so
        for name in uneven_sizes(spec):  # layers have lists of them
            assigned.pop(name, None)
        if rows_are_set(spec):
            assigned.pop("kv_lora_rank", None)  # the width of a row in the cache is made of it
        if not has_own_latents(spec) and (eps := model_eps(spec)).expr != "config.rms_norm_eps":
            assigned["rms_norm_eps"] = code(eps)
    assigned["tie_word_embeddings"] = str(spec.head.tied)
    norm = spec.layer.attention.qk_norm
    if norm and has_native_qk_norm(spec) and norm.norm.eps.expr != RMS_NORM_EPS:
        assigned["rms_norm_eps"] = code(norm.norm.eps)
    recorded: Answers = {name: int(size.value) for name, size in sizes.items()}
    recorded.setdefault("embedding_size", int(spec.hidden_size.value))
    widest = dense_kind(spec) or spec.layer
    recorded.setdefault("intermediate_size", int(widest.mlp.intermediate_size.value))
    return {
        **{name: size for name, size in recorded.items() if name != "dense_intermediate_size"},
        "dense_width": dense_width(spec),
        "dtype": spec.dtype,
        "canonical_names": list(assigned),
        "canonical_exprs": list(assigned.values()),
    }
