"""One parameter that a port must fill, and how tensor parallelism divides it."""

from __future__ import annotations

from collections.abc import Iterator
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


def linear(
    module: str,
    shape: tuple[int, int],
    *,
    bias: object,
    split: int | None = None,
    heads: int | None = None,
) -> Iterator[tuple[str, Parameter]]:
    """The parameters of a projection: its weight, and a bias if `bias` is true.

    Args:
        module: Its canonical name.
        shape: [out, in].
        bias: Whether it has one; split with the rows, whole on each rank otherwise.
        split: See `Parameter`.
        heads: See `Parameter`.
    """
    yield f"{module}.weight", Parameter(shape, split=split, heads=heads)
    if bias:
        by_rows = split == 0
        yield (
            f"{module}.bias",
            Parameter(shape[:1], split=0 if by_rows else None, heads=heads if by_rows else None),
        )
