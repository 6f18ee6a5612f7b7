"""The position axis of a port: the rotary table or the learned one."""

from __future__ import annotations

import math

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.spec import ModelSpec, RopeScaling

#: Parameters that TensorRT-LLM derives itself: a file that sets them to anything else than
#: the derived value cannot be expressed.
_TAKES_ORIGINAL = ("llama3", "longrope", "yarn")


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


def _rope(spec: ModelSpec) -> Answers:
    rope = spec.position.rope
    assert rope is not None
    scaling = rope.scaling
    if scaling and scaling.kind == "longrope":
        _check_longrope_factor(scaling, spec.max_position_embeddings.value)
    return {
        "rope_style": rope.style,
        "rope_partial": rope.dim.value != spec.layer.attention.head_dim.value,
        "rope_scaling": scaling.kind if scaling else "",
        "rope_original_length": bool(scaling and scaling.kind in _TAKES_ORIGINAL),
        "learned_offset": 0,
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
    return {
        "rope_style": "",
        "rope_partial": False,
        "rope_scaling": "",
        "rope_original_length": False,
        "learned_offset": learned.offset,
    }


def plan_position(spec: ModelSpec) -> Answers:
    """Answers of the position axis."""
    details = _rope(spec) if spec.position.rope else _learned(spec)
    return {"position_kind": spec.position.kind, **details}
