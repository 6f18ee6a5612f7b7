"""The block axis: the equation of one decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_scaffold.spec.norm import NormSpec
from trtllm_scaffold.spec.quantity import Quantity


@dataclass(frozen=True)
class BlockSpec:
    """The layer's equation, by the norms that stand on its paths.

    Sequential (x is the layer's input, every norm optional)::

        h = post_attention(r * x + a * attention_output(attention(attention_input(x))))
        y = post_mlp(s * h + m * mlp_output(mlp(mlp_input(h))))

    Parallel::

        y = x + a * attention_output(attention(attention_input(x)))
              + m * mlp_output(mlp(mlp_input(x)))

    Attributes:
        parallel: Which of the two equations.
        attention_input_norm, attention_output_norm, post_attention_norm: Names of norms.
        mlp_input_norm, mlp_output_norm, post_mlp_norm: Names of norms. In a parallel block
            with one shared norm, `mlp_input_norm` equals `attention_input_norm`.
        norms: Each named norm, in the order of the HF module. Names are the attribute names
            of the HF layer, checked identifiers.
        attention_coefficient, mlp_coefficient: a and m, or None for 1. Their expressions may
            use ``layer_idx``; the value is that of the first layer then.
        attention_residual, mlp_residual: r and s, the same way.
        residual_after_norm: In a sequential block, the sums add to the branch's normalised
            input instead of to x and h.
    """

    parallel: bool
    norms: tuple[tuple[str, NormSpec], ...]
    attention_input_norm: str | None = None
    attention_output_norm: str | None = None
    post_attention_norm: str | None = None
    mlp_input_norm: str | None = None
    mlp_output_norm: str | None = None
    post_mlp_norm: str | None = None
    attention_coefficient: Quantity | None = None
    mlp_coefficient: Quantity | None = None
    residual_after_norm: bool = False
    attention_residual: Quantity | None = None
    mlp_residual: Quantity | None = None

    @property
    def placement(self) -> str:
        """pre, post, parallel (one or two norms), branch_output or sandwich."""
        if self.parallel:
            shared = self.attention_input_norm == self.mlp_input_norm
            return "parallel, one norm" if shared else "parallel, two norms"
        if self.post_attention_norm or self.post_mlp_norm:
            return "post"
        inputs = self.attention_input_norm is not None
        outputs = self.attention_output_norm is not None
        if inputs and outputs:
            return "sandwich"
        return "branch_output" if outputs else "pre"
