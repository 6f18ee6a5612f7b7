"""The block axis of a port: which form the layer's equation takes."""

from __future__ import annotations

from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.spec import BlockSpec, ModelSpec


def block_form(block: BlockSpec, has_final_norm: bool) -> str:
    """``fused`` (norm(x, residual)), ``parallel`` or ``sequential`` (sums written out)."""
    if block.parallel:
        return "parallel"
    plain = block.attention_coefficient is None and block.mlp_coefficient is None
    fused = block.placement == "pre" and plain and has_final_norm and block.mlp_input_norm
    return "fused" if fused else "sequential"


def plan_block(spec: ModelSpec) -> Answers:
    """Answers of the block axis."""
    block = spec.layer.block
    return {
        "block_form": block_form(block, spec.head.final_norm is not None),
        "block_norms": [name for name, _ in block.norms],
        "attention_input_norm": block.attention_input_norm or "",
        "attention_output_norm": block.attention_output_norm or "",
        "post_attention_norm": block.post_attention_norm or "",
        "mlp_input_norm": block.mlp_input_norm or "",
        "mlp_output_norm": block.mlp_output_norm or "",
        "post_mlp_norm": block.post_mlp_norm or "",
    }
