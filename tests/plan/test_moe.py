"""The routing method is chosen by formula; what has no expression is refused by its axis."""

from __future__ import annotations

import dataclasses

import pytest
from sample_moe import BIASED, EXPERT, LLAMA4, MOE_SPECS, moe, one_by_one, router

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan import plan_port, port_names, support
from trtllm_scaffold.plan.routing import routing_class
from trtllm_scaffold.spec import MoeSpec, Quantity

TINY = Quantity(1e-12, "1e-12")
HALF = Quantity(0.5, "0.5")
GROUPS = {"num_groups": Quantity(4, "4"), "top_groups": Quantity(2, "2")}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (router("softmax"), "Default"),
        (router("softmax", renormalised=True), "Renormalize"),
        (router("softmax", renormalised=True, epsilon=1e-20), "Renormalize"),
        (router("softmax", renormalised=True, floor=TINY), "Renormalize"),
        (router("softmax", renormalised=True, floor=HALF), "own"),
        (router("softmax", renormalised=True, epsilon=1e-3), "own"),
        (router("softmax", selection_bias=True), "own"),
        (router("softmax", **GROUPS), "own"),
        (router("topk_softmax"), "Renormalize"),
        (router("sigmoid"), "Llama4Renormalize"),
        (router("sigmoid", renormalised=True), "own"),
        (router("sigmoid", renormalised=True, selection_bias=True), "DeepSeekV3"),
        (router("sigmoid", selection_bias=True), "own"),
        (router("topk_sigmoid", selection_bias=True), "own"),
        (router("topk_sigmoid"), "own"),
        (
            router(
                "sigmoid",
                renormalised=True,
                selection_bias=True,
                group_score="top2_sum",
                **GROUPS,
            ),
            "DeepSeekV3",
        ),
        (router("sigmoid", renormalised=True, selection_bias=True, **GROUPS), "own"),
        (router("sparsemixer", jitter=HALF), "SparseMixer"),
    ],
)
def test_routing_is_chosen_by_formula(found, expected: str) -> None:
    assert routing_class(found) == (
        expected if expected == "own" else f"{expected}MoeRoutingMethod"
    )


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("mixtral", "native"),
        ("gpt_oss", "native"),
        ("flint", "expressed"),
        ("hunyuan", "expressed"),
    ],
)
def test_support_level(name: str, level: str) -> None:
    assert support(MOE_SPECS[name], "1.2").level.name == level


@pytest.mark.parametrize(
    ("spec", "axis"),
    [
        (
            moe(
                MoeSpec(dataclasses.replace(LLAMA4, top_k=Quantity(2, "2")), weight_on="input"), ()
            ),
            "moe.weight_on",
        ),
        (
            moe(MoeSpec(router()), (), mlp=dataclasses.replace(EXPERT, activation="gelu")),
            "moe.activation",
        ),
        (
            moe(MoeSpec(router()), (), mlp=dataclasses.replace(BIASED, gate_bias=False)),
            "moe.bias",
        ),
        (moe(MoeSpec(router("sparsemixer", jitter=HALF, renormalised=True)), ()), "moe.routing"),
        (
            moe(
                MoeSpec(dataclasses.replace(router(), top_k=Quantity(2, "config.k[layer_idx]"))), ()
            ),
            "moe",
        ),
    ],
)
def test_refusal_names_the_axis(spec, axis: str) -> None:
    with pytest.raises(Refused) as refusal:
        plan_port(spec, port_names(spec, None, None), "1.2")
    assert refusal.value.axis == axis


def test_layers_with_two_kinds_of_experts_are_refused() -> None:
    spec = MOE_SPECS["glm4_moe"]
    other = dataclasses.replace(
        spec.layer_kinds[1], moe=MoeSpec(router()), condition="layer_idx > 1"
    )
    spec = dataclasses.replace(spec, layer_kinds=(spec.layer_kinds[1], other))
    with pytest.raises(Refused, match="several kinds"):
        plan_port(spec, port_names(spec, None, None), "1.2")


def test_an_unknown_layout_is_refused() -> None:
    gate, *rest = one_by_one()
    odd = dataclasses.replace(gate, roles=("moe.gate.weight", "moe.down.weight"), layout="rows")
    spec = moe(MoeSpec(router()), (odd, *rest))
    with pytest.raises(Refused, match="no transform"):
        plan_port(spec, port_names(spec, None, None), "1.2")
