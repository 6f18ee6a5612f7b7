"""Choices that rounding could turn, and the positions that a comparison leaves out.

Two correct programs round differently. Where a router prefers one expert to another by less than
that, they may choose differently and give different logits, there and at every later position of
the sequence, which attends to it. So the rule: a sequence is compared up to its first close call.

A call is close where lowering the router's logits of the chosen experts and raising the others'
by `MARGIN`, or one of `DRAWS` random changes of up to `MARGIN`, gives another choice, or weights
that differ by more than such a change explains. The margin is relative to the largest logit,
or to 1.

Where keys are chosen by index scores it is the same: a call is close where the last chosen key
and the first that is left out differ by less than the margin, equal scores included.

In bf16 the margin is a thousand times as wide, and few sequences would get far. There the
sequences are cut into short ones, so that enough positions come before a close call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.verify.harness import Driver, Piece, Setup

#: Change of the logits that a clear choice survives: some twenty times what fp32 loses.
MARGIN = 2e-5
#: The same for bf16.
BF16_MARGIN = 0.02
#: Tokens of the short sequences of the comparison in bf16.
SHORT = 6
#: Random changes that are tried besides the worst one.
DRAWS = 4
#: Least share of positions that must be left to compare.
LEAST_SHARE = 0.5

_STEEPEST = 20.0


def is_close(method: Any, logits: torch.Tensor, margin: float = MARGIN) -> torch.Tensor:
    """Which rows of `logits` [num_tokens, num_experts] are close calls: [num_tokens] bool.

    Args:
        method: A routing method of the runtime, or of a port.
        logits: What the router gives it.
        margin: Change of the logits that a clear choice survives.
    """
    logits = logits.float()
    size = margin * logits.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
    shares = _shares(method, logits)
    against = torch.where(shares != 0, -size, size)
    generator = torch.Generator().manual_seed(0)
    changes = [against]
    for _ in range(DRAWS):
        noise = torch.rand(logits.shape, generator=generator) * 2 - 1
        changes.append(noise.to(logits.device) * size)
    found = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    for change in changes:
        other = _shares(method, logits + change)
        allowed = _STEEPEST * size * shares.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
        found |= ((shares != 0) != (other != 0)).any(dim=-1)
        found |= ((shares - other).abs() > allowed).any(dim=-1)
    return found


def _shares(method: Any, logits: torch.Tensor) -> torch.Tensor:
    """Each expert's weight, [num_tokens, num_experts] in fp32; 0 for those not chosen."""
    chosen, weights = method.apply(logits)
    tiny = torch.finfo(torch.float32).tiny
    # A chosen expert whose weight underflows to 0 is chosen all the same.
    weights = weights.float().clamp(min=tiny)
    return torch.zeros_like(logits).scatter(-1, chosen.long(), weights)


def is_close_choice(scores: torch.Tensor, chosen: int, margin: float = MARGIN) -> torch.Tensor:
    """Which rows of index scores [num_tokens, ..., keys] are close calls: [num_tokens] bool.

    Args:
        scores: -inf where a key is later than the token.
        chosen: How many keys are chosen, at most.
        margin: What a clear choice has between both, relative to the largest score, or to 1.
    """
    if scores.shape[-1] <= chosen:
        return torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    largest = scores.masked_fill(scores.isinf(), 0.0).abs().amax(dim=-1).clamp(min=1.0)
    ranked = scores.topk(chosen + 1, dim=-1).values
    last, next_one = ranked[..., chosen - 1], ranked[..., chosen]
    close = (last - next_one < margin * largest) & ~next_one.isinf()
    return close.reshape(len(scores), -1).any(dim=-1)


def choosers(model: nn.Module) -> list[Any]:
    """The modules of a port that choose keys, in order."""
    return [module for module in model.modules() if hasattr(module, "choose")]


def _makes_choices(model: nn.Module) -> bool:
    return bool(routers(model) or choosers(model))


def routers(model: nn.Module) -> list[Any]:
    """The routing methods of a port's layers, in order; none in a dense model."""
    found = (getattr(module, "routing_method", None) for module in model.modules())
    return list(dict.fromkeys(method for method in found if method is not None))


@contextmanager
def noted(model: nn.Module, margin: float = MARGIN) -> Iterator[list[torch.Tensor]]:
    """Within, every choice adds its close calls [num_tokens] to the list."""
    found: list[torch.Tensor] = []
    methods, modules = routers(model), choosers(model)
    for method in methods:
        _watch(method, found, margin)
    for module in modules:
        _watch_keys(module, found, margin)
    try:
        yield found
    finally:
        for method in methods:
            del method.apply
        for module in modules:
            del module.choose


def _watch_keys(module: Any, found: list[torch.Tensor], margin: float) -> None:
    choose = module.choose

    def watched(scores: torch.Tensor) -> torch.Tensor:
        chosen: torch.Tensor = choose(scores)
        found.append(is_close_choice(scores, chosen.shape[-1], margin).cpu())
        return chosen

    module.choose = watched


def _watch(method: Any, found: list[torch.Tensor], margin: float) -> None:
    apply = method.apply

    def watched(router_logits: torch.Tensor, *others: Any) -> Any:
        method.apply = apply
        found.append(is_close(method, router_logits, margin).cpu())
        method.apply = watched
        return apply(router_logits, *others)

    method.apply = watched


def clear_lengths(model: Any, setup: Setup, sequences: Sequence[torch.Tensor]) -> list[int]:
    """How many positions of each sequence come before its first close call.

    Args:
        model: The port, in fp32.
        setup: How it is run.
        sequences: Token ids, [n] each.
    """
    if not _makes_choices(model):
        return [len(tokens) for tokens in sequences]
    lengths = []
    for tokens in sequences:
        with noted(model) as found, Driver(model, setup) as driver:
            driver.reserve({0: len(tokens)})
            driver.forward([Piece(0, tokens, 0, True)])
        lengths.append(first_call(found, len(tokens)))
    return lengths


def first_call(found: list[torch.Tensor], length: int) -> int:
    """The first position that is a close call in some layer; `length` where none is."""
    if not found:
        return length
    calls = torch.stack(found).any(dim=0).nonzero()
    return int(calls[0]) if len(calls) else length


def short_sequences(model: nn.Module, sequences: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What a comparison in bf16 runs: a few of `sequences`, or with choices all in pieces."""
    if not _makes_choices(model):
        return list(sequences[:2])
    return [piece for tokens in sequences for piece in tokens.split(SHORT)]


def clear_part(clear: int, start: int, logits: torch.Tensor) -> torch.Tensor:
    """Those of `logits` [n, vocab_size], from position `start` on, that are to be compared."""
    return logits[: max(0, clear - start)]


def too_few(kept: int, all_positions: int) -> str:
    """What is wrong where close calls leave too little to compare; empty where nothing is."""
    if kept >= LEAST_SHARE * all_positions:
        return ""
    return f"close calls leave {kept} of {all_positions} positions to compare"
