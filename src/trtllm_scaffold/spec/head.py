"""The head axis: from the last layer's output to logits."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_scaffold.spec.norm import NormSpec
from trtllm_scaffold.spec.quantity import Quantity


@dataclass(frozen=True)
class DenseHead:
    """A dense layer before the language-model head: norm(activation(dense(x))).

    Attributes:
        activation: One of the mlp axis' names.
        norm: The norm behind it.
        bias: Whether the dense layer adds a bias.
    """

    activation: str
    norm: NormSpec
    bias: bool = False


@dataclass(frozen=True)
class HeadSpec:
    """The final norm and the language-model head.

    Attributes:
        final_norm: The norm before the head, or None.
        tied: The head's weight is the embedding's.
        bias: Whether the head adds a bias.
        multiplier: Factor on the logits, if any.
        softcap: c of ``c * tanh(logits / c)``, if any.
        projection: Whether a bias-free linear maps hidden_size to the embedding width first.
        dense: The dense layer between the final norm and the head, if any.
    """

    final_norm: NormSpec | None
    tied: bool
    bias: bool = False
    multiplier: Quantity | None = None
    softcap: Quantity | None = None
    projection: bool = False
    dense: DenseHead | None = None
