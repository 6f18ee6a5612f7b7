"""The spec's values on each axis of the capability table."""

from __future__ import annotations

from trtllm_scaffold.plan.facts_moe import moe_facts
from trtllm_scaffold.plan.heads import is_narrow, key_value_heads, query_heads
from trtllm_scaffold.plan.latents import has_own_latents, rotates_unevenly, uneven_sizes
from trtllm_scaffold.plan.position import has_exact_ramp
from trtllm_scaffold.spec import (
    AttentionSpec,
    BlockIndexerSpec,
    GateSpec,
    LayerKind,
    MlaSpec,
    ModelSpec,
    NormSpec,
    RopeSpec,
)
from trtllm_scaffold.targets.capability import KERNEL_HEAD_DIMS, KERNEL_LATENT_WIDTHS

Fact = tuple[str, str]


def _set(value: object) -> str:
    return "none" if value is None or value is False else "set"


def _norm(norm: NormSpec | None) -> str:
    return norm.label if norm else "none"


def bias_pattern(biases: dict[str, bool], all_name: str) -> str:
    """``none``, `all_name`, or the names of those projections that have one."""
    if not any(biases.values()):
        return "none"
    return all_name if all(biases.values()) else ", ".join(k for k, v in biases.items() if v)


def _head_dim(head_dim: float) -> str:
    if head_dim in KERNEL_HEAD_DIMS:
        return "a size of the TRTLLM kernels"
    return "another size up to 256" if head_dim <= 256 else "above 256"


def _attention_facts(attention: AttentionSpec, own: bool) -> list[Fact]:
    if attention.mla is not None:
        return _latent_facts(attention, attention.mla, own)
    qk_norm, gate, factor = "none", "none", attention.query_factor
    if attention.qk_norm:
        kind = attention.qk_norm.norm.label
        qk_norm = f"{kind}, {attention.qk_norm.scope}, {attention.qk_norm.when}"
    if attention.output_gate:
        gate = f"{attention.output_gate.activation}, {attention.output_gate.width}"
        gate += ", bias per head" if attention.output_gate.head_bias else ""
    biases = {"q": attention.q_bias, "k": attention.k_bias, "v": attention.v_bias}
    return [
        ("attention.kind", attention.kind),
        ("attention.head_dim", _head_dim(attention.head_dim.value)),
        ("attention.scale", "1/sqrt(head_dim)" if attention.has_default_scale else "other"),
        ("attention.qkv_bias", bias_pattern(biases, "q, k and v")),
        ("attention.qk_norm", qk_norm),
        ("attention.softcap", _set(attention.softcap)),
        ("attention.sinks", _set(attention.sinks)),
        ("attention.chunk", "set" if attention.chunked else "none"),
        ("attention.query_factor", factor.form if factor else "none"),
        ("attention.block_indexer", _block_indexer(attention.block_indexer)),
        ("attention.qkv_clip", _set(attention.qkv_clip)),
        ("attention.output_gate", gate),
        ("attention.output_norm", _norm(attention.output_norm)),
        ("attention.value_scale", _set(attention.value_scale)),
    ]


def _block_indexer(indexer: BlockIndexerSpec | None) -> str:
    if indexer is None:
        return "none"
    norms = dict.fromkeys((indexer.query_norm.label, indexer.key_norm.label))
    return f"{indexer.style}, {' and '.join(norms)}"


def _latent_facts(attention: AttentionSpec, mla: MlaSpec, own: bool) -> list[Fact]:
    """`own`: whether the port's own attention reads the latents, and not the library's module."""
    nope, rope = mla.qk_nope_head_dim.value, mla.qk_rope_head_dim.value
    widths = f"{nope} + {rope}, values {mla.v_head_dim.value}, latent {mla.kv_lora_rank.value}"
    norms = [norm.label for norm in (mla.q_norm, mla.kv_norm) if norm]
    known = widths if widths == KERNEL_LATENT_WIDTHS else "others"
    chosen = mla.indexer
    return [
        ("attention.kind", attention.kind),
        ("attention.latent_widths", "any, by the port's own attention" if own else known),
        ("attention.indexer", f"{chosen.style}, {chosen.key_norm.label}" if chosen else "none"),
        *(("attention.latent_norm", norm) for norm in norms),
        ("attention.latent_scale", _set(mla.q_scale or mla.kv_scale)),
        ("attention.latent_rope_norm", _norm(mla.rope_norm)),
        ("attention.latent_bias", ", ".join(mla.biases) or "none"),
        ("attention.softcap", "with latents" if attention.softcap else "none"),
        ("attention.sinks", "with latents" if attention.sinks else "none"),
        ("attention.query_latent", "normed and raw" if mla.raw_latent else "as it is"),
        ("attention.output_gate", _latent_gate(attention.output_gate)),
        ("attention.output_norm", "with latents" if attention.output_norm else "none"),
        ("attention.window", _latent_window(attention)),
    ]


def _latent_window(attention: AttentionSpec) -> str:
    if attention.window is None:
        return "none"
    return "chunks, with latents" if attention.chunked else "with latents"


def _latent_gate(gate: GateSpec | None) -> str:
    if gate is None:
        return "none"
    bias = ", bias per head" if gate.head_bias else ""
    place = ", beside queries" if gate.beside_queries else ""
    return f"{gate.activation}, {gate.width}{bias}, with latents{place}"


def _latent_rope_facts(rope: RopeSpec, own: bool) -> list[Fact]:
    if own:  # the port rotates by itself, whatever the style
        exact = has_exact_ramp(rope)
        return [("attention.latent_scaling", _scaling(rope))] if exact else []
    return [
        ("attention.latent_style", "inverse" if rope.inverse else rope.style),
        ("attention.latent_scaling", _scaling(rope)),
    ]


def _mlp_facts(layer: LayerKind) -> list[Fact]:
    if layer.moe is not None:
        return moe_facts(layer)
    mlp = layer.mlp
    biases = {"up": mlp.up_bias, "down": mlp.down_bias}
    if mlp.kind == "gated":
        biases["gate"] = mlp.gate_bias
    return [
        ("mlp.kind", mlp.label),
        ("mlp.bias", bias_pattern(biases, "all")),
        ("mlp.down_norm", _norm(mlp.down_norm)),
    ]


def _layer_facts(layer: LayerKind, own: bool) -> list[Fact]:
    facts = _attention_facts(layer.attention, own)
    facts += [("norm.kind", norm.label) for _, norm in layer.block.norms]
    facts += [
        ("block.placement", layer.block.placement),
        (
            "block.coefficient",
            _set(layer.block.attention_coefficient or layer.block.mlp_coefficient),
        ),
        ("block.residual", _set(layer.block.attention_residual or layer.block.mlp_residual)),
        *_mlp_facts(layer),
    ]
    if layer.rope:
        facts += _rope_facts(layer.rope)
    if layer.rope and layer.attention.mla:
        facts += _latent_rope_facts(layer.rope, own)
    return facts


def _scaling(rope: RopeSpec) -> str:
    if has_exact_ramp(rope):
        return "yarn, ends not rounded"
    return rope.scaling.kind if rope.scaling else "none"


def _rope_facts(rope: RopeSpec) -> list[Fact]:
    return [
        ("position.style", rope.style),
        ("position.direction", "inverse" if rope.inverse else "usual"),
        ("position.scaling", _scaling(rope)),
    ]


def _window_fact(spec: ModelSpec) -> Fact:
    windows = {kind.attention.window is not None for kind in spec.layer_kinds}
    if windows == {False}:
        return ("attention.window", "none")
    return ("attention.window", "all layers" if windows == {True} else "some layers")


def _head_facts(spec: ModelSpec) -> list[Fact]:
    """Whether all layers have the same heads, and values the width of keys."""
    quantized = " and quantized" if spec.quantization else ""
    narrow = f"narrower than keys{quantized}" if is_narrow(spec) else "as keys"
    repeats = key_value_heads(spec) and not has_own_latents(spec)
    shared = f"differ by layer{quantized}" if repeats else "the same"
    return [
        ("attention.query_heads", "differ by layer" if query_heads(spec) else "the same"),
        ("attention.key_value_heads", shared),
        ("attention.value_width", narrow),
        ("attention.latent_sizes", "differ by layer" if uneven_sizes(spec) else "the same"),
        ("attention.latent_ropes", "differ by layer" if rotates_unevenly(spec) else "the same"),
    ]


def facts(spec: ModelSpec) -> tuple[Fact, ...]:
    """Every (axis, value) of the model, without repeats, in the order of the axes."""
    found: list[Fact] = []
    own = has_own_latents(spec)
    for layer in spec.layer_kinds:
        found += _layer_facts(layer, own)
    found.append(_window_fact(spec))
    found += _head_facts(spec)
    found.append(("position.kind", spec.position.kind))
    if spec.position.rope:
        found += _rope_facts(spec.position.rope)
    head, embedding = spec.head, spec.embedding
    found += [
        ("norm.kind", _norm(head.final_norm)),
        ("embedding.multiplier", _set(embedding.multiplier)),
        ("embedding.projection", "linear" if embedding.projection else "none"),
        ("embedding.norm", _norm(embedding.norm)),
        ("head.dense", head.dense.activation if head.dense else "none"),
        ("head.bias", _set(head.bias)),
        ("head.multiplier", _set(head.multiplier)),
        ("head.softcap", _set(head.softcap)),
        ("quantization", spec.quantization.algorithm if spec.quantization else "none"),
    ]
    return tuple(dict.fromkeys(found))
