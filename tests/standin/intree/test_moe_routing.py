"""Every routing method against a formula written out in float64, on 10,000 random rows."""

from __future__ import annotations

import pytest
import torch

from ..statements import states
from .names import routing

ROWS, EXPERTS, TOP = 10_000, 16, 4


def logits(experts: int = EXPERTS) -> torch.Tensor:
    return torch.randn(ROWS, experts, generator=torch.Generator().manual_seed(1)) * 2


def bias() -> torch.Tensor:
    return torch.randn(EXPERTS, generator=torch.Generator().manual_seed(2)) * 0.3


def weights_by_expert(chosen: torch.Tensor, weights: torch.Tensor, experts: int = EXPERTS):
    """``[rows, experts]``: what the order of the chosen experts does not change."""
    empty = torch.zeros(chosen.shape[0], experts, dtype=torch.float64)
    return empty.scatter_add_(1, chosen.long(), weights.double())


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Whether an entry is among the ``count`` largest of its row, by sorting."""
    limit = scores.sort(dim=-1, descending=True).values[:, count - 1 : count]
    return scores >= limit


def compare(method, wanted: torch.Tensor, given: torch.Tensor, **options) -> None:
    chosen, weights = method.apply(given, **options)
    assert chosen.dtype is torch.int32 and weights.dtype is torch.float32
    assert chosen.shape == weights.shape == (ROWS, method.experts_per_token)
    got = weights_by_expert(chosen, weights, given.shape[1])
    torch.testing.assert_close(got, wanted, rtol=2e-6, atol=2e-6)


def normalised(scores: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    scores = scores * kept
    return scores / scores.sum(-1, keepdim=True)


def test_softmax_then_largest(generation):
    method = routing(generation).DefaultMoeRoutingMethod(TOP)
    scores = logits().double().softmax(-1)
    compare(method, scores * best(scores, TOP), logits())


@pytest.mark.parametrize("name", ["Renormalize", "RenormalizeNaive"])
def test_weights_of_the_largest_sum_to_one(generation, name):
    method = getattr(routing(generation), f"{name}MoeRoutingMethod")(top_k=TOP)
    scores = logits().double().softmax(-1)
    compare(method, normalised(scores, best(scores, TOP)), logits())


def test_sigmoid_of_the_largest_logits(generation):
    method = routing(generation).Llama4RenormalizeMoeRoutingMethod(1)
    given = logits()
    compare(method, given.double().sigmoid() * best(given, 1), given)


@pytest.mark.parametrize("groups,kept", [(1, 1), (4, 2), (8, 3)])
def test_groups_bias_and_scale(generation, groups, kept):
    method = routing(generation).DeepSeekV3MoeRoutingMethod(TOP, groups, kept, 2.5, bias)
    scores = logits().double().sigmoid()
    choice = scores + bias().double()
    grouped = choice.view(ROWS, groups, -1)
    two_best = grouped.sort(dim=-1, descending=True).values[..., :2].sum(-1)
    allowed = best(two_best, kept if groups > 1 else groups)
    allowed = allowed.repeat_interleave(EXPERTS // groups, dim=1)
    taken = best(choice.masked_fill(~allowed, -torch.inf), TOP)
    compare(method, normalised(scores, taken) * 2.5, logits())


def test_a_bias_that_makes_all_scores_negative_still_limits_groups(generation):
    lower = torch.full((EXPERTS,), -5.0)
    method = routing(generation).DeepSeekV3MoeRoutingMethod(TOP, 4, 1, 1.0, lambda: lower)
    chosen, _ = method.apply(logits())
    assert (chosen // 4 == chosen[:, :1] // 4).all()


@states("W3.5-8")
@pytest.mark.parametrize("name,factor", [("MiniMaxM2", 1.0), ("MiniMaxM3", 1.7)])
def test_bias_takes_part_in_the_choice_only(generation, name, factor):
    if generation == "1.2" and name == "MiniMaxM3":
        pytest.skip("1.4 only")
    options = {"routed_scaling_factor": factor} if name == "MiniMaxM3" else {}
    cls = getattr(routing(generation), f"{name}MoeRoutingMethod")
    method = cls(TOP, EXPERTS, bias, **options)
    scores = logits().double().sigmoid()
    compare(method, normalised(scores, best(scores + bias(), TOP)) * factor, logits())


@states("W3.5-8")
def test_methods_of_1_4_only():
    from trtllm_scaffold.standin.install import install

    install("1.4", force=True)
    names = routing("1.4")
    scores = logits().double().sigmoid()
    for renormalize in (True, False):
        method = names.SigmoidRenormMoeRoutingMethod(TOP, EXPERTS, renormalize)
        taken = best(scores, TOP)
        compare(method, normalised(scores, taken) if renormalize else scores * taken, logits())
    roots = torch.nn.functional.softplus(logits().double()).sqrt()
    method = names.SqrtSoftplusMoeRoutingMethod(TOP, EXPERTS, bias)
    assert method.requires_separated_routing
    compare(method, normalised(roots, best(roots + bias(), TOP)), logits())
    table = torch.stack([torch.randperm(EXPERTS)[:TOP] for _ in range(50)])
    ids = torch.randint(50, (ROWS,))
    hashed = names.DeepSeekV4MoeRoutingMethod(TOP, 1, 1, 1.5, lambda: None, lambda: table)
    wanted = torch.zeros(ROWS, EXPERTS, dtype=torch.float64)
    rows = roots.gather(1, table[ids])
    wanted.scatter_(1, table[ids], rows / rows.sum(-1, keepdim=True) * 1.5)
    compare(hashed, wanted, logits(), input_ids=ids)


@states("W3.5-8")
def test_sparse_mixer_one_expert_at_a_time(generation):
    eps = 0.1
    method = routing(generation).SparseMixerMoeRoutingMethod(2, eps)
    chosen, weights = method.apply(logits())
    for row in range(0, ROWS, 997):
        left = logits()[row].double()
        for turn in range(2):
            top = left.max()
            near = (top - left) / torch.maximum(left.abs(), top) <= 2 * eps
            expected = top.exp() / left[near].exp().sum()
            assert chosen[row, turn] == left.argmax()
            assert weights[row, turn] == pytest.approx(expected.item(), rel=1e-5)
            left[left.argmax()] = -torch.inf


@states("W3.5-8")
def test_fixed_and_balanced_choices(generation):
    names = routing(generation)
    fixed = torch.tensor([[0, 3], [1, 1]], dtype=torch.int32)
    method = names.StaticMoeRoutingMethod(fixed)
    assert method.apply(torch.zeros(2, 4)) == (fixed, None)
    assert method.experts_per_token == 2
    with pytest.raises(AssertionError, match="int32"):
        names.StaticMoeRoutingMethod(fixed.long())
    chosen, weights = names.LoadBalancedMoeRoutingMethod(2).apply(torch.zeros(3, 4))
    assert chosen.tolist() == [[0, 1], [2, 3], [0, 1]] and (weights == 1).all()


def test_token_ids_are_an_argument_of_1_4_only(generation):
    method = routing(generation).DefaultMoeRoutingMethod(2)
    ids = torch.zeros(3, dtype=torch.int32)
    if generation == "1.4":
        method.apply(torch.zeros(3, 4), ids)
        assert method.requires_separated_routing is False
        return
    with pytest.raises(TypeError, match=r"input_ids.*1\.4"):
        method.apply(torch.zeros(3, 4), ids)
    assert not hasattr(method, "requires_separated_routing")


def test_kinds_are_numbered_by_generation(generation):
    names = routing(generation)
    assert names.BaseMoeRoutingMethod().routing_method_type is names.RoutingMethodType.Unspecified
    assert int(names.RoutingMethodType.Unspecified) == {"1.2": 5, "1.4": 8}[generation]
    method = names.RenormalizeNaiveMoeRoutingMethod(2)
    assert method.routing_method_type is names.RoutingMethodType.RenormalizeNaive
