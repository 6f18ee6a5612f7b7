"""Layers of experts, label by label: the choice, the experts, the shared ones, what is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from zoo_specs import ENTRIES, infer_from, spec_of

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.infer import infer
from trtllm_scaffold.sources import load_path
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import LayerKind, ModelSpec, MoeSpec, Quantity
from trtllm_scaffold.spec.describe import describe


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


def test_groups_scaling_dense_layers_and_shared_experts() -> None:
    """GLM-4.5: the choice sees a bias and groups; the first layers are dense."""
    spec = spec_of("glm4_moe", n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=3)
    kind, moe = experts_of(spec)
    router = moe.router
    assert (router.scores, router.renormalised, router.selection_bias) == ("sigmoid", True, True)
    assert router.num_groups == Quantity(4, "config.n_group")
    assert router.top_groups == Quantity(2, "config.topk_group")
    assert (router.group_score, router.epsilon) == ("top2_sum", 1e-20)
    assert router.scaling == Quantity(1.5, "config.routed_scaling_factor")
    assert kind.mlp.intermediate_size == Quantity(32, "config.moe_intermediate_size")
    assert moe.shared is not None and moe.shared.join == "sum"
    assert moe.shared.mlp.intermediate_size.expr == (
        "config.moe_intermediate_size * config.n_shared_experts"
    )
    dense = "layer_idx < config.first_k_dense_replace"
    assert [k.condition for k in spec.layer_kinds if k.moe is None] == [dense]
    only = {t.only_layers for t in spec.checkpoint.tensors if t.roles[0].startswith("moe.")}
    assert only == {(1, 2)}


def test_a_bound_on_the_sum_and_biases_of_shared_experts() -> None:
    """ERNIE 4.5: softmax, and a bias for the choice alone; a first layer without experts."""
    spec = spec_of("ernie4_5_moe")
    _, moe = experts_of(spec)
    assert (moe.router.scores, moe.router.renormalised) == ("softmax", True)
    assert moe.router.floor == Quantity(1e-12, "config.moe_norm_min")
    assert moe.router.selection_bias and moe.router.epsilon == 0.0
    assert moe.shared is not None and moe.shared.mlp.gate_bias and moe.shared.mlp.down_bias
    assert spec.layer_kinds[0].condition == "layer_idx < config.moe_layer_start_index"


def test_a_gate_on_the_shared_expert() -> None:
    spec = spec_of("qwen2_moe")
    _, moe = experts_of(spec)
    assert moe.shared is not None and moe.shared.join == "sigmoid_gate"
    assert ("moe.shared_gate.weight",) in stored(spec)
    document = describe(spec)["mlp"]
    assert (document["kind"], document["moe"]["dense_layers"]) == ("moe", [0])
    assert document["moe"]["shared"]["join"] == "sigmoid_gate"


def test_the_mean_of_both_and_sigmoids_of_the_chosen() -> None:
    average = {"shared_expert_combination_strategy": "average"}
    _, moe = experts_of(spec_of("cohere2_moe+rms_sigmoid", **average))
    assert moe.router.scores == "sigmoid"
    assert moe.shared is not None and moe.shared.join == "mean"


def test_nested_keys_and_experts_behind_one_another() -> None:
    """DBRX: its sizes lie in a configuration of their own, its experts in one flat matrix."""
    spec = spec_of("dbrx")
    kind, moe = experts_of(spec)
    assert moe.router.num_experts.expr == "config.ffn_config.moe_num_experts"
    assert moe.router.top_k.expr == "config.ffn_config.moe_top_k"
    assert kind.mlp.intermediate_size.expr == "config.ffn_config.ffn_hidden_size"
    assert kind.attention.qkv_clip is not None
    assert kind.attention.qkv_clip.expr == "config.attn_config.clip_qkv"
    held = stored(spec)
    assert held[(GATE,)][1:] == ((128, 64), "flat")
    assert held[(DOWN,)][1:] == ((128, 64), "flat", "transposed")


def test_sparse_mixer() -> None:
    sizes = {"num_hidden_layers": 2, "num_key_value_heads": 2, "num_attention_heads": 4,
             "hidden_size": 64, "intermediate_size": 32, "vocab_size": 128}  # fmt: skip
    _, moe = experts_of(infer_from("phimoe", {**sizes, "num_local_experts": 8}))
    assert (moe.router.scores, moe.router.top_k) == ("sparsemixer", Quantity(2, "2"))
    assert moe.router.jitter == Quantity(0.01, "config.router_jitter_noise")


def test_every_expert_of_a_real_checkpoint_is_explained(tmp_path: Path) -> None:
    """The header is held against the class both ways, expert by expert."""
    entry = ENTRIES["mixtral"]
    config = AutoConfig.for_model(entry.model_type, **entry.overrides)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    sources = load_path(tmp_path / "config.json")
    classes = HFClasses(type(config), type(model))
    evidence = {item.fact: item for item in infer(sources, classes).evidence}
    first = evidence["checkpoint.model.layers.{i}.block_sparse_moe.experts.{e}.w2.weight"]
    assert (first.witness, first.where) == (
        "checkpoint",
        "model.layers.0.block_sparse_moe.experts.0.w2.weight",
    )
    assert sources.header is not None
    tensors = dict(sources.header.tensors)
    assert tensors.pop("model.layers.1.block_sparse_moe.experts.3.w1.weight")
    with pytest.raises(InputError, match=r"1 of \d+ tensors are missing .*layers.1.*experts.3.w1"):
        infer(replace(sources, header=replace(sources.header, tensors=tensors)), classes)


def test_weights_on_the_input_and_a_list_of_layers() -> None:
    """Llama 4: the chosen expert sees the token times its sigmoid; every other layer is dense."""
    spec = spec_of("llama4_text")
    kind, moe = experts_of(spec)
    assert (moe.router.scores, moe.router.renormalised, moe.weight_on) == (
        "sigmoid",
        False,
        "input",
    )
    assert moe.router.top_k == Quantity(1, "config.num_experts_per_tok")
    assert moe.shared is not None and moe.shared.join == "sum"
    assert kind.mlp.intermediate_size == Quantity(32, "config.intermediate_size")
    assert [spec.layer_kinds[i].moe is not None for i in spec.layer_pattern] == [False, True] * 2
    dense = {k.mlp.intermediate_size for k in spec.layer_kinds if k.moe is None}
    assert dense == {Quantity(96, "config.intermediate_size_mlp")}
    assert "config.moe_layers" in kind.condition
