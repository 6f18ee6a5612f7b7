"""The norm axis: what one normalisation computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtllm_scaffold.spec.quantity import Quantity


@dataclass(frozen=True)
class NormGateSpec:
    """A factor on a norm's output y, computed from it: sigmoid(up(silu(down(y)))).

    Attributes:
        rank: Width between the two linear functions, which have no biases.
    """

    rank: Quantity


@dataclass(frozen=True)
class NormSpec:
    """One normalisation over the last dimension.

    Attributes:
        kind: ``rmsnorm`` (x / rms(x)) or ``layernorm`` ((x - mean(x)) / std(x)).
        eps: Added to the mean square or the variance under the root.
        weight: Whether a learned scale multiplies the result.
        bias: Whether a learned shift is added.
        plus_one: The scale is stored as w and applied as 1 + w.
        gate: The gate on the result, if any.
    """

    kind: Literal["rmsnorm", "layernorm"]
    eps: Quantity
    weight: bool = True
    bias: bool = False
    plus_one: bool = False
    gate: NormGateSpec | None = None

    @property
    def label(self) -> str:
        """The name that `inspect` prints."""
        return f"{self._plain}, gated" if self.gate else self._plain

    @property
    def _plain(self) -> str:
        if not self.weight:
            return f"{self.kind} without weight"
        if self.plus_one:
            return f"{self.kind} 1+w"
        if self.kind == "layernorm" and not self.bias:
            return "layernorm without bias"
        return self.kind
