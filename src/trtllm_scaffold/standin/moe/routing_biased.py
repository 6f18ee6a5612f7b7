"""Routing methods whose choice is biased or limited to groups of experts.

DeepSeek-V3 (arXiv 2412.19437, section 2.1.2). Scores are float32; indices are int32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.standin.generation import contract, only_in
from trtllm_scaffold.standin.moe.routing import BaseMoeRoutingMethod, Routed, TopK, normalised


@contract("MiniMaxM2MoeRoutingMethod")
class MiniMaxM2MoeRoutingMethod(TopK):
    """Scores are sigmoids; a bias takes part in the choice only; weights sum to one."""

    _kind = "MiniMax2"

    def __init__(
        self,
        top_k: int,
        num_experts: int,
        callable_e_score_correction_bias: Callable[[], torch.Tensor],
        output_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(top_k, output_dtype)
        assert callable(callable_e_score_correction_bias)
        self.num_experts = num_experts
        self.callable_e_score_correction_bias = callable_e_score_correction_bias

    @property
    def e_score_correction_bias(self) -> torch.Tensor:
        """The selection bias ``[experts]``, fetched when it is needed: loading replaces it."""
        return self.callable_e_score_correction_bias()

    def _score(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid()

    def _choose(self, logits: torch.Tensor) -> Routed:
        scores = self._score(logits)
        chosen = (scores + self.e_score_correction_bias.float()).topk(self.top_k, -1).indices
        return chosen, normalised(scores.gather(-1, chosen))


@contract("SqrtSoftplusMoeRoutingMethod")
class SqrtSoftplusMoeRoutingMethod(MiniMaxM2MoeRoutingMethod):
    """As the base, with ``sqrt(softplus(logit))`` as score (1.4)."""

    requires_separated_routing = True

    def _score(self, logits: torch.Tensor) -> torch.Tensor:
        return nn.functional.softplus(logits).sqrt()


@contract("MiniMaxM3MoeRoutingMethod")
class MiniMaxM3MoeRoutingMethod(MiniMaxM2MoeRoutingMethod):
    """As the base, times a factor (1.4)."""

    def __init__(
        self,
        top_k: int,
        num_experts: int,
        callable_e_score_correction_bias: Callable[[], torch.Tensor],
        routed_scaling_factor: float = 1.0,
        output_dtype: torch.dtype = torch.float32,
    ) -> None:
        TopK.__init__(self, top_k, output_dtype)
        assert callable(callable_e_score_correction_bias)
        self.num_experts = num_experts
        self.callable_e_score_correction_bias = callable_e_score_correction_bias
        self.routed_scaling_factor = float(routed_scaling_factor)

    def _choose(self, logits: torch.Tensor) -> Routed:
        chosen, weights = super()._choose(logits)
        return chosen, weights * self.routed_scaling_factor


@contract("Deepseekv3RoutingImpl")
class Deepseekv3RoutingImpl:
    """Group-limited choice by sigmoid scores plus bias; weights sum to the scaling factor."""

    def __init__(
        self,
        top_k: int,
        n_group: int,
        topk_group: int,
        routed_scaling_factor: float,
        is_fused: bool = True,
    ) -> None:
        self.top_k, self.n_group, self.topk_group = top_k, n_group, topk_group
        self.routed_scaling_factor = routed_scaling_factor
        self.is_fused = is_fused

    def noaux_tc(
        self, logits: torch.Tensor, e_score_correction_bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and experts of each row."""
        scores = logits.float().sigmoid()
        choice = scores + e_score_correction_bias.float()
        if self.n_group > 1:
            choice = self._limit_groups(choice)
        chosen = choice.topk(self.top_k, -1).indices
        weights = normalised(scores.gather(-1, chosen)) * self.routed_scaling_factor
        return weights, chosen

    def _limit_groups(self, choice: torch.Tensor) -> torch.Tensor:
        # [tokens, experts] -> [tokens, groups, experts of a group]
        grouped = choice.unflatten(-1, (self.n_group, -1))
        best = grouped.topk(2, -1).values.sum(-1).topk(self.topk_group, -1).indices
        kept = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, True)
        return grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(-2)

    def apply(self, logits: torch.Tensor, e_score_correction_bias: torch.Tensor) -> Routed:
        """Experts int32 and weights float32 of each row."""
        weights, chosen = self.noaux_tc(logits, e_score_correction_bias)
        return chosen.to(torch.int32), weights


@contract("DeepSeekV3MoeRoutingMethod")
class DeepSeekV3MoeRoutingMethod(BaseMoeRoutingMethod):
    """Sigmoid scores with a selection bias, groups, and a scale; always normalised."""

    _kind = "DeepSeekV3"

    def __init__(
        self,
        top_k: int,
        n_group: int,
        topk_group: int,
        routed_scaling_factor: float,
        callable_e_score_correction_bias: Callable[[], torch.Tensor],
        is_fused: bool = True,
    ) -> None:
        super().__init__()
        assert callable(callable_e_score_correction_bias)
        self.callable_e_score_correction_bias = callable_e_score_correction_bias
        self.routing_impl = Deepseekv3RoutingImpl(
            top_k=top_k,
            n_group=n_group,
            topk_group=topk_group,
            routed_scaling_factor=routed_scaling_factor,
            is_fused=is_fused,
        )

    @property
    def e_score_correction_bias(self) -> torch.Tensor:
        """The selection bias ``[experts]``."""
        return self.callable_e_score_correction_bias()

    @property
    def top_k(self) -> int:
        """Experts of one token."""
        return self.routing_impl.top_k

    @property
    def n_group(self) -> int:
        """Groups of experts."""
        return self.routing_impl.n_group

    @property
    def topk_group(self) -> int:
        """Groups that a token may use."""
        return self.routing_impl.topk_group

    def apply(self, logits: torch.Tensor, input_ids: Any = None) -> Routed:  # type: ignore[override]
        """Experts and weights of each row of ``[tokens, experts]``."""
        only_in("1.4", "DeepSeekV3MoeRoutingMethod.apply", input_ids=input_ids)
        return self.routing_impl.apply(logits, self.e_score_correction_bias)


@contract("DeepSeekV4MoeRoutingMethod")
class DeepSeekV4MoeRoutingMethod(BaseMoeRoutingMethod):
    """``sqrt(softplus)`` scores with a bias, or experts looked up by token id (1.4)."""

    _kind = "DeepSeekV3"
    requires_separated_routing = True

    def __init__(
        self,
        top_k: int,
        n_group: int,
        topk_group: int,
        routed_scaling_factor: float,
        callable_e_score_correction_bias: Callable[[], torch.Tensor],
        callable_tid2eid: Callable[[], torch.Tensor],
        is_hashed: bool = True,
    ) -> None:
        super().__init__()
        assert callable(callable_e_score_correction_bias) and callable(callable_tid2eid)
        self.top_k, self.n_group, self.topk_group = top_k, n_group, topk_group
        self.routed_scaling_factor, self.is_hashed = routed_scaling_factor, is_hashed
        self.callable_e_score_correction_bias = callable_e_score_correction_bias
        self.callable_tid2eid = callable_tid2eid

    @property
    def e_score_correction_bias(self) -> torch.Tensor:
        """The selection bias ``[experts]``."""
        return self.callable_e_score_correction_bias()

    def apply(self, logits: torch.Tensor, input_ids: Any = None) -> Routed:  # type: ignore[override]
        """Experts and weights; a hashed layer needs the token ids."""
        scores = nn.functional.softplus(logits.float()).sqrt()
        if self.is_hashed:
            assert input_ids is not None, "hash routing needs input_ids"
            chosen = self.callable_tid2eid()[input_ids.reshape(-1).long()].long()
        else:
            choice = scores + self.e_score_correction_bias.float()
            chosen = choice.topk(self.top_k, -1).indices
        weights = normalised(scores.gather(-1, chosen)) * self.routed_scaling_factor
        return chosen.to(torch.int32), weights
