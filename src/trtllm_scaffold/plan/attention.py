"""The attention axis of a port: base class, biases, scale, window and query-key norm."""

from __future__ import annotations

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.spec import ModelSpec, Quantity


def _window(spec: ModelSpec) -> tuple[Quantity | None, bool]:
    """The window and whether only some layers have it."""
    windows = [kind.attention.window for kind in spec.layer_kinds]
    active = [window for window in windows if window is not None]
    if len({(window.value, window.expr) for window in active}) > 1:
        values = sorted(window.value for window in active)
        raise Refused("attention.window", f"several windows in one model: {values}")
    return (active[0] if active else None), 0 < len(active) < len(windows)


def _q_scaling(spec: ModelSpec) -> str:
    """The argument that turns TensorRT-LLM's scale into the model's, or nothing."""
    attention = spec.layer.attention
    if attention.has_default_scale:
        return ""
    if attention.scale.value == 1:
        return "config.head_dim**-0.5"
    return f"1 / ({code(attention.scale)} * config.head_dim**0.5)"


def _fuses_qk_norm(spec: ModelSpec) -> bool:
    """Whether the fused norm-and-rotary kernel computes this rotary embedding.

    It knows the base and the style alone: no scaling, no partial width.
    """
    rope = spec.position.rope
    whole = rope is not None and rope.dim.value == spec.layer.attention.head_dim.value
    return whole and rope is not None and rope.scaling is None


def plan_attention(spec: ModelSpec) -> Answers:
    """Answers of the attention axis."""
    attention = spec.layer.attention
    window, by_layer = _window(spec)
    norm = attention.qk_norm
    return {
        "attention_kind": attention.kind,
        "attention_base": "QKNormRoPEAttention" if norm and norm.scope == "head" else "Attention",
        "attention_qkv_bias": attention.q_bias,
        "attention_o_bias": attention.o_bias,
        "attention_q_scaling": _q_scaling(spec),
        "attention_window": code(window),
        "attention_window_by_layer": by_layer,
        "attention_fuse_qk_norm": _fuses_qk_norm(spec),
        "qk_norm": norm.scope if norm else "",
        "qk_norm_eps": code(norm.norm.eps if norm else None),
    }
