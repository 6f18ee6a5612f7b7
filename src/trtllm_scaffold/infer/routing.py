"""Formulas of routers, and the fit of one to the weights that were observed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

_CLOSE = 1e-4  # relative error of a weight that was solved for
_MARGIN = 1e-5  # scores nearer than this are ties: rounding may choose either


@dataclass(frozen=True)
class Routing:
    """A router's formula; see `RouterSpec` for the meaning of most fields.

    Attributes:
        biased: The selection bias is added to the scores for the choice.
        jitter: Bounds of the sparse mixer's tolerance that the data leave.
    """

    scores: str
    top_k: int
    renormalised: bool = False
    biased: bool = False
    num_groups: int = 1
    top_groups: int = 1
    group_score: Literal["max", "top2_sum"] = "max"
    group_fill: Literal["lowest", "zero"] = "lowest"
    scaling: float = 1.0
    epsilon: float = 0.0
    floor: float = 0.0
    softcap: float | None = None
    jitter: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Seen:
    """What was observed of a router.

    Attributes:
        logits: [tokens, experts].
        weights: [tokens, experts] as they act on the output, 0 for experts not chosen.
        selection_bias: [experts] or None.
    """

    logits: torch.Tensor
    weights: torch.Tensor
    selection_bias: torch.Tensor | None


def apply_routing(
    routing: Routing, logits: torch.Tensor, selection_bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [tokens, experts], and how far each token's choice is from a tie [tokens]."""
    logits = logits.double()
    if routing.softcap is not None:
        logits = routing.softcap * torch.tanh(logits / routing.softcap)
    if routing.scores == "sparsemixer":
        return _sparse_mixer(routing, logits)
    scores = _SCORES[routing.scores](logits)
    for_choice = scores
    if routing.biased and selection_bias is not None:
        for_choice = scores + selection_bias.double().flatten()
    chosen, margin = _choose(routing, for_choice)
    held = torch.where(chosen, scores, 0.0)
    if routing.scores == "topk_softmax":
        held = torch.where(chosen, logits, float("-inf")).softmax(-1)
    if routing.scores == "topk_sigmoid":
        held = torch.where(chosen, logits.sigmoid(), 0.0)
    if routing.renormalised:
        total = held.sum(-1, keepdim=True).clamp(min=routing.floor) + routing.epsilon
        held = held / total
    return held * routing.scaling, margin


def fit_routing(seen: Seen, *, softcap: float | None, softmax_first: bool) -> list[Routing]:
    """Every known formula that explains what was observed, but for equal ones.

    The softmax of the chosen logits, and the renormalised softmax of all, are the same numbers:
    `softmax_first` tells how the class spells them.
    """
    chosen = seen.weights != 0
    counts = chosen.sum(-1)
    top_k = int(counts[0])
    if not bool((counts == top_k).all()):
        return []
    found = []
    biased = seen.selection_bias is not None
    for guess in _guesses(top_k, softcap, softmax_first, biased):
        found += [f for f in _with_selection(guess, seen, chosen) if _explains(f, seen)]
    return found or _sparse_mixers(seen, top_k)


def _guesses(
    top_k: int, softcap: float | None, softmax_first: bool, biased: bool
) -> Iterator[Routing]:
    """Every way from logits to weights, the choice left open."""
    spelled = "softmax" if softmax_first else "topk_softmax"
    yield Routing(spelled, top_k, renormalised=softmax_first, softcap=softcap)
    yield Routing("softmax", top_k, softcap=softcap)
    for scores in ("sigmoid", "topk_sigmoid") if biased else ("sigmoid",):
        yield Routing(scores, top_k, softcap=softcap)
        if top_k > 1:  # one renormalised weight is 1, whatever the scores
            yield Routing(scores, top_k, renormalised=True, softcap=softcap)


def _with_selection(guess: Routing, seen: Seen, chosen: torch.Tensor) -> Iterator[Routing]:
    """The guess with every choice that explains the chosen experts, the simplest kind first."""
    experts = seen.logits.shape[-1]
    biased = [False] if seen.selection_bias is None else [True]
    plain = [replace(guess, biased=b) for b in biased]
    grouped = [
        replace(g, num_groups=n, top_groups=t, group_score=kind)
        for g in plain
        for n in range(2, experts // 2 + 1)
        if experts % n == 0
        for t in range(1, n)
        if t * (experts // n) >= guess.top_k
        for kind in _GROUP_SCORES
    ]
    for choices in (plain, grouped):
        fitting = [c for c in choices if _chooses(c, seen, chosen)]
        if fitting:
            for choice in fitting:
                scaling = _scaling(choice, seen)
                if scaling is not None:
                    yield replace(choice, scaling=scaling)
            return


_GROUP_SCORES: tuple[Literal["max", "top2_sum"], ...] = ("max", "top2_sum")

_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "topk_softmax": lambda logits: logits,
    "topk_sigmoid": lambda logits: logits,
    "sigmoid": torch.sigmoid,
}


def _chooses(routing: Routing, seen: Seen, chosen: torch.Tensor) -> bool:
    weights, margin = apply_routing(replace(routing, scaling=1.0), seen.logits, seen.selection_bias)
    clear = margin > _MARGIN
    return torch.equal((weights != 0)[clear], chosen[clear])


def _scaling(routing: Routing, seen: Seen) -> float | None:
    """The factor between the formula's weights and the observed ones, where it is one number."""
    weights, margin = apply_routing(routing, seen.logits, seen.selection_bias)
    clear = margin > _MARGIN
    large = weights[clear] > 1e-2
    ratio = seen.weights[clear][large] / weights[clear][large]
    middle = float(ratio.median())
    return middle if bool(((ratio - middle).abs() <= _CLOSE * abs(middle)).all()) else None


def _explains(routing: Routing, seen: Seen) -> bool:
    weights, margin = apply_routing(routing, seen.logits, seen.selection_bias)
    clear = margin > _MARGIN
    error = (weights[clear] - seen.weights[clear]).abs().amax()
    return bool(error <= _CLOSE * seen.weights.abs().amax())


def _choose(routing: Routing, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which experts are chosen [tokens, experts], and the distance from a tie [tokens]."""
    scores, margin = _filled(routing, scores)
    chosen, own = _largest(scores, routing.top_k)
    return chosen, torch.minimum(margin, own)


def _filled(routing: Routing, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scores with those of groups that are left out replaced, and how far those are."""
    margin = torch.full(scores.shape[:1], float("inf"), dtype=scores.dtype)
    if routing.num_groups > 1:
        grouped = scores.unflatten(-1, (routing.num_groups, -1))
        best = grouped.topk(1 if routing.group_score == "max" else 2, -1).values.sum(-1)
        kept, margin = _largest(best, routing.top_groups)
        inside = kept.unsqueeze(-1).expand_as(grouped).flatten(-2)
        fill = 0.0 if routing.group_fill == "zero" else float("-inf")
        scores = scores.masked_fill(~inside, fill)
    return scores, margin


def allows(routing: Routing, seen: Seen) -> bool:
    """Whether the chosen experts are some top k of the scores, equal ones in any order."""
    assert seen.selection_bias is not None
    scores = _SCORES[routing.scores](seen.logits.double())
    scores, margin = _filled(routing, scores + seen.selection_bias.double().flatten())
    chosen = seen.weights != 0
    least = scores.masked_fill(~chosen, float("inf")).amin(-1)
    most = scores.masked_fill(chosen, float("-inf")).amax(-1)
    clear = margin > _MARGIN
    same_count = bool((chosen.sum(-1) == routing.top_k).all())
    return same_count and bool((least >= most - _MARGIN)[clear].all())


def _largest(values: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    order = values.sort(-1, descending=True)
    margin = torch.full(values.shape[:1], float("inf"), dtype=values.dtype)
    if count < values.shape[-1]:
        margin = order.values[:, count - 1] - order.values[:, count]
    chosen = torch.zeros_like(values, dtype=torch.bool)
    return chosen.scatter(-1, order.indices[:, :count], True), margin


def _sparse_mixer(routing: Routing, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """K times the largest logit left, with its share among those left that are near it."""
    assert routing.jitter is not None
    weights = torch.zeros_like(logits)
    margin = torch.full(logits.shape[:1], float("inf"), dtype=logits.dtype)
    bound, spread = sum(routing.jitter), routing.jitter[1] - routing.jitter[0]
    for best, index, distance, left in _mixed(logits, routing.top_k):
        near = left.masked_fill(distance > bound, float("-inf")).softmax(-1)
        weights = weights.scatter(-1, index, near.gather(-1, index) * routing.scaling)
        gap = (distance - bound).abs().amin(-1) - spread
        tie = best.flatten() - left.scatter(-1, index, float("-inf")).amax(-1)
        margin = torch.minimum(margin, torch.minimum(gap, tie))
    return weights, margin


def _mixed(
    logits: torch.Tensor, top_k: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each choice: the best logit, its place, each logit's distance from it, those left."""
    left = logits
    for _ in range(top_k):
        best, index = left.max(-1, keepdim=True)
        distance = (best - left) / torch.maximum(logits.abs(), best)
        yield best, index, distance, left
        left = left.scatter(-1, index, float("-inf"))


def _sparse_mixers(seen: Seen, top_k: int) -> list[Routing]:
    """The sparse mixer with the tolerances that every token allows, or nothing."""
    low, high = 0.0, float("inf")
    for _, index, distance, left in _mixed(seen.logits.double(), top_k):
        order = distance.sort(-1)
        sums = left.exp().gather(-1, order.indices).cumsum(-1)  # over the nearest n
        own = seen.weights.gather(-1, index)
        share = left.exp().gather(-1, index) / sums
        wrong = (share - own).abs()
        if float(wrong.amin(-1).amax()) > 10 * _CLOSE:
            return []
        nearest = wrong.argmin(-1, keepdim=True)
        low = max(low, float(order.values.gather(-1, nearest).amax()))
        beyond = order.values.gather(-1, (nearest + 1).clamp(max=distance.shape[-1] - 1))
        beyond = beyond[(nearest + 1 < distance.shape[-1]) & beyond.isfinite()]
        high = min(high, float(beyond.amin())) if beyond.numel() else high
    guess = Routing("sparsemixer", top_k, jitter=(low / 2, high / 2))
    return [guess] if low <= high < float("inf") and _explains(guess, seen) else []
