"""Parts that few models have are labelled by what they do, in a fork whose names mislead."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from odd_parts import CLASSES, raw

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer import infer
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.spec import GateSpec, ModelSpec

torch.set_num_threads(1)


def spec_of(*parts: str) -> ModelSpec:
    return infer(Sources(raw(*parts), "fork", None, None, Path()), CLASSES)


def roles_of(spec: ModelSpec) -> dict[str, tuple[str, ...]]:
    return {tensor.name: tensor.roles for tensor in spec.checkpoint.tensors}


def test_the_fork_without_parts_has_none() -> None:
    spec = spec_of()
    attention, mlp, head = spec.layer.attention, spec.layer.mlp, spec.head
    assert (attention.output_gate, attention.output_norm, attention.sinks) == (None, None, False)
    assert (mlp.activation, mlp.down_norm, mlp.activation_parameters) == ("gelu", None, ())
    assert (spec.embedding.norm, spec.embedding.rows, head.dense, head.softcap) == (None,) * 4
    assert not spec.layer.block.residual_after_norm
    assert spec.position.kind == "none"


def test_blocks_in_another_order() -> None:
    tensors = {tensor.name: tensor for tensor in spec_of().checkpoint.tensors}
    for part in ("weight", "bias"):
        tensor = tensors[f"tower.{{i}}.lm_head.mlp.{part}"]
        assert (tensor.layout, tensor.blocks) == ("blocks", 2)
        assert tensor.roles == tuple(f"attention.{name}.{part}" for name in "kvq")


def test_a_block_for_each_head_in_another_order() -> None:
    tensors = {tensor.name: tensor for tensor in spec_of("a block per head").checkpoint.tensors}
    for part in ("weight", "bias"):
        tensor = tensors[f"tower.{{i}}.lm_head.mlp.{part}"]
        assert tensor.layout == "per_head"
        assert tensor.roles == tuple(f"attention.{name}.{part}" for name in "kvq")


def test_norms_behind_the_heads_and_inside_the_feed_forward() -> None:
    spec = spec_of("output norm", "down norm")
    for norm in (spec.layer.attention.output_norm, spec.layer.mlp.down_norm):
        assert norm is not None
        assert (norm.label, norm.eps.expr) == ("rmsnorm", "config.inner_fuzz")
    roles = roles_of(spec)
    assert roles["tower.{i}.lm_head.out.gain"] == ("attention.output_norm.weight",)
    assert roles["tower.{i}.gamma.gain"] == ("mlp.down_norm.weight",)


def test_sinks_as_a_factor_on_the_output_before_a_norm() -> None:
    spec = spec_of("sinks", "output norm")
    assert spec.layer.attention.sinks
    assert spec.layer.attention.output_norm is not None
    assert roles_of(spec)["tower.{i}.lm_head.embed"] == ("attention.sinks",)


@pytest.mark.parametrize(
    ("part", "expected"),
    [("full gate", ("sigmoid", "full", True)), ("head gate", ("softplus", "head", False))],
)
def test_gates(part: str, expected: tuple[str, str, bool]) -> None:
    spec = spec_of(part, "sinks")
    gate = spec.layer.attention.output_gate
    assert gate is not None and spec.layer.attention.sinks
    assert (gate.activation, gate.width, gate.bias) == expected
    assert roles_of(spec)["tower.{i}.lm_head.router.weight"] == ("attention.gate.weight",)


def test_a_gate_with_a_number_for_each_head() -> None:
    spec = spec_of("gate and head bias")
    gate = spec.layer.attention.output_gate
    assert gate == GateSpec("sigmoid", "full", bias=False, head_bias=True)
    tensors = {tensor.name: tensor for tensor in spec.checkpoint.tensors}
    bias = tensors["tower.{i}.lm_head.scale"]
    assert (bias.roles, bias.shape) == (("attention.gate_bias",), (8,))


def test_queries_that_grow_by_a_power_are_read_where_it_shows() -> None:
    factor = spec_of("growing").layer.attention.query_factor
    assert factor is not None and factor.form == "power"
    assert (factor.period.expr, factor.period.value) == ("config.patience", 700)
    assert (factor.scale.expr, factor.scale.value) == ("config.appetite", 0.3)
    with pytest.raises(Refused, match="grows with the position in an unknown way"):
        spec_of("growing late")


def test_sums_that_settle_with_depth() -> None:
    block = spec_of("settling").layer.block
    found = (
        block.attention_residual,
        block.attention_coefficient,
        block.mlp_residual,
        block.mlp_coefficient,
    )
    assert [part.expr for part in found if part] == [
        "(1 - 1 / (3 * layer_idx + 4)) ** 0.5",
        "1 / (3 * layer_idx + 4) ** 0.5",
        "(1 - 1 / (3 * layer_idx + 5)) ** 0.5",
        "1 / (3 * layer_idx + 5) ** 0.5",
    ]
    with pytest.raises(Refused, match="block: layers differ in block.mlp_"):
        spec_of("settling unevenly")


def test_a_gate_that_looks_at_the_output_itself_is_refused() -> None:
    with pytest.raises(Refused, match="attention: .*multiplied by a constant or by themselves"):
        spec_of("wrong gate")


def test_xielu_with_constants_in_code() -> None:
    spec = spec_of("xielu", "down norm")
    assert spec.layer.mlp.activation == "xielu"
    assert spec.layer.mlp.activation_parameters == (("beta", 0.25), ("eps", -0.001))
    roles = roles_of(spec)
    assert roles["tower.{i}.act.up"] == ("mlp.activation.alpha_p",)
    assert roles["tower.{i}.act.down"] == ("mlp.activation.alpha_n",)
    assert spec.checkpoint.dropped == ()


def test_a_gated_feed_forward_with_bounds_a_slope_and_an_offset() -> None:
    spec = spec_of("bounded")
    mlp = spec.layer.mlp
    assert mlp.clamp is not None and mlp.swish_beta is not None
    assert (mlp.label, mlp.up_offset) == ("gated silu, with a slope and an offset", 0.5)
    assert (mlp.clamp.expr, mlp.clamp.value) == ("config.brim", 6.5)
    assert (mlp.swish_beta.expr, mlp.swish_beta.value) == ("config.tilt", 1.4)
    tensors = {tensor.roles: tensor.layout for tensor in spec.checkpoint.tensors}
    assert tensors["mlp.up.weight", "mlp.gate.weight"] == "rows"


def test_bounds_that_only_large_numbers_reach_are_seen() -> None:
    mlp = spec_of("bounded far").layer.mlp
    assert mlp.label == "gated silu, clamped"
    assert mlp.clamp is not None and (mlp.clamp.expr, mlp.clamp.value) == ("900.0", 900.0)


def test_norms_that_each_head_has_for_itself() -> None:
    spec = spec_of("norm per head")
    norm = spec.layer.attention.qk_norm
    assert norm is not None
    assert (norm.norm.label, norm.scope) == ("layernorm without bias", "per_head_weight")
    assert norm.norm.eps.expr == "config.inner_fuzz"
    tensors = {tensor.name: tensor for tensor in spec.checkpoint.tensors}
    for name, role in (("first", "q_norm"), ("second", "k_norm")):
        tensor = tensors[f"tower.{{i}}.lm_head.{name}.{{j}}.weight"]
        assert tensor.roles == (f"attention.{role}.weight",)
        assert (tensor.per_head, tensor.per_layer, tensor.shape) == (True, True, (64,))


def test_residual_taken_after_the_norm() -> None:
    block = spec_of("normed residual").layer.block
    assert (block.residual_after_norm, block.parallel) == (True, False)
    assert (block.attention_input_norm, block.mlp_input_norm) == ("alpha", "beta")
    assert block.post_attention_norm is None


def test_embedding_with_a_norm_and_one_more_row() -> None:
    spec = spec_of("embedding norm", "more rows")
    assert spec.embedding.norm is not None and spec.embedding.rows is not None
    assert spec.embedding.norm.label == "rmsnorm"
    assert (spec.embedding.rows.value, spec.embedding.rows.expr) == (2201, "config.vocab_size + 1")
    assert spec.vocab_size.value == 2200
    assert roles_of(spec)["top.gain"] == ("embedding.norm.weight",)


def test_dense_head_with_bias_and_softcap() -> None:
    head = spec_of("dense head", "head bias", "softcap").head
    assert head.dense is not None and head.softcap is not None
    assert (head.dense.activation, head.dense.bias, head.dense.norm.label) == (
        "silu",
        True,
        "rmsnorm",
    )
    assert head.final_norm is not None and head.final_norm.eps.expr == "config.fuzz"
    assert head.dense.norm.eps.expr == "config.inner_fuzz"
    assert (head.bias, head.softcap.expr) == (True, "config.ceiling")


def test_all_parts_at_once() -> None:
    everything = (
        "sinks", "full gate", "xielu", "down norm", "norm per head", "normed residual",
        "embedding norm", "more rows", "dense head", "head bias", "softcap",
    )  # fmt: skip
    spec = spec_of(*everything)
    tensors = spec.checkpoint.tensors
    assert len({tensor.name for tensor in tensors}) == len(tensors) == 25
    assert spec.layer.block.residual_after_norm and spec.layer.attention.sinks
