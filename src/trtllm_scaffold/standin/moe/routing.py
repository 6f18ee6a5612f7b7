"""Routing methods: from router logits to the experts of each token and their weights.

Softmax gates: Shazeer et al. (arXiv 1701.06538), Jiang et al. (arXiv 2401.04088).
Scores are float32 inside; indices are int32.
"""

from __future__ import annotations

import math
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


class TopK(BaseMoeRoutingMethod):
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
class DefaultMoeRoutingMethod(TopK):
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
class RenormalizeMoeRoutingMethod(TopK):
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
        TopK.__init__(self, top_k, output_dtype)
        self.force_enable_pytorch_op = True


@contract("Llama4RenormalizeMoeRoutingMethod")
class Llama4RenormalizeMoeRoutingMethod(TopK):
    """The largest logits, weighted by their sigmoid."""

    _kind = "Llama4"

    def __init__(self, top_k: int, output_dtype: torch.dtype = torch.float32) -> None:
        super().__init__(top_k, output_dtype)

    def _choose(self, logits: torch.Tensor) -> Routed:
        values, chosen = logits.topk(self.top_k, -1)
        return chosen, values.sigmoid()


@contract("SigmoidRenormMoeRoutingMethod")
class SigmoidRenormMoeRoutingMethod(TopK):
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
        return chosen, normalised(weights) if self.renormalize else weights


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


def normalised(weights: torch.Tensor) -> torch.Tensor:
    """Divide each row by its sum."""
    return weights / (weights.sum(-1, keepdim=True) + TINY)
