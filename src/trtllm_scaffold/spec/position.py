"""The position axis: how a layer kind knows where a token stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtllm_scaffold.spec.quantity import Quantity


@dataclass(frozen=True)
class RopeScaling:
    """A change of the rotary frequencies for long sequences.

    Attributes:
        kind: The name transformers uses: linear, dynamic, yarn, llama3 or longrope.
        parameters: Every parameter as (name, value), lists as tuples, for the given
            configuration.
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3", "longrope"]
    parameters: tuple[tuple[str, float | int | bool | tuple[float, ...]], ...]

    def get(self, name: str) -> float | int | bool | tuple[float, ...] | None:
        """The parameter called `name`, or None."""
        return dict(self.parameters).get(name)


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding.

    Attributes:
        style: ``neox`` pairs dimension j with j + dim/2, ``interleaved`` 2j with 2j + 1.
        dim: Rotated dimensions, the first of each head.
        theta: Base of the frequencies. An empty expression stands for the usual keys
            (rope_theta, rope_scaling, rope_parameters), which every port reads itself; another
            expression may use ``layer_idx``.
        scaling: The change for long sequences, if any.
        inverse: The rotation turns the other way (its sine is negated).
        layer_type: Key of this rotation's entry where the configuration keeps its rotary
            parameters by layer type, such as ``sliding_attention``; empty where it does not.
    """

    style: Literal["neox", "interleaved"]
    dim: Quantity
    theta: Quantity
    scaling: RopeScaling | None = None
    inverse: bool = False
    layer_type: str = ""


@dataclass(frozen=True)
class LearnedSpec:
    """A table of learned vectors added to the token embedding.

    Attributes:
        offset: Added to the position before the lookup (2 for OPT).
        rows: Rows of the table.
    """

    offset: int
    rows: Quantity


@dataclass(frozen=True)
class SinusoidalSpec:
    """A fixed table of sines and cosines added to the token embedding.

    Entry (p, j) has the angle p / base ** (2 j / width), width being hidden_size.

    Attributes:
        layout: ``concatenated`` puts all sines before all cosines, ``alternating`` takes turns.
        base: 10000 in all known models.
        offset: Added to the position before the lookup.
    """

    layout: Literal["concatenated", "alternating"]
    base: float = 10000.0
    offset: int = 0


@dataclass(frozen=True)
class AlibiSpec:
    """A bias on the scores: slope of the head times (key position - query position).

    Attributes:
        slopes: ``press`` are those of the ALiBi paper for the number of heads, with its rule
            where that is no power of two; ``mpt`` the same rule with a maximum bias of its own.
        max_bias: 8 in the paper.
        scaled: The bias is multiplied by the softmax scale, as the scores are.
    """

    slopes: Literal["press", "mpt"] = "press"
    max_bias: float = 8.0
    scaled: bool = False


@dataclass(frozen=True)
class PositionSpec:
    """Where positions enter: exactly one of the fields fits `kind`.

    `rope` is that of the first layer that has one: `LayerKind.rope` tells each layer's.
    """

    kind: Literal["rope", "learned", "alibi", "sinusoidal", "relative", "none"]
    rope: RopeSpec | None = None
    learned: LearnedSpec | None = None
    sinusoidal: SinusoidalSpec | None = None
    alibi: AlibiSpec | None = None
