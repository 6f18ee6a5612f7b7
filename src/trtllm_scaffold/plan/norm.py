"""The norm axis of a port: each named norm, the class that computes it and its options."""

from __future__ import annotations

from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.block_indexer import block_indexer_norms
from trtllm_scaffold.plan.indexer import indexer_norms
from trtllm_scaffold.spec import ModelSpec, NormSpec

_CLASSES = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}


def named_norms(spec: ModelSpec) -> dict[str, NormSpec]:
    """Every norm of the model by the name under which the template asks for it."""
    layer, head = spec.layer, spec.head
    found = {name: norm for kind in spec.layer_kinds for name, norm in kind.block.norms}
    optional = {
        "qk_norm": layer.attention.qk_norm and layer.attention.qk_norm.norm,
        "output_norm": layer.attention.output_norm,
        "down_norm": layer.mlp.down_norm if layer.moe is None else None,
        "embed_norm": spec.embedding.norm,
        "norm": head.final_norm,
        "head_norm": head.dense and head.dense.norm,
    }
    present = {name: norm for name, norm in optional.items() if norm}
    return {**found, **present, **indexer_norms(spec), **block_indexer_norms(spec)}


def _options(norm: NormSpec) -> str:
    """Constructor arguments that differ from the class's defaults, as `name=value` pairs."""
    options = []
    if not norm.weight:
        options.append("has_weights=False")
    if norm.kind == "layernorm" and not norm.bias:
        options.append("has_bias=False")
    if norm.kind == "rmsnorm" and norm.plus_one:
        options.append("use_gemma=True")
    return ", ".join(options)


def plan_norm(spec: ModelSpec) -> Answers:
    """Answers of the norm axis: four lists of equal length."""
    norms = named_norms(spec)
    return {
        "norm_names": list(norms),
        "norm_classes": [_CLASSES[norm.kind] for norm in norms.values()],
        "norm_eps": [code(norm.eps) for norm in norms.values()],
        "norm_options": [_options(norm) for norm in norms.values()],
    }
