"""Solves for the weights that experts have in the output of a layer of experts."""

from __future__ import annotations

import torch

from trtllm_scaffold.infer.experts import Parts
from trtllm_scaffold.infer.moe_block import EXACT, Block

_ABSENT = 1e-5  # of a token's largest weight: no weight at all


def solve_weights(
    block: Block, parts: Parts, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weights [tokens, experts] of the experts' outputs, and the shared one's factor [tokens].

    None where no weights explain the output.
    """
    experts, seen = parts.router.rows, block(x).double()
    columns = [parts.expert.apply(x, block.held, e, experts) for e in range(experts)]
    if parts.shared is not None:
        columns.append(parts.shared.apply(x, block.held))
    basis = torch.stack(columns, -1).double()  # [tokens, hidden_size, columns]
    size = basis.square().sum(1, keepdim=True).sqrt()
    basis = basis / size
    normal = basis.transpose(1, 2) @ basis
    solution = torch.linalg.solve(normal, (basis.transpose(1, 2) @ seen[..., None]))
    error = (basis @ solution).squeeze(-1) - seen
    if float(error.abs().amax() / seen.abs().amax()) > EXACT:
        return None
    weights = solution.squeeze(-1) / size.squeeze(1)
    factor = weights[:, experts:].squeeze(-1)
    own = weights[:, :experts]
    largest = weights.abs().amax(-1, keepdim=True)
    return torch.where(own.abs() > _ABSENT * largest, own, 0.0), factor
