"""The moe axis: a router, experts and shared experts in place of a dense feed-forward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtllm_scaffold.spec.mlp import MlpSpec
from trtllm_scaffold.spec.quantity import Quantity

#: How logits [num_tokens, num_experts] become the weights of the chosen experts.
#: ``softmax``: softmax over all, then the top k. ``topk_softmax``: the top k logits, then
#: softmax over those. ``sigmoid``: sigmoid of each, then the top k. ``topk_sigmoid``: the top k
#: logits, then sigmoid of those, which differs where a selection bias is added.
#: ``sparsemixer``: k times the largest logit m that is left, with its share of the softmax over
#: the logits x left for which (m - x) / max(|x|, m) is at most 2 * `jitter`.
SCORES = ("softmax", "topk_softmax", "sigmoid", "topk_sigmoid", "sparsemixer")


@dataclass(frozen=True)
class RouterSpec:
    """Which experts a token goes to, and with which weights.

    Attributes:
        scores: One of `SCORES`.
        num_experts: Experts to choose from.
        top_k: Experts chosen for each token.
        logit_bias: Whether the router's linear layer has a bias.
        renormalised: Whether the chosen weights are divided by their sum.
        epsilon: Added to that sum, 0.0 for nothing.
        floor: The sum is taken to be at least this, if there is a bound.
        selection_bias: Whether a stored vector is added for the choice alone: to the scores, or
            to the logits where those are chosen from.
        num_groups, top_groups: Groups that experts lie in, and how many of them are kept
            before experts are chosen; both None without groups.
        group_score: What a group is ranked by: its largest score, or the sum of its two largest.
        group_fill: Whether experts of other groups come last, or count as scores of 0.0, which
            are chosen before scores that a selection bias makes negative.
        scaling: Factor on the weights after everything else, or None for 1.
        softcap: c of ``c * tanh(logits / c)``, applied to the logits first, if any.
        jitter: The tolerance of ``sparsemixer``; None for other scores.
    """

    scores: str
    num_experts: Quantity
    top_k: Quantity
    logit_bias: bool = False
    renormalised: bool = False
    epsilon: float = 0.0
    selection_bias: bool = False
    num_groups: Quantity | None = None
    top_groups: Quantity | None = None
    group_score: Literal["max", "top2_sum"] = "max"
    group_fill: Literal["lowest", "zero"] = "lowest"
    scaling: Quantity | None = None
    floor: Quantity | None = None
    softcap: Quantity | None = None
    jitter: Quantity | None = None


@dataclass(frozen=True)
class SharedSpec:
    """Experts that every token goes to, as one feed-forward.

    Attributes:
        mlp: The feed-forward; its width is that of all shared experts together.
        join: ``sum`` adds it to the routed experts' output; ``sigmoid_gate`` multiplies it by
            sigmoid of a linear function of the token first; ``mean`` halves the sum.
    """

    mlp: MlpSpec
    join: Literal["sum", "sigmoid_gate", "mean"] = "sum"


@dataclass(frozen=True)
class MoeSpec:
    """A mixture of experts.

    Attributes:
        router: The choice. What one expert computes is the layer kind's `mlp`.
        shared: The shared experts, or None.
        weight_on: Whether a weight multiplies the expert's output or its input.
    """

    router: RouterSpec
    shared: SharedSpec | None = None
    weight_on: Literal["output", "input"] = "output"
