"""Reads one layer of experts: its parts from one recorded call, its router by observation."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from trtllm_scaffold.infer.experts import read_choice, read_parts, refused
from trtllm_scaffold.infer.graph import Graph
from trtllm_scaffold.infer.moe_block import EXACT, Block, MoeFacts, difference, tensor_names
from trtllm_scaffold.infer.record import record_module
from trtllm_scaffold.infer.routed import Routed
from trtllm_scaffold.infer.router_fit import weights_on_input, weights_on_output
from trtllm_scaffold.infer.routing import Seen, allows
from trtllm_scaffold.infer.solve import solve_weights

__all__ = ["MoeFacts", "explains", "read_block", "read_moe"]

#: Tokens of the recorded call, of the fit, of the final comparison, and of that of a layer that
#: is like another.
_TRACED, _FITTED, _COMPARED, _REPEATED = 192, 2048, 4096, 128
#: Taken from a selection bias, so that many a score for the choice, or all, are negative.
_LOWERED = (0.5, 3.0)
_FILLS: tuple[Literal["lowest", "zero"], ...] = ("lowest", "zero")
_SPREAD = 0.05  # of a selection bias beside which every expert is chosen by some token


def read_moe(routed: Routed) -> MoeFacts:
    """Find the formula of a layer of experts, and hold it against the call inside the model.

    Args:
        routed: The call; every parameter of the module must be random.

    Raises:
        Refused: A part has no label, no formula explains the output, or several do, or the
            module gets more to see in the model than its input.
    """
    facts = read_block(routed.module, routed.name, routed.linear.rows)
    error = _recorded(facts, routed)
    if error > EXACT:
        raise refused(
            facts.name,
            f"called alone it follows a formula that misses its output in the model by {error:.1g}",
        )
    return facts


def explains(facts: MoeFacts, routed: Routed) -> bool:
    """Whether the formula of another layer explains a call, and its module called alone."""
    block = Block(routed.module, routed.name, routed.linear.rows)
    names = tensor_names(facts.parts)
    known = dict(block.module.named_parameters()).keys()
    if not names <= block.held.keys() or known - names:
        return False
    alone = difference(facts, block, block.tokens(_REPEATED, 3))
    return max(alone, _recorded(facts, routed)) <= EXACT


def read_block(module: nn.Module, name: str, width: int) -> MoeFacts:
    """Find the formula of a module of experts and hold it against thousands of random tokens.

    Args:
        module: The module, every parameter random.
        name: Its name.
        width: hidden_size.

    Raises:
        Refused: A part has no label, no formula explains the output, or several do.
    """
    block = Block(module, name, width)
    traced, x = block.tokens(_TRACED, 0)[None], block.tokens(_FITTED, 1)
    with block.changed(_balanced(block, record_module(module, traced), x)):
        parts = read_parts(record_module(module, traced), name)
        found = weights_on_output(block, parts, x) or weights_on_input(block, parts, x)
        if found is not None:
            found = _with_group_fill(found, block, x)
    if found is None:
        raise refused(name, "its output is no weighted sum of its experts' outputs")
    facts = replace(found, compared=_COMPARED)
    error = difference(facts, block, block.tokens(_COMPARED, 2))
    if error > EXACT:
        raise refused(name, f"the formula found misses its output by {error:.1g}")
    return facts


def _with_group_fill(facts: MoeFacts, block: Block, x: torch.Tensor) -> MoeFacts:
    """The formula with what experts of other groups count as, seen where a bias is negative.

    Raises:
        Refused: They are neither left for the last, nor count as 0.0.
    """
    bias = facts.parts.selection_bias
    if facts.routing.num_groups == 1 or bias is None:
        return facts  # scores are not negative
    guesses = [replace(facts.routing, group_fill=fill) for fill in _FILLS]
    for lowered in _LOWERED:
        with block.changed({bias: block.held[bias] - lowered}):
            solved = solve_weights(block, facts.parts, x)
            if solved is None:
                break
            logits = block.logits(facts.parts, x)
            seen = Seen(logits, solved[0], block.selection_bias(facts.parts))
            guesses = [guess for guess in guesses if allows(guess, seen)]
    else:
        if len(guesses) == 1:
            return replace(facts, routing=guesses[0])
    raise refused(block.name, "what experts of other groups count as is neither last nor 0.0")


def _recorded(facts: MoeFacts, routed: Routed) -> float:
    """The error of a formula where the model itself called the module."""
    width = routed.linear.rows
    block = Block(routed.module, facts.name, width)
    x, seen = (v.data.reshape(-1, width) for v in (routed.input, routed.output))
    return difference(facts, block, x, seen)


def _balanced(block: Block, graph: Graph, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """A router with logits of unit size, and a small selection bias.

    So no score is near its bounds, no weight is tiny, and every expert is chosen now and then.
    """
    router, bias = read_choice(graph, block.name)
    name = router.weight[0].name
    changed = {name: block.held[name] / router.apply(x, block.held, 0, 1).std()}
    if bias is not None:
        held = block.held[bias]
        changed[bias] = (held - held.mean()) * (_SPREAD / held.std())
    return changed
