"""The norm axis of a port: one class with one set of options for all layer norms."""

from __future__ import annotations

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.spec import ModelSpec

_CLASSES = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}


def plan_norm(spec: ModelSpec) -> Answers:
    """Answers of the norm axis."""
    named = list(spec.layer.block.norms)
    if spec.head.final_norm:
        named.append(("the final norm", spec.head.final_norm))
    name, first = named[0]
    for other_name, other in named[1:]:
        if other != first:
            raise Refused("norm", f"{name} is {first}, {other_name} is {other}")
    return {
        "norm_class": _CLASSES[first.kind],
        "norm_eps": code(first.eps),
        "norm_weight": first.weight,
        "norm_bias": first.bias,
        "norm_plus_one": first.plus_one,
    }
