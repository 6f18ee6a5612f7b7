"""Reads a factor on queries that grows with the position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.graph import ReplayError
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.quantity import nice_number
from trtllm_scaffold.infer.segments import Segment

_EXACT = 1e-5
_CLOSE = 3e-6  # relative: what rounding to fp32 may do to a factor, a few times
_WHOLE = 1e-3  # relative: how well a period is solved for
#: Positions far beyond any tiny model's window, where factors that start at 1 have grown.
_FAR = torch.tensor([0, 1, 2, 5, 17, 99, 512, 1023, 4096, 8191, 30_000, 65_535, 131_071, 500_000])

Growth = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class QueryFactorFacts:
    """Attributes:
    scale, period, form: See `QueryFactorSpec`.
    """

    scale: float
    period: int
    form: Literal["steps", "power"] = "steps"

    def at(self, positions: torch.Tensor) -> torch.Tensor:
        """The factor at each position, in fp64."""
        part = (positions.double() + 1) / self.period
        if self.form == "steps":
            return 1 + self.scale * torch.log1p(torch.floor(part))
        return torch.exp(self.scale * torch.log1p(part))


def read_query_factor(
    layer: Layer, matrices: torch.Tensor, far: Growth | None = None
) -> QueryFactorFacts:
    """Read the factor off what each position does to a head.

    Args:
        layer: For messages.
        matrices: [sequence, out, in] of one head, relative to nothing.
        far: Positions, and the factor at each, where positions can be replaced: see `grown`.

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
    positions = torch.arange(len(values))
    for guess in (_power(far) if far else None, _steps(values)):
        if guess is None or not _equal(guess.at(positions), values):
            continue
        if far is None or _equal(guess.at(far[0]), far[1]):
            return guess
    if not bool(((values - values[0]).abs() > _EXACT).any()):
        raise _refused(layer, "queries alone are changed by position")
    raise _refused(layer, "a factor on the query grows with the position in an unknown way")


def grown(layer: Layer, segment: Segment, heads: int) -> Growth | None:
    """Positions that a tiny model does not reach, and the factor on its first query head there.

    Args:
        layer: The layer.
        segment: The way from a value to the queries [batch * heads, sequence, head_dim].
        heads: Query heads.

    Returns:
        None where the forward does not count positions itself, or does more than scale.
    """
    length = layer.graph.tokens.shape[1]
    counts = [
        value
        for value in layer.graph.ancestors(segment.target, [segment.source])
        if value.node is not None and value.node.name == "arange" and value.shape == (length,)
    ]
    if not counts or any(not torch.equal(v.data, torch.arange(length)) for v in counts):
        return None
    found = []
    for positions in _FAR.split(length):
        filled = torch.nn.functional.pad(positions, (0, length - len(positions)))
        given = {segment.source: torch.ones(segment.source.shape), **dict.fromkeys(counts, filled)}
        try:
            path = layer.graph.path(given, segment.target)
            out = layer.graph.replay(path, given, segment.target)
        except (ReplayError, RuntimeError):
            return None
        factor = out.unflatten(0, (-1, heads))[0, 0][: len(positions)]  # [positions, head_dim]
        if bool((factor != factor[:, :1]).any()):
            return None
        found.append(factor[:, 0].double())
    return _FAR, torch.cat(found)


def _steps(values: torch.Tensor) -> QueryFactorFacts | None:
    """The stepwise form that the first step shows."""
    changed = (values - values[0]).abs() > _EXACT
    if not bool(changed.any()):
        return None
    period = int(changed.nonzero()[0]) + 1
    return QueryFactorFacts((float(values[period - 1]) - 1) / math.log(2), period)


def _power(far: Growth) -> QueryFactorFacts | None:
    """The smooth form that two far positions show."""
    positions, factors = far
    near, last = positions[len(positions) // 2], positions[-1]
    logs = [float(factors[positions == place].log()) for place in (near, last)]
    if 0 in logs:
        return None
    low, high = 0.0, 60.0  # bits of the period: the ratio of the logarithms grows with it
    for _ in range(100):
        period = 2 ** ((low + high) / 2)
        ratio = math.log1p((int(last) + 1) / period) / math.log1p((int(near) + 1) / period)
        low, high = (
            ((low + high) / 2, high) if ratio < logs[1] / logs[0] else (low, (low + high) / 2)
        )
    whole = round(period)
    if whole < 1 or abs(whole - period) > _WHOLE * period:
        return None
    scale = nice_number(logs[1] / math.log1p((int(last) + 1) / whole), _CLOSE)
    return QueryFactorFacts(float(scale), whole, "power")


def _equal(guess: torch.Tensor, seen: torch.Tensor) -> bool:
    return bool(((guess - seen).abs() <= _CLOSE * seen.abs()).all())


def _refused(layer: Layer, problem: str) -> Refused:
    return Refused("attention", problem, where=layer.name)
