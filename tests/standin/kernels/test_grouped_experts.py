"""Experts by grouped products, as on a GPU, against one expert after the other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trtllm_scaffold.standin.moe.activation import formula_of_arguments
from trtllm_scaffold.standin.moe.expert_products import _grouped, _in_turn
from trtllm_scaffold.standin.utils import ActivationType

pytest.importorskip("triton", reason="needs triton")
if not hasattr(torch, "_grouped_mm"):
    pytest.skip("this torch has no grouped products", allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EXPERTS, HIDDEN, INNER = 4, 16, 24


def layer(first: int, count: int, kind: ActivationType, bias: bool) -> SimpleNamespace:
    """Experts `first` to `first + count` of four, as the products read them."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)

    return SimpleNamespace(
        num_experts=EXPERTS,
        expert_size_per_partition=count,
        slot_start=first,
        hidden_size=HIDDEN,
        intermediate_size_per_partition=INNER,
        apply_router_weight_on_input=False,
        tp_rank=0,
        formula=formula_of_arguments(kind, None, None, None),
        w3_w1_weight=random(count, 2 * INNER, HIDDEN),
        w2_weight=random(count, HIDDEN, INNER),
        w3_w1_bias=random(count, 2 * INNER) if bias else None,
        w2_bias=random(count, HIDDEN) if bias else None,
    )


@pytest.mark.parametrize("first, count", [(0, 4), (2, 2)], ids=["all here", "some elsewhere"])
@pytest.mark.parametrize("kind", [ActivationType.Swiglu, ActivationType.Geglu])
@pytest.mark.parametrize("bias", [False, True])
def test_grouped_products_are_those_of_each_expert(first, count, kind, bias):
    torch.manual_seed(count)
    experts = layer(first, count, kind, bias)
    x = torch.randn(9, HIDDEN, device=DEVICE, dtype=torch.bfloat16)
    chosen = torch.stack([torch.randperm(EXPERTS)[:2] for _ in range(9)]).to(DEVICE)
    weights = torch.rand(9, 2, device=DEVICE)
    found, wanted = (work(experts, x, chosen, weights) for work in (_grouped, _in_turn))
    error = (found.float() - wanted.float()).abs().max() / wanted.float().abs().max()
    assert found.dtype == x.dtype and error <= 2 * torch.finfo(torch.bfloat16).eps
