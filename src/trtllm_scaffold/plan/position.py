"""The position axis of a port: rotary tables by layer, learned or computed vectors, ALiBi."""

from __future__ import annotations

import math
from collections.abc import Callable

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.kinds import condition_of
from trtllm_scaffold.plan.latents import uneven_sizes
from trtllm_scaffold.spec import LayerKind, ModelSpec, RopeScaling, RopeSpec

#: Scalings whose formula needs the original length.
_TAKES_ORIGINAL = ("llama3", "longrope", "yarn")

_NOTHING: Answers = {
    "rope_style": "",
    "rope_partial": False,
    "rope_whole": False,
    "rope_dim": "",
    "rope_scaling": "",
    "rope_exact_ramp": False,
    "rope_scalings": [],
    "rope_original_length": False,
    "rope_theta": "",
    "rope_by_layer_type": False,
    "rope_by_layer": False,
    "rope_condition": "",
    "rope_reads_parameters": False,
    "rope_inverse": False,
    "learned_offset": 0,
    "sinusoidal_layout": "",
    "sinusoidal_base": 10000.0,
    "alibi_max_bias": 0.0,
    "alibi_scaled": False,
}


def has_exact_ramp(rope: RopeSpec | None) -> bool:
    """Whether yarn's ramp ends between dimensions: TensorRT-LLM's own yarn rounds the ends."""
    scaling = rope.scaling if rope else None
    return scaling is not None and scaling.kind == "yarn" and scaling.get("truncate") is False


def _check_exact_ramp(spec: ModelSpec, ropes: list[RopeSpec]) -> None:
    """The port gives each dimension its factor, and puts the magnitude into the softmax scale."""
    attention = spec.layer.attention
    problem = ""
    if len(ropes) > 1:
        problem = "where layers rotate differently"
    elif ropes[0].dim.value != attention.head_dim.value:
        problem = "over a part of each head"
    elif attention.softcap is not None:
        problem = "with capped scores"
    if problem:
        raise Refused("position.scaling", f"yarn with truncate false {problem}")


def _check_longrope_factor(scaling: RopeScaling, max_positions: float) -> None:
    """TensorRT-LLM derives longrope's magnitude from the two lengths alone."""
    original = scaling.get("original_max_position_embeddings")
    assert isinstance(original, int | float)
    ratio = max_positions / original
    derived = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 else 1.0
    given = scaling.get("attention_factor")
    if isinstance(given, int | float) and abs(given - derived) > 1e-6:
        raise Refused(
            "position.scaling",
            f"longrope attention_factor {given} where TensorRT-LLM applies {derived:.6g}",
        )


def _has_rope(kind: LayerKind) -> bool:
    return kind.rope is not None


def _ropes(spec: ModelSpec) -> list[RopeSpec]:
    """The distinct rotary embeddings, in the order of the layers."""
    found = [kind.rope for kind in spec.layer_kinds if kind.rope]
    if not found and spec.position.rope:
        found = [spec.position.rope]
    return list(dict.fromkeys(found))


def _one(fact: str, values: set[str]) -> str:
    if len(values) > 1:
        raise Refused(fact, f"layers differ: {' and '.join(sorted(values))}")
    return next(iter(values), "")


def _theta(spec: ModelSpec, ropes: list[RopeSpec], thetas: set[str]) -> str:
    """The base of a layer's rotary embedding: one, or a choice by the layer's kind."""
    if len(thetas) == 1 or "" in thetas:
        return _one("position.rope.theta", thetas)
    choice = ""
    for theta in dict.fromkeys(code(rope.theta) for rope in ropes):
        wanted = {rope for rope in ropes if code(rope.theta) == theta}
        condition = condition_of(spec, "position.rope.theta", _among(wanted), True)
        choice = f"{theta} if {condition} else {choice}" if choice else theta
    return choice


def _among(ropes: set[RopeSpec]) -> Callable[[LayerKind], bool]:
    return lambda kind: kind.rope in ropes


def _widths(ropes: list[RopeSpec], head_dim: float) -> set[str]:
    """How each rotated width is written; empty for the settings' own share of a head.

    Where some layers rotate a share of each head, the whole of it is a share as well.
    """
    shares = any(not rope.dim.expr for rope in ropes)
    whole = {rope for rope in ropes if shares and rope.dim.value == head_dim}
    return {"" if rope in whole else code(rope.dim) if rope.dim.expr else "" for rope in ropes}


def _rope(spec: ModelSpec) -> Answers:
    ropes = _ropes(spec)
    scalings = [rope.scaling for rope in ropes if rope.scaling]
    for scaling in scalings:
        if scaling.kind == "longrope":
            _check_longrope_factor(scaling, spec.max_position_embeddings.value)
    exact = any(map(has_exact_ramp, ropes))
    if exact:
        _check_exact_ramp(spec, ropes)
    kind = _one("position.scaling", {scaling.kind for scaling in scalings})
    head_dim = spec.layer.attention.head_dim.value
    by_type = any(rope.layer_type for rope in ropes)
    thetas = {code(rope.theta) if rope.theta.expr else "" for rope in ropes}
    if len(ropes) > 1 and not by_type and thetas == {""}:
        raise Refused("position.rope", "layers rotate differently, and no key says how")
    partial = any(rope.dim.value != head_dim for rope in ropes)
    uneven = "qk_rope_head_dim" in uneven_sizes(spec)
    dim = 'config.layer_sizes[layer_idx]["qk_rope_head_dim"]'
    dim = dim if uneven else _one("position.rope.dim", _widths(ropes, head_dim))
    dim = dim if partial else ""
    if partial and any(rope.inverse for rope in ropes):
        raise Refused("position.direction", "part of each head turns the other way")
    kinds_have_rope = any(_has_rope(layer) for layer in spec.layer_kinds)
    plain = ["default"] if any(rope.scaling is None for rope in ropes) else []
    return {
        "rope_style": _one("position.style", {rope.style for rope in ropes}),
        "rope_partial": partial and not dim,
        "rope_whole": partial and any(rope.dim.value == head_dim for rope in ropes),
        "rope_dim": dim,
        "rope_scaling": kind,
        "rope_exact_ramp": exact,
        "rope_scalings": plain + ([kind] if kind else []),
        "rope_original_length": kind in _TAKES_ORIGINAL,
        "rope_theta": _theta(spec, ropes, thetas),
        "rope_by_layer_type": by_type,
        "rope_by_layer": uneven
        or by_type
        or len(thetas) > 1
        or any("layer_idx" in t for t in thetas),
        "rope_condition": condition_of(spec, "position", _has_rope, True)
        if kinds_have_rope
        else "",
        "rope_reads_parameters": thetas == {""} or bool(kind) or (partial and not dim),
        "rope_inverse": _one("position.direction", {str(rope.inverse) for rope in ropes}) == "True",
    }


def _learned(spec: ModelSpec) -> Answers:
    learned = spec.position.learned
    assert learned is not None
    expected = spec.max_position_embeddings.value + learned.offset
    if learned.rows.value != expected:
        raise Refused(
            "position.learned",
            f"the table has {learned.rows.value} rows where max_position_embeddings plus the "
            f"offset is {expected}",
        )
    return {"learned_offset": learned.offset}


def _alibi(spec: ModelSpec) -> Answers:
    alibi = spec.position.alibi
    assert alibi is not None
    return {"alibi_max_bias": alibi.max_bias, "alibi_scaled": alibi.scaled}


def _sinusoidal(spec: ModelSpec) -> Answers:
    found = spec.position.sinusoidal
    assert found is not None
    return {
        "sinusoidal_layout": found.layout,
        "sinusoidal_base": found.base,
        "learned_offset": found.offset,
    }


_KINDS = {
    "rope": _rope,
    "learned": _learned,
    "alibi": _alibi,
    "sinusoidal": _sinusoidal,
    "none": lambda _: {},
}


def plan_position(spec: ModelSpec) -> Answers:
    """Answers of the position axis."""
    details = _KINDS[spec.position.kind](spec)
    return {"position_kind": spec.position.kind, **_NOTHING, **details}
