"""Measures the linear map that each position applies to a head, with few probes."""

from __future__ import annotations

from collections.abc import Callable

import torch

_PROBES = 3  # two numbers to solve for, and one probe to check them
_CLOSE = 1e-5  # of the largest output: what rounding may do to a solution
_EXACT = 5e-7  # relative: what rounding may do to one product
_MARGIN = 10.0  # by which the second best partner must fit worse


def matrices(
    outputs: Callable[[torch.Tensor], torch.Tensor],
    columns: torch.Tensor,
    last: int,
    sequence: int,
) -> torch.Tensor | None:
    """[sequence, width, width]: output from input of a head; None where positions do not matter.

    A rotation mixes pairs: three probes tell which, and two more, with one input of each pair,
    read the entries off. Where outputs are no such pairs, each input is probed alone.

    Args:
        outputs: The head's outputs [sequence, width] for one vector [last] at every position.
        columns: [width]: the entry of that vector that each input of the head is.
        last: Entries of the vector.
        sequence: Positions.
    """
    generator = torch.Generator().manual_seed(0)
    probes = [torch.zeros(last) for _ in range(_PROBES)]
    for probe in probes:
        probe[columns] = torch.rand(len(columns), generator=generator) + 0.5
    seen = torch.stack([outputs(probe) for probe in probes])  # [probes, sequence, width]
    if bool((seen == seen[:, :1]).all()):
        return None
    inputs = torch.stack([probe[columns] for probe in probes])  # [probes, width]
    partner = _partners(inputs.double(), seen.double())
    width = len(columns)
    if partner is None:
        groups = [[place] for place in range(width)]
    else:
        alone = [a for a in range(width) if a <= int(partner[a])]
        groups = [alone, [a for a in range(width) if a > int(partner[a])]]
    found = torch.zeros(sequence, width, width)
    for group in groups:
        probe = torch.zeros(last)
        probe[columns[group]] = 1.0
        out = outputs(probe)
        for place in group:
            rows = range(width) if partner is None else {place, int(partner[place])}
            for row in rows:
                found[:, row, place] = out[:, row]
    return found


def _partners(inputs: torch.Tensor, seen: torch.Tensor) -> torch.Tensor | None:
    """[width]: the other input of each output, itself for none; None where there are more.

    Args:
        inputs: [3, width].
        seen: [3, sequence, width].
    """
    width = inputs.shape[1]
    own, other = inputs[:, :, None], inputs[:, None, :]  # [probes, output, partner]
    determinant = own[0] * other[1] - own[1] * other[0]  # [output, partner]
    determinant.fill_diagonal_(1.0)
    y = seen[..., None]  # [probes, sequence, output, 1]
    first = (y[0] * other[1] - y[1] * other[0]) / determinant
    second = (own[0] * y[1] - own[1] * y[0]) / determinant
    error = (first * own[2] + second * other[2] - y[2]).abs()  # [sequence, output, partner]
    error = error.amax(0).fill_diagonal_(float("inf"))
    best = error.topk(2, dim=1, largest=False)
    factor = (seen / inputs[:, None]).flatten(0, 1)  # [probes * sequence, output]
    fixed = (factor - factor[:1]).abs().amax(0) <= _EXACT * factor.abs().amax(0)
    fits = best.values[:, 0] <= _CLOSE * seen.abs().amax()
    clear = best.values[:, 0] * _MARGIN <= best.values[:, 1]
    places = torch.arange(width)
    partner = torch.where(fixed, places, best.indices[:, 0])
    if not bool((fixed | (fits & clear)).all()) or not torch.equal(partner[partner], places):
        return None
    return partner
