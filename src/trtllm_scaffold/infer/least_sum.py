"""Finds what keeps a router from dividing by a sum of almost nothing."""

from __future__ import annotations

from dataclasses import replace

import torch

from trtllm_scaffold.infer.experts import Parts, refused
from trtllm_scaffold.infer.moe_block import Block
from trtllm_scaffold.infer.quantity import nice_number
from trtllm_scaffold.infer.routing import Routing, apply_routing
from trtllm_scaffold.infer.solve import solve_weights

#: Depths of the logits at which sums of scores become as small as what is added to them.
_DEPTHS = tuple(range(-46, -3))


def with_least_sum(block: Block, parts: Parts, routing: Routing, times: float) -> Routing:
    """The routing with what keeps a small sum of scores from being a divisor, if anything does.

    The router's matrix is changed so that the chosen scores are tiny.
    """
    total, share = _shares(block, parts, routing, times, _DEPTHS[0])
    if float(share.median()) > 0.999:
        return routing
    low, high = 0, len(_DEPTHS) - 1
    while low < high:  # the first depth at which a good part of the weight is left
        middle = (low + high) // 2
        total, share = _shares(block, parts, routing, times, _DEPTHS[middle])
        low, high = (low, middle) if float(share.median()) > 0.2 else (middle + 1, high)
    return _least_sum(block, routing, *_shares(block, parts, routing, times, _DEPTHS[low]))


def _shares(
    block: Block, parts: Parts, routing: Routing, times: float, depth: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of the chosen scores, and that of the weights, for logits around a depth."""
    x, tensors = _sinking(block, parts, routing, float(depth))
    with block.changed(tensors):
        solved = solve_weights(block, parts, x)
        plain = replace(routing, renormalised=False, scaling=1.0)
        scores, _ = apply_routing(plain, block.logits(parts, x), block.selection_bias(parts))
    if solved is None:
        raise refused(block.name, "its output is no weighted sum where scores are small")
    total = scores.sum(-1)
    return total, times * solved[0].sum(-1) / routing.scaling


def _least_sum(block: Block, routing: Routing, total: torch.Tensor, share: torch.Tensor) -> Routing:
    """Something added to the sum, or a bound of it: whichever explains every token."""
    added = total / share - total
    bound = (total / share)[share < 0.99]
    epsilon, floor = float(added.median()), float(bound.median())
    fits = {
        "epsilon": bool(((added - epsilon).abs() < 1e-2 * epsilon).all()),
        "floor": bool(((bound - floor).abs() < 1e-2 * floor).all()),
    }
    if fits["epsilon"] == fits["floor"]:
        raise refused(block.name, "what is added to the sum of its weights cannot be told")
    if fits["epsilon"]:
        return replace(routing, epsilon=float(nice_number(epsilon, 1e-2)))
    return replace(routing, floor=float(nice_number(floor, 1e-3)))


def _sinking(
    block: Block, parts: Parts, routing: Routing, depth: float
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Tokens and a router for which the chosen logits are around `depth`, and spread a little.

    Where a softmax needs others to be large, the selection bias decides the choice.
    """
    experts = parts.router.rows
    x = block.tokens(64, 4)
    x[:, 0] = 1.0
    place = parts.router.weight[0].name
    stored = block.held[place]
    matrix = (stored.t() if parts.router.transposed else stored).clone()
    matrix = 0.5 * matrix
    matrix[:, 0] = depth
    tensors = {}
    if routing.scores not in ("sigmoid", "topk_sigmoid") and parts.selection_bias:
        bias = block.held[parts.selection_bias]
        group = experts // routing.num_groups
        chosen = [i % routing.top_groups * group + i // routing.top_groups for i in range(experts)]
        chosen = chosen[: routing.top_k]
        others = [e for e in range(experts) if e not in chosen]
        matrix[others, 0] = 0.0
        sunk = torch.zeros(experts)
        sunk[chosen] = 8.0
        tensors[parts.selection_bias] = sunk.reshape(bias.shape)
    tensors[place] = matrix.t() if parts.router.transposed else matrix
    return x, tensors
