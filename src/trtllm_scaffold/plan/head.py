"""The head axis of a port."""

from __future__ import annotations

from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.spec import ModelSpec


def plan_head(spec: ModelSpec) -> Answers:
    """Answers of the head axis."""
    head = spec.head
    return {
        "final_norm": head.final_norm is not None,
        "head_tied": head.tied,
        "head_multiplier": code(head.multiplier),
        "head_projection": head.projection,
    }
