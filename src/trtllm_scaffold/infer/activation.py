"""Recognises activations by their formulas, on other numbers than the recorded ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from trtllm_scaffold.infer.quantity import nice_number

#: Each activation name of `ACTIVATIONS` that has no parameters, and its formula.
FORMULAS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}

_RANGE = 4.0
_TOLERANCE = 2e-5
_SOLVED = 1e-3  # relative error of a number that was solved for
_BFLOAT16 = 4e-3  # relative error of a constant that a class keeps in bfloat16


@dataclass(frozen=True)
class Parametric:
    """An activation with parameters of its own.

    Attributes:
        name: One of `ACTIVATIONS`.
        parameters: (role, index in the given parameters).
        constants: See `MlpSpec.activation_parameters`.
    """

    name: str
    parameters: tuple[tuple[str, int], ...]
    constants: tuple[tuple[str, float], ...]


def numbers(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Numbers on which the formulas differ, evenly spread around 0."""
    generator = torch.Generator().manual_seed(seed)
    return _RANGE * (2.0 * torch.rand(tuple(shape), generator=generator) - 1.0)


def equal(result: torch.Tensor, guess: torch.Tensor) -> bool:
    """Whether an output is what a formula gives."""
    return torch.allclose(result, guess, atol=_TOLERANCE, rtol=_TOLERANCE)


def named(x: torch.Tensor, result: torch.Tensor) -> str | None:
    """The activation without parameters that makes `result` of `x`, or None."""
    return next((name for name, formula in FORMULAS.items() if equal(result, formula(x))), None)


def xielu(
    function: Callable[[torch.Tensor], torch.Tensor], parameters: Sequence[torch.Tensor]
) -> Parametric | None:
    """Recognise the expanded integral of ELU, or return None.

    With the slopes p = softplus(parameter) and n = beta + softplus(other parameter) it is
    p x^2 + beta x above 0, and (expm1(min(x, eps)) - x) n + beta x elsewhere
    (Huang and Schlag, "Deriving Activation Functions Using Integration", 2024).

    Args:
        function: The activation, elementwise; takes a vector.
        parameters: Of one element each.
    """
    if len(parameters) != 2 or any(p.numel() != 1 for p in parameters):
        return None
    x = torch.linspace(-_RANGE, _RANGE, 257)
    y = function(x).double()
    above, far = x > 0, x < -_RANGE / 2
    wide = x.double()
    squares = torch.stack([wide[above] ** 2, wide[above]], 1)
    positive, beta = torch.linalg.lstsq(squares, y[above, None]).solution.flatten().tolist()
    bend = wide[far].expm1() - wide[far]
    negative = float((bend * (y[far] - beta * wide[far])).sum() / bend.square().sum())
    at_zero = float(y[x == 0][0])
    if abs(negative) < _SOLVED or at_zero / negative <= -1.0:
        return None
    eps = float(torch.tensor(at_zero / negative, dtype=torch.double).log1p())
    low = (wide.clamp(max=eps).expm1() - wide) * negative
    guess = torch.where(above, positive * wide**2, low) + beta * wide
    slopes = [float(functional.softplus(p.detach().double())) for p in parameters]
    order = (0, 1) if abs(slopes[0] - positive) < abs(slopes[1] - positive) else (1, 0)
    wanted = (positive, negative - beta)
    close = all(abs(slopes[i] - w) < _SOLVED for i, w in zip(order, wanted, strict=True))
    if not close or not torch.allclose(y, guess, atol=1e-4, rtol=1e-4):
        return None
    constants = (("beta", nice_number(beta, _BFLOAT16)), ("eps", nice_number(eps, _BFLOAT16)))
    return Parametric("xielu", (("alpha_p", order[0]), ("alpha_n", order[1])), constants)
