"""Nothing keys on names: a private decoder whose names mislead, in many structures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from odd_fork import CLASSES, raw

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.infer import infer
from trtllm_scaffold.sources import Sources


def spec_of(**changes):
    return infer(Sources(raw(**changes), "fork", None, None, Path()), CLASSES)


def test_misleading_names_change_nothing():
    spec = spec_of()
    attention, block, mlp = spec.layer.attention, spec.layer.block, spec.layer.mlp
    assert (attention.kind, attention.head_dim.expr) == ("GQA", "config.head_dim")
    assert attention.num_attention_heads.value == 8
    assert attention.num_key_value_heads.expr == "config.num_key_value_heads"
    assert [attention.q_bias, attention.k_bias, attention.v_bias, attention.o_bias] == [
        False,
        True,
        False,
        False,
    ]
    assert attention.has_default_scale and attention.window is None
    assert block.placement == "pre"
    assert (block.attention_input_norm, block.mlp_input_norm) == ("lm_head", "rotary")
    assert [norm.label for _, norm in block.norms] == ["rmsnorm 1+w", "rmsnorm 1+w"]
    assert block.norms[0][1].eps.expr == "config.tiny_epsilon"
    assert (mlp.kind, mlp.activation, mlp.down_bias, mlp.up_bias) == ("gated", "silu", True, False)
    assert spec.position.rope.style == "neox"
    assert spec.head.final_norm is None and not spec.head.tied
    roles = {t.name: (t.roles, t.layout) for t in spec.checkpoint.tensors}
    assert roles["tower.{i}.softmax.values.weight"] == (("attention.q.weight",), "whole")
    assert roles["tower.{i}.softmax.queries.weight"] == (("attention.k.weight",), "whole")
    assert roles["tower.{i}.softmax.queries.bias"] == (("attention.k.bias",), "whole")
    assert roles["tower.{i}.softmax.keys.weight"] == (("attention.v.weight",), "whole")
    assert roles["tower.{i}.softmax.gate_proj.weight"] == (("attention.o.weight",), "whole")
    assert roles["tower.{i}.mlp.down.weight"] == (("mlp.gate.weight", "mlp.up.weight"), "rows")
    assert roles["tower.{i}.mlp.up.weight"] == (("mlp.down.weight",), "whole")
    assert roles["tower.{i}.rotary.bias"] == (("norm.rotary.weight",), "whole")
    assert roles["layers.weight"] == (("embedding.weight",), "whole")
    assert roles["embed.weight"] == (("head.weight",), "whole")


@pytest.mark.parametrize(
    ("block", "placement", "places"),
    [
        ("post", "post", {"post_attention_norm": "rotary", "post_mlp_norm": "lm_head"}),
        (
            "parallel",
            "parallel, two norms",
            {"attention_input_norm": "lm_head", "mlp_input_norm": "rotary"},
        ),
        (
            "shared",
            "parallel, one norm",
            {"attention_input_norm": "rotary", "mlp_input_norm": "rotary"},
        ),
        (
            "branch_output",
            "branch_output",
            {"attention_output_norm": "lm_head", "mlp_output_norm": "rotary"},
        ),
    ],
)
def test_placement(block, placement, places):
    # the unused norm of the shared form would have no role, so it is left to the others
    if block == "shared":
        with pytest.raises(Refused, match="parameters of a layer have no role"):
            spec_of(block=block)
        return
    found = spec_of(block=block).layer.block
    assert found.placement == placement
    for branch in ("attention", "mlp"):
        for place in (f"{branch}_input_norm", f"{branch}_output_norm", f"post_{branch}_norm"):
            assert getattr(found, place) == places.get(place)


def test_residual_gain_is_the_key_that_sets_it():
    block = spec_of(branch_gain=0.8).layer.block
    assert block.attention_coefficient.expr == "config.branch_gain"
    assert block.mlp_coefficient.value == 0.8


def test_residual_taken_after_the_norm_is_refused():
    with pytest.raises(Refused, match="block: .*"):
        spec_of(block="normed residual")


@pytest.mark.parametrize(
    ("rope", "style"),
    [("neox", "neox"), ("plain", "interleaved"), ("deinterleaving", "interleaved")],
)
def test_rope(rope, style):
    position = spec_of(rope=rope).position
    assert (position.kind, position.rope.style) == ("rope", style)
    assert position.rope.dim.value == 64
    assert position.rope.theta.value == 10000.0
    assert position.rope.scaling is None


def test_rope_that_turns_the_other_way():
    rope = spec_of(rope="reversed").position.rope
    assert (rope.style, rope.inverse, rope.theta.value) == ("interleaved", True, 10000.0)
    assert not spec_of(rope="interleaved").position.rope.inverse


def test_no_positions():
    assert spec_of(rope="none").position.kind == "none"


@pytest.mark.parametrize("when", ["before", "after"])
def test_qk_norm(when):
    qk_norm = spec_of(qk_norm=when).layer.attention.qk_norm
    assert (qk_norm.scope, qk_norm.when) == ("head", f"{when}_rope")
    assert qk_norm.norm.label == "rmsnorm 1+w"


def test_layernorm():
    spec = spec_of(norm="layer")
    norm = spec.layer.block.norms[0][1]
    assert (norm.kind, norm.plus_one, norm.bias) == ("layernorm", True, False)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("values_first", (("v", "q", "k"), "rows")),
        ("grouped", (("q", "k", "v"), "per_group")),
    ],
)
def test_fused_layout(layout, expected):
    spec = spec_of(layout=layout)
    tensors = {t.name: t for t in spec.checkpoint.tensors}
    for part in ("weight", "bias"):
        tensor = tensors[f"tower.{{i}}.softmax.out.{part}"]
        roles = tuple(f"attention.{role}.{part}" for role in expected[0])
        assert (tensor.roles, tensor.layout) == (roles, expected[1])


def test_scattered_query_heads_are_refused():
    with pytest.raises(Refused, match="checkpoint: the rows of"):
        spec_of(layout="across")


def test_gate_may_be_the_second_half():
    spec = spec_of(gate="second", act="gelu")
    tensors = {t.name: t for t in spec.checkpoint.tensors}
    assert tensors["tower.{i}.mlp.down.weight"].roles == ("mlp.up.weight", "mlp.gate.weight")
    assert spec.layer.mlp.activation == "gelu"


def test_unknown_activation_is_refused():
    with pytest.raises(Refused, match="mlp: .*formula"):
        spec_of(act="softplus")


def test_window():
    window = spec_of(sliding_window=128).layer.attention.window
    assert (window.value, window.expr) == (128, "config.sliding_window")


@pytest.mark.parametrize("trick", ["looks ahead", "output gate"])
def test_tricks_are_refused(trick):
    with pytest.raises(Refused, match="attention: "):
        spec_of(trick=trick)


def test_a_head_tied_by_word_alone_is_an_error_with_both_values():
    with pytest.raises(InputError, match="head.tied: the trace says False, the config says True"):
        spec_of(tie_word_embeddings=True)


def test_a_theta_that_the_class_ignores_is_an_error_with_both_values():
    with pytest.raises(InputError, match="theta 731, the trace shows .* theta 777"):
        spec_of(trick="own theta")


def test_inference_is_deterministic_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second = spec_of(qk_norm="before"), spec_of(qk_norm="before")
    assert torch.equal(torch.rand(1), expected)
    assert first == second


def test_fused_attention_is_taken_apart():
    attention = spec_of(trick="fused kernel").layer.attention
    assert (attention.kind, attention.window) == ("GQA", None)
    assert attention.scale.value == pytest.approx(0.3)
    assert attention.scale.is_constant


BLOCKS = {
    "index_n_heads": 4,
    "index_head_dim": 64,
    "index_block_size": 128,
    "index_topk_blocks": 16,
    "index_local_blocks": 1,
}


def test_blocks_of_keys_chosen_by_the_tokens():
    spec = spec_of(trick="blocks", **BLOCKS)
    found = spec.layer.attention.block_indexer
    numbers = (
        found.num_heads,
        found.head_dim,
        found.block_size,
        found.top_k,
        found.local_blocks,
    )
    assert {part.expr.removeprefix("config."): part.value for part in numbers} == BLOCKS
    assert (found.style, found.key_norm.label) == ("neox", "rmsnorm 1+w")
    roles = {tensor.name: tensor.roles for tensor in spec.checkpoint.tensors}
    assert roles["tower.{i}.softmax.heads.weight"] == ("attention.index_q.weight",)
    assert roles["tower.{i}.softmax.topk.weight"] == ("attention.index_k.weight",)
    assert roles["tower.{i}.softmax.c.bias"] == ("attention.index_q_norm.weight",)
    assert roles["tower.{i}.softmax.d.bias"] == ("attention.index_k_norm.weight",)
    assert spec.layer.attention.window is None


@pytest.mark.parametrize(
    ("trick", "problem"),
    [("soft blocks", "follow no known formula"), ("late blocks", "not 0 and -inf by blocks")],
)
def test_blocks_chosen_in_another_way_are_refused(trick, problem):
    with pytest.raises(Refused, match=f"attention: .*{problem}"):
        spec_of(trick=trick, **BLOCKS)
