"""One parameter that a port must fill, and how tensor parallelism divides it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """One canonical (unfused) parameter.

    Attributes:
        shape: [out, in] of a matrix, [size] of a vector.
        split: The dimension that tensor parallelism splits; None where each rank has it whole.
        heads: Key-value or query heads along `split`: whole heads go to a rank.
    """

    shape: tuple[int, ...]
    split: int | None = None
    heads: int | None = None
