"""Layers of experts, label by label: the choice, the experts, the shared ones, what is stored."""

from __future__ import annotations

from typing import Any

import pytest
from zoo_specs import spec_of

from trtllm_scaffold.spec import LayerKind, ModelSpec, MoeSpec


def experts_of(spec: ModelSpec) -> tuple[LayerKind, MoeSpec]:
    kinds = [kind for kind in spec.layer_kinds if kind.moe is not None]
    assert len({kind.moe for kind in kinds}) == len({kind.mlp for kind in kinds}) == 1
    assert kinds[0].moe is not None
    return kinds[0], kinds[0].moe


def stored(spec: ModelSpec) -> dict[tuple[str, ...], tuple[Any, ...]]:
    """Of each tensor of the experts: name, shape, and every way of lying in it but the usual."""
    found = {}
    for tensor in spec.checkpoint.tensors:
        if tensor.roles[0].startswith("moe."):
            words = [tensor.layout, tensor.experts, "transposed" if tensor.transposed else "one"]
            unusual = tuple(word for word in words if word not in ("whole", "one"))
            found[tensor.roles] = (tensor.name.split(".", 4)[4], tensor.shape, *unusual)
    return found


GATE, UP, DOWN = (f"moe.{part}.weight" for part in ("gate", "up", "down"))


@pytest.mark.parametrize(
    ("name", "scores", "counts", "held"),
    [
        ("mixtral", "softmax renormalised", "config.num_local_experts config.num_experts_per_tok",
         {(GATE,): ("experts.{e}.w1.weight", (32, 64)),
          (UP,): ("experts.{e}.w3.weight", (32, 64)),
          (DOWN,): ("experts.{e}.w2.weight", (64, 32))}),
        ("olmoe", "softmax", "config.num_experts config.num_experts_per_tok",
         {(DOWN,): ("experts.{e}.down_proj.weight", (64, 32))}),
        ("aria_text", "topk_softmax", "config.moe_num_experts config.moe_topk",
         {(GATE, UP): ("experts.fc1.weight", (4, 64, 64), "rows", "stacked", "transposed"),
          (DOWN,): ("experts.fc2.weight", (4, 32, 64), "stacked", "transposed")}),
        ("granitemoe_swa", "topk_softmax",
         "config.num_local_experts config.num_experts_per_tok",
         {(GATE, UP): ("experts.gate_up_proj", (4, 64, 64), "rows", "stacked"),
          ("moe.shared.gate.weight", "moe.shared.up.weight"):
              ("input_linear.weight", (96, 64), "rows")}),
        ("minimax_m2", "sigmoid renormalised selection_bias",
         "config.num_local_experts config.num_experts_per_tok",
         {("moe.router.selection_bias",): ("e_score_correction_bias", (4,))}),
    ],
)  # fmt: skip
def test_router_and_checkpoint(
    name: str, scores: str, counts: str, held: dict[tuple[str, ...], tuple[Any, ...]]
) -> None:
    spec = spec_of(name)
    router = experts_of(spec)[1].router
    flags = [flag for flag in ("renormalised", "selection_bias") if getattr(router, flag)]
    assert " ".join([router.scores, *flags]) == scores
    assert f"{router.num_experts.expr} {router.top_k.expr}" == counts
    assert (router.num_experts.value, router.top_k.value) == (4, 2)
    assert router.num_groups is router.scaling is router.floor is None
    assert held.items() <= stored(spec).items()
