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
        theta: Base of the frequencies.
        scaling: The change for long sequences, if any.
    """

    style: Literal["neox", "interleaved"]
    dim: Quantity
    theta: Quantity
    scaling: RopeScaling | None = None


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
class PositionSpec:
    """Where positions enter: exactly one of the fields fits `kind`."""

    kind: Literal["rope", "learned", "alibi", "sinusoidal", "relative", "none"]
    rope: RopeSpec | None = None
    learned: LearnedSpec | None = None
