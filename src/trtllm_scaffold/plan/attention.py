"""The attention axis of a port: base class, biases, scale, window, norms, clip, sinks."""

from __future__ import annotations

import dataclasses

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.heads import plan_heads
from trtllm_scaffold.plan.kinds import condition_of, constant
from trtllm_scaffold.plan.latents import has_own_latents
from trtllm_scaffold.plan.norm import named_norms
from trtllm_scaffold.plan.position import has_exact_ramp
from trtllm_scaffold.spec import AttentionSpec, LayerKind, ModelSpec, Quantity, QueryFactorSpec

#: Where QKNormRoPEAttention reads its epsilon.
RMS_NORM_EPS = "config.rms_norm_eps"

#: Activation of a gate -> the function that computes it.
_GATES = {"sigmoid": "torch.sigmoid", "softplus": "F.softplus"}


def _window(spec: ModelSpec) -> tuple[Quantity | None, str]:
    """The window and the condition under which a layer has it."""
    windows = [kind.attention.window for kind in spec.layer_kinds]
    active = [window for window in windows if window is not None]
    if len({(window.value, window.expr) for window in active}) > 1:
        values = sorted(window.value for window in active)
        raise Refused("attention.window", f"several windows in one model: {values}")
    if not active:
        return None, ""
    read = _has_window
    return active[0], condition_of(spec, "attention.window", read, True)


def _has_window(kind: LayerKind) -> bool:
    return kind.attention.window is not None


def _norms_rotated_only(spec: ModelSpec) -> bool:
    """Whether layers without positions lack the query-key norm, which the first layer has.

    It must have no weight there, and stand behind the rotation: then the port leaves it out.
    """
    norm = spec.layer.attention.qk_norm
    if norm is None or norm.norm.weight or norm.when != "after_rope":
        return False
    return any(not kind.rope and kind.attention.qk_norm is None for kind in spec.layer_kinds)


def _check_layers(spec: ModelSpec) -> None:
    """Refuses layers that differ in more than window, heads, sinks, positions and such."""
    first, rotated_only = spec.layer.attention, _norms_rotated_only(spec)
    own_latents = has_own_latents(spec)

    def comparable(kind: LayerKind) -> AttentionSpec:
        own = dataclasses.replace(
            kind.attention,
            window=None,
            chunked=False,
            query_factor=None,
            block_indexer=None,
            shares_choice=False,
            sinks=first.sinks,
            num_attention_heads=first.num_attention_heads,
            num_key_value_heads=first.num_key_value_heads,
        )
        if own_latents:
            own = _as_first(own, first)
        bare = rotated_only and not kind.rope and own.qk_norm is None
        return dataclasses.replace(own, qk_norm=first.qk_norm) if bare else own

    constant(spec, "attention", comparable)


def _as_first(attention: AttentionSpec, first: AttentionSpec) -> AttentionSpec:
    """Latent attention of a layer, with the widths, and the choice of keys, of the first."""
    mla, model = attention.mla, first.mla
    if mla is None or model is None:
        return attention
    scaled = (mla.q_scale is None, mla.kv_scale is None)
    if scaled == (model.q_scale is None, model.kv_scale is None):
        mla = dataclasses.replace(mla, q_scale=model.q_scale, kv_scale=model.kv_scale)
    if (mla.q_lora_rank is None) == (model.q_lora_rank is None):
        mla = dataclasses.replace(mla, q_lora_rank=model.q_lora_rank)
    mla = dataclasses.replace(
        mla,
        kv_lora_rank=model.kv_lora_rank,
        qk_nope_head_dim=model.qk_nope_head_dim,
        qk_rope_head_dim=model.qk_rope_head_dim,
        v_head_dim=model.v_head_dim,
        indexer=model.indexer,
    )
    return dataclasses.replace(attention, mla=mla, head_dim=first.head_dim, scale=first.scale)


def _chunked(spec: ModelSpec) -> bool:
    """Whether windows are chunks."""
    found = {kind.attention.chunked for kind in spec.layer_kinds if _has_window(kind)}
    if len(found) > 1:
        raise Refused("attention.window", "some layers have windows, some chunks")
    return found == {True}


def _query_factor(spec: ModelSpec) -> QueryFactorSpec | None:
    """The factor on queries of the layers without positions, if they have one."""
    found = {kind.attention.query_factor for kind in spec.layer_kinds if not kind.rope}
    rotated = [kind.attention.query_factor for kind in spec.layer_kinds if kind.rope]
    if len(found) > 1 or any(rotated):
        raise Refused("attention.query_factor", "not all layers without positions, or others too")
    factor, attention = next(iter(found), None), spec.layer.attention
    if factor and not rotated:
        raise Refused("attention.query_factor", "no layer has positions besides")
    after = attention.qk_norm is not None and attention.qk_norm.when == "after_rope"
    if factor and (attention.qkv_clip or (after and not _norms_rotated_only(spec))):
        raise Refused("attention.query_factor", "beside a clip, or a norm that stands behind it")
    return factor


def _q_scaling(attention: AttentionSpec, exact_ramp: bool) -> str:
    """The argument that turns TensorRT-LLM's scale into the model's, or nothing."""
    if attention.has_default_scale and "layer_idx" not in attention.scale.expr:
        return "rope_magnitude(config) ** -2" if exact_ramp else ""
    if exact_ramp:
        raise Refused(
            "position.scaling", "yarn with truncate false, and a softmax scale of its own"
        )
    if attention.scale.value == 1 and attention.scale.is_constant:
        return "config.head_dim**-0.5"
    return f"1 / ({code(attention.scale)} * config.head_dim**0.5)"


def is_reference(spec: ModelSpec) -> bool:
    """Whether the port must carry its own attention maths: no stock backend has these."""
    chunked = any(kind.attention.chunked for kind in spec.layer_kinds)
    capped = spec.layer.attention.softcap is not None
    chooses = any(kind.attention.block_indexer is not None for kind in spec.layer_kinds)
    return capped or chunked or chooses or spec.position.kind == "alibi"


def _check_sinks(spec: ModelSpec) -> None:
    """Refuse sinks that an attention of the port's own would not read."""
    sinks = any(kind.attention.sinks for kind in spec.layer_kinds)
    if sinks and is_reference(spec):
        raise Refused(
            "attention.sinks",
            "the port's own attention (softcap, chunks, ALiBi or chosen keys) has no sinks",
            where=spec.source,
        )


def has_native_qk_norm(spec: ModelSpec) -> bool:
    """Whether QKNormRoPEAttention computes the query-key norm.

    It reads its epsilon from ``config.rms_norm_eps``, which must not mean another norm's.
    """
    attention = spec.layer.attention
    norm = attention.qk_norm
    sinks = any(kind.attention.sinks for kind in spec.layer_kinds)
    if norm is None or attention.qkv_clip or is_reference(spec) or sinks:
        return False
    if _query_factor(spec):  # it stands behind the norm
        return False
    weighted = norm.norm.kind == "rmsnorm" and norm.norm.weight
    plain = weighted and norm.scope == "head" and norm.when == "before_rope"
    own = norm.norm.eps.expr
    others = {other.eps.expr for other in named_norms(spec).values()} - {own}
    return plain and (own == RMS_NORM_EPS or RMS_NORM_EPS not in others)


def _fuses_qk_norm(spec: ModelSpec) -> bool:
    """Whether the fused norm-and-rotary kernel computes this rotary embedding.

    It knows one base and style for all layers: no scaling, no partial width, no layer without.
    """
    ropes = {kind.rope for kind in spec.layer_kinds}
    rope = spec.position.rope
    whole = rope is not None and rope.dim.value == spec.layer.attention.head_dim.value
    norm = spec.layer.attention.qk_norm
    gemma = norm is not None and norm.norm.plus_one
    return whole and rope is not None and rope.scaling is None and len(ropes) == 1 and not gemma


def _base(attention: AttentionSpec, native_norm: bool, own_latents: bool) -> str:
    """The library's class that the port's attention extends; empty for one of its own."""
    if own_latents:
        return ""
    if attention.mla is not None:
        return "MLA"
    return "QKNormRoPEAttention" if native_norm else "Attention"


def _kind(spec: ModelSpec) -> str:
    """The kind of attention; GQA where layers are of several."""
    kinds = {kind.attention.kind for kind in spec.layer_kinds}
    return "GQA" if len(kinds) > 1 else spec.layer.attention.kind


def plan_attention(spec: ModelSpec) -> Answers:
    """Answers of the attention axis."""
    _check_sinks(spec)
    attention = spec.layer.attention
    window, condition = _window(spec)
    _check_layers(spec)
    factor = _query_factor(spec)
    norm, clip, gate = attention.qk_norm, attention.qkv_clip, attention.output_gate
    if attention.clips_normed and norm and norm.when == "after_rope":
        raise Refused("attention.qkv_clip", "queries and keys are clipped behind norm and rotation")
    native = has_native_qk_norm(spec)
    return {
        "attention_kind": _kind(spec),
        "attention_base": _base(attention, native, has_own_latents(spec)),
        "attention_qkv_bias": attention.q_bias or attention.k_bias or attention.v_bias,
        "attention_o_bias": attention.o_bias,
        "attention_q_scaling": _q_scaling(attention, has_exact_ramp(spec.position.rope)),
        "attention_scale": code(attention.scale),
        "attention_window": code(window),
        "attention_window_condition": condition,
        "attention_chunked": _chunked(spec),
        "query_factor_scale": code(factor.scale) if factor else "",
        "query_factor_period": code(factor.period) if factor else "",
        "query_factor_form": factor.form if factor else "",
        "qk_norm_rotated_only": _norms_rotated_only(spec),
        "attention_fuse_qk_norm": _fuses_qk_norm(spec),
        "attention_reference": is_reference(spec),
        "attention_softcap": code(attention.softcap),
        "attention_clip": code(clip),
        "attention_clips_normed": attention.clips_normed,
        **plan_heads(spec),
        "attention_gate": gate.width if gate and not gate.beside_queries else "",
        "attention_gate_activation": _GATES[gate.activation] if gate else "",
        "attention_gate_bias": gate.bias if gate else False,
        "attention_gate_head_bias": gate.head_bias if gate else False,
        "output_norm": attention.output_norm is not None,
        "qk_norm": norm.scope if norm else "",
        "qk_norm_when": norm.when if norm and not native else "",
        "qk_norm_weight": norm.norm.weight if norm else False,
        "qk_norm_gemma": norm.norm.plus_one if norm else False,
    }
