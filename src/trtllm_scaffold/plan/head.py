"""The head axis of a port."""

from __future__ import annotations

from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.mlp import ACTIVATION_CODE
from trtllm_scaffold.spec import ModelSpec


def plan_head(spec: ModelSpec) -> Answers:
    """Answers of the head axis."""
    head = spec.head
    return {
        "final_norm": head.final_norm is not None,
        "head_tied": head.tied,
        "head_multiplier": code(head.multiplier),
        "head_projection": head.projection,
        "head_bias": head.bias,
        "head_softcap": code(head.softcap),
        "head_dense": ACTIVATION_CODE[head.dense.activation].gate.replace("gate", "{}")
        if head.dense
        else "",
        "head_dense_bias": head.dense.bias if head.dense else False,
    }
