"""Fits what a feed-forward computes between its first and its last projection."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from trtllm_scaffold.infer.activation import FORMULAS, numbers
from trtllm_scaffold.infer.quantity import nice_number

#: The results of the first projections -> the input of the last one.
Between = Callable[[Sequence[torch.Tensor]], torch.Tensor]

_TOLERANCE = 2e-5
_WIDER = (1.0, 12.0, 2000.0)  # larger numbers show bounds that the usual ones do not reach
_FAR = 1e4  # beyond every bound
_SOLVED = 1e-4


@dataclass(frozen=True, eq=False, repr=False)
class Gating:
    """(up + offset) * activation(gate), both clamped; or activation(up) where there is no gate.

    Attributes:
        activation: One of the mlp axis' names.
        gate, up: (which first projection, its output columns); gate is None in a plain one.
        alternating: Gate and up take turns in the columns of one projection.
        clamp: Bound c of min(gate, c) and clip(up, -c, c), or None.
        beta: b of gate * sigmoid(b * gate); 1 for silu.
        offset: Added to up.
    """

    activation: str
    gate: tuple[int, torch.Tensor] | None
    up: tuple[int, torch.Tensor]
    alternating: bool = False
    clamp: float | None = None
    beta: float = 1.0
    offset: float = 0.0

    def __call__(self, first: Sequence[torch.Tensor]) -> torch.Tensor:
        """Apply it to the results of the first projections [..., rows]."""
        up = first[self.up[0]][..., self.up[1]]
        if self.gate is None:
            return FORMULAS[self.activation](up)
        gate = first[self.gate[0]][..., self.gate[1]]
        if self.clamp is not None:
            gate, up = gate.clamp(max=self.clamp), up.clamp(-self.clamp, self.clamp)
        if self.beta != 1.0:
            return gate * torch.sigmoid(self.beta * gate) * (up + self.offset)
        return FORMULAS[self.activation](gate) * (up + self.offset)


def fit_gating(between: Between, shapes: Sequence[Sequence[int]], width: int) -> Gating | None:
    """Find the formula of `between`, or return None.

    Args:
        between: The recorded operations.
        shapes: Shape of each first projection's result.
        width: Of the last projection's input.
    """
    near = [numbers(shape, seed) for seed, shape in enumerate(shapes)]
    results = [(given, between(given)) for given in ([k * n for n in near] for k in _WIDER)]

    def fits(guess: Gating) -> bool:
        return all(_equal(seen.reshape(-1, width), guess(_flat(given))) for given, seen in results)

    for gate, up, alternating in _forms([shape[-1] for shape in shapes], width):
        for name in FORMULAS:
            guess = Gating(name, gate, up, alternating)
            if fits(guess):
                return guess
    for gate, up, alternating in _forms([shape[-1] for shape in shapes], width):
        bounded = None if gate is None else _bounded(between, shapes, gate, up, alternating)
        if bounded is not None and fits(bounded):
            return bounded
    return None


def _flat(given: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.reshape(-1, tensor.shape[-1]) for tensor in given]


def _equal(seen: torch.Tensor, guess: torch.Tensor) -> bool:
    scale = float(seen.abs().amax())
    return bool(((seen - guess).abs() <= _TOLERANCE * (guess.abs() + 0.01 * scale + 1.0)).all())


def _forms(
    rows: Sequence[int], width: int
) -> Iterator[tuple[tuple[int, torch.Tensor] | None, tuple[int, torch.Tensor], bool]]:
    """Every (gate, up, alternating) that the widths allow."""
    every = torch.arange(width)
    if list(rows) == [width]:
        yield None, (0, every), False
    if list(rows) == [width, width]:
        yield (0, every), (1, every), False
        yield (1, every), (0, every), False
    if list(rows) == [2 * width]:
        yield (0, every), (0, every + width), False
        yield (0, every + width), (0, every), False
        yield (0, 2 * every), (0, 2 * every + 1), True
        yield (0, 2 * every + 1), (0, 2 * every), True


def _bounded(
    between: Between,
    shapes: Sequence[Sequence[int]],
    gate: tuple[int, torch.Tensor],
    up: tuple[int, torch.Tensor],
    alternating: bool,
) -> Gating | None:
    """Solve for offset, bound and beta at single points of gate and up."""

    def at(gate_value: float, up_value: float) -> float:
        given = [torch.zeros(tuple(shape)) for shape in shapes]
        given[gate[0]][..., gate[1]] = gate_value
        given[up[0]][..., up[1]] = up_value
        return float(between(given).flatten()[0])

    zero, one = at(1.0, 0.0), at(1.0, 1.0)
    slope = one - zero
    if not 1e-3 < slope < 1.0:
        return None
    offset, beta = zero / slope, math.log(slope / (1.0 - slope))
    bound = at(1.0, _FAR) / slope - offset
    return Gating(
        "silu",
        gate,
        up,
        alternating,
        clamp=None if bound > _FAR / 2 else float(nice_number(bound, _SOLVED)),
        beta=1.0 if abs(beta - 1.0) < _SOLVED else float(nice_number(beta, _SOLVED)),
        offset=0.0 if abs(offset) < _SOLVED else float(nice_number(offset, _SOLVED)),
    )
