"""Finds a router's formula by observation: which weights the experts have, token by token."""

from __future__ import annotations

from typing import Literal

import torch

from trtllm_scaffold.infer.experts import Parts, refused
from trtllm_scaffold.infer.least_sum import with_least_sum
from trtllm_scaffold.infer.moe_block import EXACT, Block, MoeFacts, difference
from trtllm_scaffold.infer.routing import Routing, Seen, apply_routing, fit_routing
from trtllm_scaffold.infer.solve import solve_weights


def weights_on_output(block: Block, parts: Parts, x: torch.Tensor) -> MoeFacts | None:
    """The formula whose weights multiply outputs, from the weights that solve for the output."""
    solved = solve_weights(block, parts, x)
    if solved is None:
        return None
    weights, factor = solved
    join = _join(block, parts, x, factor)
    if join is None:
        raise refused(block.name, "how the shared feed-forward joins is none of the known ways")
    if join == "mean":
        weights = 2.0 * weights
    seen = Seen(block.logits(parts, x), weights, block.selection_bias(parts))
    found = fit_routing(seen, softcap=parts.softcap, softmax_first=parts.softmax_first)
    routing = only_one(found, block.name)
    if routing.renormalised and (routing.scores == "sigmoid" or routing.biased):
        routing = with_least_sum(block, parts, routing, 2.0 if join == "mean" else 1.0)
    return MoeFacts(block.name, parts, routing, weights.shape[-1], join, "output")


def weights_on_input(block: Block, parts: Parts, x: torch.Tensor) -> MoeFacts | None:
    """The formula whose weights multiply inputs, by comparing every known one."""
    experts, bias = parts.router.rows, block.selection_bias(parts)
    logits, seen = block.logits(parts, x[:256]), block(x[:256])
    found: list[MoeFacts] = []
    for top_k in range(1, min(experts, 5)):
        for scores in ("topk_softmax", "softmax", "sigmoid"):
            routing = Routing(scores, top_k, biased=bias is not None, softcap=parts.softcap)
            weights, _ = apply_routing(routing, logits, bias)
            for guess in fit_routing(
                Seen(logits, weights, bias),
                softcap=parts.softcap,
                softmax_first=parts.softmax_first,
            ):
                facts = MoeFacts(block.name, parts, guess, experts, "sum", "input")
                if difference(facts, block, x[:256], seen) <= EXACT:
                    found.append(facts)
    if not found:
        return None
    if len({facts.routing for facts in found}) > 1:
        only_one([facts.routing for facts in found], block.name)
    return found[0]


def only_one(found: list[Routing], name: str) -> Routing:
    """The one formula that was found.

    Raises:
        Refused: There is none, or several that the data cannot tell apart.
    """
    if not found:
        raise refused(name, "the router's formula is none of the known ones")
    if len(found) > 1:
        shown = " and ".join(map(str, found[:2]))
        raise refused(name, f"several formulas explain the router: {shown}")
    return found[0]


def _join(
    block: Block, parts: Parts, x: torch.Tensor, factor: torch.Tensor
) -> Literal["sum", "sigmoid_gate", "mean"] | None:
    if parts.shared is None:
        return "sum"
    wanted: dict[Literal["sum", "sigmoid_gate", "mean"], torch.Tensor] = {}
    if parts.shared_gate is not None:
        gate = torch.sigmoid(parts.shared_gate.apply(x, block.held, 0, 1))
        wanted["sigmoid_gate"] = gate.double().flatten()
    else:
        wanted["sum"] = torch.ones_like(factor)
        wanted["mean"] = torch.full_like(factor, 0.5)
    return next(
        (join for join, value in wanted.items() if torch.allclose(factor, value, atol=1e-4)), None
    )
