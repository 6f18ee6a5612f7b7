"""Answers about the whole model that a port's text decoder was taken out of."""

from __future__ import annotations

from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.spec import ModelSpec


def plan_wrapper(spec: ModelSpec) -> Answers:
    """Answers of a text-only port; all empty where the model is a decoder alone."""
    around = spec.wrapper
    pairs = around.stored_prefixes if around else ()
    return {
        "wrapper_config": around.config_class if around else "",
        "wrapper_key": around.key if around else "",
        "wrapper_following": list(around.following) if around else [],
        "own_prefixes": [own for own, _ in pairs],
        "stored_prefixes": [stored for _, stored in pairs],
        "other_prefixes": list(around.others) if around else [],
    }
