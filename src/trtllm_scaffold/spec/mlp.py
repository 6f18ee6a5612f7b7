"""The mlp axis: the dense feed-forward of one layer kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtllm_scaffold.spec.norm import NormSpec
from trtllm_scaffold.spec.quantity import Quantity

#: Activation names, by formula. `gelu` uses erf, `gelu_tanh` the tanh approximation.
#: `xielu` has parameters of its own, per layer.
ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2", "xielu")


@dataclass(frozen=True)
class MlpSpec:
    """A dense feed-forward.

    Attributes:
        kind: ``gated``: down(act(gate(x)) * up(x)); ``plain``: down(act(up(x))).
        activation: One of `ACTIVATIONS`.
        intermediate_size: Width between the projections.
        gate_bias, up_bias, down_bias: Whether each projection adds a bias.
        down_norm: A norm over the intermediate width before the last projection, if any.
        activation_parameters: For an activation with parameters, its constants as
            (name, value), such as xielu's beta and eps.
        clamp: Bound c of a clamped gate min(gate, c) and up clip(up, -c, c), if any.
        swish_beta: b of gate * sigmoid(b * gate), where it is not 1.
        up_offset: Added to up before the product.
    """

    kind: Literal["gated", "plain"]
    activation: str
    intermediate_size: Quantity
    up_bias: bool
    down_bias: bool
    gate_bias: bool = False
    down_norm: NormSpec | None = None
    activation_parameters: tuple[tuple[str, float], ...] = ()
    clamp: Quantity | None = None
    swish_beta: Quantity | None = None
    up_offset: float = 0.0

    @property
    def label(self) -> str:
        """Kind, activation and what changes it, in words."""
        text = f"{self.kind} {self.activation}"
        if self.swish_beta is not None or self.up_offset != 0:
            return f"{text}, with a slope and an offset"
        return text if self.clamp is None else f"{text}, clamped"

    @property
    def constants(self) -> tuple[Quantity | None, Quantity | None, float]:
        """The clamp, the slope and the offset."""
        return self.clamp, self.swish_beta, self.up_offset
