"""A private decoder of experts: misleading names change nothing, what has no label is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from moe_fork import CLASSES, crowd

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer import infer
from trtllm_scaffold.infer.router_fit import only_one
from trtllm_scaffold.infer.routing import Routing, Seen, apply_routing, fit_routing
from trtllm_scaffold.infer.trace import observe
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.spec import ModelSpec, Quantity


def spec_of(**changes: Any) -> ModelSpec:
    return infer(Sources(crowd(**changes), "fork", None, None, Path()), CLASSES)


@pytest.mark.parametrize("way", ["plain", "every expert"])
def test_misleading_names_change_nothing(way: str) -> None:
    spec = spec_of(crowd=way)
    moe, mlp = spec.layer.moe, spec.layer.mlp
    assert moe is not None and moe.shared is None and moe.weight_on == "output"
    router = moe.router
    assert (router.scores, router.top_k.value) == ("sigmoid", 2)
    assert router.num_experts == Quantity(6, "config.num_experts")
    assert router.logit_bias and router.renormalised and router.selection_bias
    assert router.epsilon == 1e-6
    assert router.scaling is not None and router.scaling.expr == "config.boost"
    assert (mlp.activation, mlp.up_bias, mlp.gate_bias, mlp.down_bias) == (
        "gelu_tanh", True, False, False,
    )  # fmt: skip
    roles = {t.name: t.roles for t in spec.checkpoint.tensors}
    assert roles["tower.{i}.mlp.expert.weight"] == ("moe.router.weight",)
    assert roles["tower.{i}.mlp.shift"] == ("moe.router.selection_bias",)
    assert roles["tower.{i}.mlp.gates.{e}.down.weight"] == ("moe.up.weight",)
    assert roles["tower.{i}.mlp.gates.{e}.down.bias"] == ("moe.up.bias",)
    assert roles["tower.{i}.mlp.gates.{e}.bias.weight"] == ("moe.gate.weight",)
    assert roles["tower.{i}.mlp.gates.{e}.router.1.weight"] == ("moe.down.weight",)


def test_a_bias_on_the_logits_is_told_from_one_on_the_scores() -> None:
    seen = observe(crowd(crowd="bias on logits"), CLASSES.config_class, CLASSES.model_class, seed=0)
    moe = seen.layers[0].moe
    assert moe is not None and moe.routing.biased
    assert (moe.routing.scores, moe.routing.epsilon) == ("topk_sigmoid", 1e-6)


@pytest.mark.parametrize(("trick", "fill"), [("zero", "zero"), ("-inf", "lowest")])
def test_what_experts_of_other_groups_count_as(trick: str, fill: str) -> None:
    raw = crowd(crowd=f"groups masked to {trick}")
    seen = observe(raw, CLASSES.config_class, CLASSES.model_class, seed=0)
    moe = seen.layers[0].moe
    assert moe is not None
    assert (moe.routing.num_groups, moe.routing.top_groups) == (2, 1)
    assert (moe.routing.group_score, moe.routing.group_fill) == ("max", fill)


@pytest.mark.parametrize(
    "trick",
    ["identity", "state", "content", "softmax of squares", "bias on squares",
     "groups masked to -1", "length", "softplus experts", "token before", "carried"],
)  # fmt: skip
def test_what_has_no_label_is_refused(trick: str) -> None:
    with pytest.raises(Refused) as caught:
        observe(crowd(crowd=trick), CLASSES.config_class, CLASSES.model_class, seed=0)
    assert caught.value.axis == "moe"
    assert "\n" not in str(caught.value)


def test_formulas_that_the_data_cannot_tell_apart_are_refused() -> None:
    """With two experts, one logit always 0: softmax of both is the sigmoid of the other."""
    logits = torch.stack([torch.rand(64) + 0.1, torch.zeros(64)], 1)
    weights, _ = apply_routing(Routing("sigmoid", 1), logits, None)
    found = fit_routing(Seen(logits, weights, None), softcap=None, softmax_first=False)
    assert {routing.scores for routing in found} == {"softmax", "sigmoid"}
    with pytest.raises(Refused, match="several formulas explain the router") as caught:
        only_one(found, "layers.0.mlp")
    assert caught.value.axis == "moe"


@pytest.mark.parametrize(
    "routing",
    [
        Routing("softmax", 3, scaling=0.7),
        Routing("sigmoid", 3, renormalised=True, biased=True, scaling=2.5),
        Routing("sigmoid", 3, biased=True, num_groups=4, top_groups=2, group_score="top2_sum"),
        Routing("softmax", 3, num_groups=6, top_groups=2),
        Routing("topk_softmax", 3, softcap=2.0),
        Routing("topk_sigmoid", 3, renormalised=True, biased=True),
    ],
    ids=lambda routing: f"{routing.scores}-{routing.num_groups}",
)
def test_each_formula_is_found_among_all(routing: Routing) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2000, 12, generator=generator)
    bias = 0.1 * torch.randn(12, generator=generator) if routing.biased else None
    weights, _ = apply_routing(routing, logits, bias)
    (found,) = fit_routing(
        Seen(logits, weights, bias), softcap=routing.softcap, softmax_first=False
    )
    assert found.scaling == pytest.approx(routing.scaling)
    kept = {k: v for k, v in vars(routing).items() if k != "scaling"}
    assert kept.items() <= vars(found).items()
