"""Infers what a model is, by running its class on tiny random instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trtllm_scaffold.sources import Sources
    from trtllm_scaffold.sources.hf_class import HFClasses
    from trtllm_scaffold.spec import ModelSpec

__all__ = ["infer"]


def infer(sources: Sources, classes: HFClasses) -> ModelSpec:
    """Infer a model's spec.

    Args:
        sources: What was read of the model.
        classes: Its HF classes.

    Raises:
        Refused: Some axis of the model has no label; names the axis and the module.
        InputError: The configuration is inconsistent, or disagrees with the trace.
    """
    from trtllm_scaffold.infer.assembly import assemble  # imports torch

    return assemble(sources, classes)
