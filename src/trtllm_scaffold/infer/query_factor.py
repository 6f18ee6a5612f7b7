"""Reads a factor on queries that grows with the position, in steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.layers import Layer

_EXACT = 1e-5


@dataclass(frozen=True)
class QueryFactorFacts:
    """Attributes:
    scale, period: a and b of ``1 + a * log(1 + floor((position + 1) / b))``.
    """

    scale: float
    period: int


def read_query_factor(layer: Layer, matrices: torch.Tensor) -> QueryFactorFacts:
    """Read the factor off what each position does to a head.

    Args:
        layer: For messages.
        matrices: [sequence, out, in] of one head, relative to nothing.

    Raises:
        Refused: It is no factor, or one of another form.
    """
    diagonal = matrices.double().diagonal(dim1=1, dim2=2)  # [sequence, head_dim]
    rest = matrices.double() - torch.diag_embed(diagonal)
    values = diagonal[:, 0]
    if bool((rest.abs() > _EXACT).any()) or bool(
        ((diagonal - values[:, None]).abs() > _EXACT).any()
    ):
        raise _refused(layer, "queries alone are changed by position")
    changed = (values - values[0]).abs() > _EXACT
    if not bool(changed.any()):
        raise _refused(layer, "queries alone are changed by position")
    period = int(changed.nonzero()[0]) + 1
    scale = (float(values[period - 1]) - 1) / math.log(2)
    steps = torch.floor((torch.arange(len(values)).double() + 1) / period)
    expected = 1 + scale * torch.log1p(steps)
    if bool(((expected - values).abs() > 1e-4).any()):
        raise _refused(layer, "a factor on the query grows with the position in an unknown way")
    return QueryFactorFacts(scale, period)


def _refused(layer: Layer, problem: str) -> Refused:
    return Refused("attention", problem, where=layer.name)
