"""The block axis of a port: which form the layer's equation takes."""

from __future__ import annotations

import dataclasses

from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.kinds import condition_of, constant
from trtllm_scaffold.spec import BlockSpec, LayerKind, ModelSpec


def block_form(block: BlockSpec, has_final_norm: bool, *, uniform: bool = True) -> str:
    """``fused`` (norm(x, residual)), ``parallel`` or ``sequential`` (sums written out)."""
    if block.parallel:
        return "parallel"
    factors = (block.attention_coefficient, block.mlp_coefficient)
    plain = not any((*factors, block.attention_residual, block.mlp_residual))
    pre = block.placement == "pre" and not block.residual_after_norm
    both = block.attention_input_norm and block.mlp_input_norm
    fused = pre and plain and uniform and has_final_norm and both
    return "fused" if fused else "sequential"


def _has_input_norm(kind: LayerKind) -> bool:
    return kind.block.attention_input_norm is not None


def _fullest(spec: ModelSpec) -> BlockSpec:
    """The block with an attention norm, where some layers have none."""
    having = [kind.block for kind in spec.layer_kinds if _has_input_norm(kind)]
    return having[0] if having else spec.layer.block


def _comparable(fullest: BlockSpec, kind: LayerKind) -> BlockSpec:
    """The kind's block as it would be with its attention norm."""
    return dataclasses.replace(
        kind.block,
        attention_input_norm=fullest.attention_input_norm,
        norms=fullest.norms,
    )


def plan_block(spec: ModelSpec) -> Answers:
    """Answers of the block axis."""
    block = _fullest(spec)
    constant(spec, "block", lambda kind: _comparable(block, kind))
    condition = ""
    if block.attention_input_norm:
        condition = condition_of(spec, "block", _has_input_norm, True)
    form = block_form(block, spec.head.final_norm is not None, uniform=not condition)
    attention, mlp = code(block.attention_coefficient), code(block.mlp_coefficient)
    return {
        "block_form": form,
        "block_norms": [name for name, _ in block.norms],
        "attention_input_norm": block.attention_input_norm or "",
        "attention_input_norm_condition": condition,
        "attention_output_norm": block.attention_output_norm or "",
        "post_attention_norm": block.post_attention_norm or "",
        "mlp_input_norm": block.mlp_input_norm or "",
        "mlp_output_norm": block.mlp_output_norm or "",
        "post_mlp_norm": block.post_mlp_norm or "",
        "residual_after_norm": block.residual_after_norm,
        "attention_coefficient": attention,
        "mlp_coefficient": mlp,
        "attention_residual": code(block.attention_residual),
        "mlp_residual": code(block.mlp_residual),
    }
