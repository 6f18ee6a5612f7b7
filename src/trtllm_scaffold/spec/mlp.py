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
    """

    kind: Literal["gated", "plain"]
    activation: str
    intermediate_size: Quantity
    up_bias: bool
    down_bias: bool
    gate_bias: bool = False
    down_norm: NormSpec | None = None
    activation_parameters: tuple[tuple[str, float], ...] = ()
