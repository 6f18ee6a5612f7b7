"""Routing methods: from router logits to the experts of each token and their weights.

Formulas: softmax gates Shazeer et al. (arXiv 1701.06538) and Jiang et al. (arXiv 2401.04088);
group-limited sigmoid gates with a selection bias DeepSeek-V3 (arXiv 2412.19437, section 2.1.2).
Scores are float32 inside; indices are int32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.standin.generation import contract, only_in
from trtllm_scaffold.standin.late_methods import since_1_4
from trtllm_scaffold.standin.moe.kinds import kind

Routed = tuple[torch.Tensor, torch.Tensor]
#: Keeps a sum of scores from being zero, as the library does.
TINY = 1e-20


class BaseMoeRoutingMethod(nn.Module):
    """Base of routing methods. In 1.4 the layer calls ``apply(router_logits, input_ids)``."""

    _kind = "Unspecified"

    def apply(self, _router_logits: torch.Tensor, _input_ids: Any) -> Any:
        """Experts ``[tokens, k]`` int32 and weights ``[tokens, k]`` (or None for ones)."""
        raise NotImplementedError(f"{type(self).__name__} does not define apply")

    def get_experts_per_token(self) -> int:
        """Experts of one token."""
        return int(self.top_k)

    @property
    def experts_per_token(self) -> int:
        """Experts of one token."""
        return self.get_experts_per_token()

    @since_1_4  # type: ignore[prop-decorator]
    @property
    def requires_separated_routing(self) -> bool:
        """Whether no kernel knows the formula, so that indices must be computed outside (1.4)."""
        return False

    @property
    def routing_method_type(self) -> Any:
        """Number by which fused kernels know the formula."""
        return kind(self._kind)


class _TopK(BaseMoeRoutingMethod):
    """What most methods share: ``top_k``, an output type, and scores -> choice."""

    def __init__(self, top_k: int, output_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.top_k = top_k
        self.output_dtype = output_dtype

    def apply(self, router_logits: torch.Tensor, input_ids: Any = None) -> Routed:  # type: ignore[override]
        """Experts and weights of each row of ``[tokens, experts]``."""
        only_in("1.4", f"{type(self).__name__}.apply", input_ids=input_ids)
        chosen, weights = self._choose(router_logits.float())
        return chosen.to(torch.int32), weights.to(self.output_dtype)

    def _choose(self, logits: torch.Tensor) -> Routed:
        raise NotImplementedError


@contract("DefaultMoeRoutingMethod")
class DefaultMoeRoutingMethod(_TopK):
    """Softmax over all experts, then the largest; not renormalised."""

    _kind = "Default"

    def __init__(
        self,
        top_k: int,
        output_dtype: torch.dtype = torch.float32,
        force_enable_pytorch_op: bool = False,
    ) -> None:
        super().__init__(top_k, output_dtype)
        self.force_enable_pytorch_op = force_enable_pytorch_op

    def _choose(self, logits: torch.Tensor) -> Routed:
        weights, chosen = logits.softmax(-1).topk(self.top_k, -1)
        return chosen, weights


@contract("RenormalizeMoeRoutingMethod")
class RenormalizeMoeRoutingMethod(_TopK):
    """The largest logits, then softmax over those."""

    _kind = "Renormalize"

    def __init__(
        self,
        top_k: int,
        output_dtype: torch.dtype = torch.float32,
        force_enable_pytorch_op: bool = False,
    ) -> None:
        super().__init__(top_k, output_dtype)
        self.force_enable_pytorch_op = force_enable_pytorch_op

    def _choose(self, logits: torch.Tensor) -> Routed:
        values, chosen = logits.topk(self.top_k, -1)
        return chosen, values.softmax(-1)


@contract("RenormalizeNaiveMoeRoutingMethod")
class RenormalizeNaiveMoeRoutingMethod(RenormalizeMoeRoutingMethod):
    """Softmax, the largest, divided by their sum: the same numbers as the base's."""

    _kind = "RenormalizeNaive"

    def __init__(self, top_k: int, output_dtype: torch.dtype = torch.float32) -> None:
        _TopK.__init__(self, top_k, output_dtype)
        self.force_enable_pytorch_op = True


@contract("Llama4RenormalizeMoeRoutingMethod")
class Llama4RenormalizeMoeRoutingMethod(_TopK):
    """The largest logits, weighted by their sigmoid."""

    _kind = "Llama4"

    def __init__(self, top_k: int, output_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(top_k, output_dtype)

    def _choose(self, logits: torch.Tensor) -> Routed:
        values, chosen = logits.topk(self.top_k, -1)
        return chosen, values.sigmoid()


@contract("SigmoidRenormMoeRoutingMethod")
class SigmoidRenormMoeRoutingMethod(_TopK):
    """The largest sigmoids, divided by their sum if ``renormalize`` (1.4)."""

    _kind = "SigmoidRenorm"

    def __init__(
        self,
        top_k: int,
        num_experts: int,
        renormalize: bool = True,
        output_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(top_k, output_dtype)
        self.num_experts, self.renormalize = num_experts, renormalize

    def _choose(self, logits: torch.Tensor) -> Routed:
        weights, chosen = logits.sigmoid().topk(self.top_k, -1)
        return chosen, _normalised(weights) if self.renormalize else weights


@contract("MiniMaxM2MoeRoutingMethod")
class MiniMaxM2MoeRoutingMethod(_TopK):
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
        return chosen, _normalised(scores.gather(-1, chosen))


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
        _TopK.__init__(self, top_k, output_dtype)
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
        weights = _normalised(scores.gather(-1, chosen)) * self.routed_scaling_factor
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
        weights = _normalised(scores.gather(-1, chosen)) * self.routed_scaling_factor
        return chosen.to(torch.int32), weights


@contract("SparseMixerMoeRoutingMethod")
class SparseMixerMoeRoutingMethod(BaseMoeRoutingMethod):
    """One expert at a time: softmax over what comes near the best one left.

    Liu et al., sparse mixer (arXiv 2310.00811).
    """

    def __init__(self, top_k: int, eps: float) -> None:
        super().__init__()
        self.top_k, self.eps = top_k, eps

    def apply(self, router_logits: torch.Tensor, input_ids: Any = None) -> Routed:  # type: ignore[override]
        """Experts and weights of each row of ``[tokens, experts]``."""
        only_in("1.4", "SparseMixerMoeRoutingMethod.apply", input_ids=input_ids)
        left = router_logits.float()
        experts, weights = [], []
        for _ in range(self.top_k):
            best, index = left.max(-1, keepdim=True)
            far = (best - left) / torch.maximum(left.abs(), best) > 2 * self.eps
            near = left.masked_fill(far, float("-inf")).softmax(-1)
            experts.append(index)
            weights.append(near.gather(-1, index))
            left = left.scatter(-1, index, float("-inf"))
        return torch.cat(experts, -1).to(torch.int32), torch.cat(weights, -1)


@contract("StaticMoeRoutingMethod")
class StaticMoeRoutingMethod(BaseMoeRoutingMethod):
    """The same choice whatever the logits."""

    def __init__(
        self, routing_tensor: torch.Tensor, routing_scales: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        assert routing_tensor.dtype == torch.int32, f"indices are {routing_tensor.dtype}, not int32"
        if routing_scales is not None:
            assert routing_scales.shape == routing_tensor.shape
            assert routing_scales.dtype == torch.float32
        self.routing_tensor, self.routing_scales = routing_tensor, routing_scales

    def get_experts_per_token(self) -> int:
        """Columns of the choice."""
        return int(self.routing_tensor.shape[1])

    def apply(self, router_logits: torch.Tensor, input_ids: Any = None) -> Any:  # type: ignore[override]
        """What was given."""
        return self.routing_tensor, self.routing_scales


@contract("LoadBalancedMoeRoutingMethod")
class LoadBalancedMoeRoutingMethod(BaseMoeRoutingMethod):
    """Every expert in turn, with weight one."""

    def __init__(self, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k

    def apply(self, router_logits: torch.Tensor, input_ids: Any = None) -> Routed:  # type: ignore[override]
        """Experts 0, 1, 2, ... over the rows."""
        tokens, experts = router_logits.shape
        count = tokens * self.top_k
        turns = torch.arange(experts, device=router_logits.device, dtype=torch.int32)
        chosen = turns.repeat(math.ceil(count / experts))[:count].view(tokens, self.top_k)
        return chosen, torch.ones(tokens, self.top_k, device=router_logits.device)


def _normalised(weights: torch.Tensor) -> torch.Tensor:
    return weights / (weights.sum(-1, keepdim=True) + TINY)
