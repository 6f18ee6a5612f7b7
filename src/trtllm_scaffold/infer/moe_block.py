"""A module of experts called alone, and the formula that is held against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from trtllm_scaffold.infer.experts import Parts, Tensors
from trtllm_scaffold.infer.record import first_float
from trtllm_scaffold.infer.routing import Routing, apply_routing

EXACT = 1e-5  # of the largest output

_TIE = 1e-5
_SEED = 7919  # far from those that parameters are drawn with: tokens must not equal their rows


@dataclass(frozen=True, eq=False, repr=False)
class MoeFacts:
    """What was observed of one layer of experts.

    Attributes:
        name: Module name.
        parts: Its projections and feed-forwards, by names relative to the module.
        routing: The router's formula.
        experts: Their number.
        join, weight_on: See `SharedSpec` and `MoeSpec`.
        compared: Tokens whose outputs were compared with the formula's.
    """

    name: str
    parts: Parts
    routing: Routing
    experts: int
    join: Literal["sum", "sigmoid_gate", "mean"]
    weight_on: Literal["output", "input"]
    compared: int = 0


class Block:
    """A module of experts, called alone.

    Args:
        module: The module.
        name: Its name, for messages.
        width: hidden_size.
    """

    def __init__(self, module: nn.Module, name: str, width: int) -> None:
        self.module, self.name, self.width = module, name, width
        self.held: Tensors = {
            key: value.detach()
            for key, value in (*module.named_parameters(), *module.named_buffers())
        }

    def tokens(self, count: int, seed: int) -> torch.Tensor:
        """Random hidden states [count, hidden_size], of unit size as behind a norm."""
        generator = torch.Generator().manual_seed(_SEED + seed)
        return torch.randn(count, self.width, generator=generator)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The module's output [tokens, hidden_size]."""
        with torch.no_grad():
            found = first_float(self.module(x[None].clone()))
        if found is None:
            raise TypeError(f"{type(self.module).__name__} returns no tensor")
        return found.reshape(-1, self.width)

    def logits(self, parts: Parts, x: torch.Tensor) -> torch.Tensor:
        """The router's logits [tokens, experts]."""
        return parts.router.apply(x, self.held, 0, 1)

    def selection_bias(self, parts: Parts) -> torch.Tensor | None:
        """The stored vector that the choice sees."""
        return self.held[parts.selection_bias] if parts.selection_bias else None

    @contextmanager
    def changed(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Hold other numbers for a while."""
        kept = {name: self.held[name].clone() for name in tensors}
        try:
            for name, tensor in tensors.items():
                self.held[name].copy_(tensor)
            yield
        finally:
            for name, tensor in kept.items():
                self.held[name].copy_(tensor)


def difference(
    facts: MoeFacts, block: Block, x: torch.Tensor, seen: torch.Tensor | None = None
) -> float:
    """The largest error of the formula, relative to the largest output; ties are left out.

    Args:
        facts: The formula.
        block: The module.
        x: Tokens [count, hidden_size].
        seen: Its output where that is known.

    Returns:
        Infinity where an output is no number, or most tokens are ties.
    """
    result = block(x) if seen is None else seen
    guess, margin = outputs(facts, block.held, x)
    clear = margin > _TIE
    if int(clear.sum()) * 2 < len(x):
        return float("inf")  # nothing would be shown
    error = float((result - guess)[clear].abs().amax() / result.abs().amax())
    return error if error == error else float("inf")


def outputs(facts: MoeFacts, held: Tensors, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the formula gives for tokens [count, hidden_size], and their distance from a tie."""
    parts = facts.parts
    bias = held[parts.selection_bias] if parts.selection_bias else None
    logits = parts.router.apply(x, held, 0, 1)
    weights, margin = apply_routing(facts.routing, logits, bias)
    weights = weights.to(x.dtype)
    total = torch.zeros_like(x)
    for expert in range(facts.experts):
        rows = weights[:, expert].nonzero().flatten()
        own = weights[rows, expert, None]
        if facts.weight_on == "input":
            total[rows] += parts.expert.apply(x[rows] * own, held, expert, facts.experts)
        else:
            total[rows] += parts.expert.apply(x[rows], held, expert, facts.experts) * own
    if parts.shared is None:
        return total, margin
    shared = parts.shared.apply(x, held)
    if parts.shared_gate is not None:
        shared = shared * torch.sigmoid(parts.shared_gate.apply(x, held, 0, 1))
    return (total + shared) * (0.5 if facts.join == "mean" else 1.0), margin


def tensor_names(parts: Parts) -> set[str]:
    """Names of every tensor that the formula reads."""
    feeds = [feed for feed in (parts.expert, parts.shared) if feed is not None]
    matrices = [parts.router, *(m for feed in feeds for m in (*feed.first, feed.down))]
    matrices += [parts.shared_gate] if parts.shared_gate else []
    names = {place.name for matrix in matrices for place in (*matrix.weight, *matrix.bias)}
    return names | ({parts.selection_bias} if parts.selection_bias else set())
