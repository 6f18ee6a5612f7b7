"""Decoders beyond the thirteen families: the right label, or a refusal that names the axis."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.kinds import check_uniform
from trtllm_scaffold.infer.labels import norm_label, position_kind
from trtllm_scaffold.infer.layer_numbers import scale_form
from trtllm_scaffold.infer.trace import Observation, observe

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MIXED = ["sliding_attention", "full_attention"]


def look(model_type: str, **changes: Any) -> Observation:
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    config_class = CONFIG_MAPPING[model_type]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    return observe({**SIZES, **changes}, config_class, model_class, seed=0)


def test_gemma2_sandwich_softcap_and_windows() -> None:
    changes = {"attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0, "head_dim": 24}
    seen = look("gemma2", layer_types=MIXED, sliding_window=4, query_pre_attn_scalar=40, **changes)
    attention = seen.layers[0].attention
    assert [layer.attention.window for layer in seen.layers] == [4, None]
    assert attention.scale == pytest.approx(40**-0.5)
    assert (attention.softcap, seen.head.softcap) == (5.0, 10.0)
    assert set(seen.layers[0].block.norms) == {
        "attention_input_norm", "attention_output_norm", "mlp_input_norm", "mlp_output_norm",
    }  # fmt: skip
    assert seen.embedding.multiplier == pytest.approx(8.0)


def test_granite_multipliers() -> None:
    seen = look(
        "granite",
        attention_multiplier=0.09,
        residual_multiplier=0.35,
        embedding_multiplier=3.0,
        logits_scaling=4.0,
    )
    block = seen.layers[0].block
    assert seen.layers[0].attention.scale == pytest.approx(0.09)
    assert block.attention_coefficient == pytest.approx(0.35)
    assert block.mlp_coefficient == pytest.approx(0.35)
    assert seen.embedding.multiplier == 3.0
    assert seen.head.multiplier == pytest.approx(0.25)


def test_qk_norm_after_rope() -> None:
    attention = look("hunyuan_v1_dense", head_dim=24).layers[0].attention
    assert (attention.scope, attention.when) == ("head", "after_rope")


def test_qk_layernorm_per_head() -> None:
    attention = look("persimmon").layers[0].attention
    assert attention.norms is not None
    assert (norm_label(attention.norms[0]), attention.scope) == ("layernorm with bias", "head")
    assert attention.rope is not None and attention.rope.dim == 8


def test_clip_and_bare_layernorm() -> None:
    seen = look("olmo", clip_qkv=0.5)
    assert seen.layers[0].attention.clip == 0.5
    norms = seen.layers[0].block.norms.values()
    assert {norm_label(norm) for norm in norms} == {"layernorm without weight"}


def test_layernorm_plus_one_and_squared_relu() -> None:
    seen = look("nemotron", head_dim=24)
    labels = {norm_label(norm) for norm in seen.layers[0].block.norms.values()}
    assert labels == {"layernorm 1+w with bias"}
    assert (seen.layers[0].mlp.kind, seen.layers[0].mlp.activation) == ("plain", "relu2")


def test_norm_on_the_branch_with_windows() -> None:
    seen = look("exaone4", layer_types=MIXED, sliding_window=4)
    assert set(seen.layers[0].block.norms) == {"attention_output_norm", "mlp_output_norm"}
    ropes = [layer.attention.rope for layer in seen.layers]
    assert ropes[0] is not None and ropes[1] is None
    check_uniform(seen)


def test_interleaved_partial_rope() -> None:
    rope = look("gptj", n_embd=64, n_layer=2, n_head=4, rotary_dim=8).layers[0].attention.rope
    assert rope is not None and (rope.style, rope.dim) == ("interleaved", 8)


def test_head_bias() -> None:
    seen = look("phi")
    assert seen.head.linear.bias == "lm_head.bias"
    assert seen.layers[0].block.parallel


def test_learned_positions_with_offset_and_multiplier() -> None:
    embedding = look("biogpt").embedding
    assert (embedding.position_offset, embedding.position_rows) == (2, 66)
    assert embedding.multiplier == pytest.approx(8.0)


def test_post_norm_without_options() -> None:
    seen = look("openai-gpt", n_embd=64, n_layer=2, n_head=4, n_positions=64)
    assert set(seen.layers[0].block.norms) == {"post_attention_norm", "post_mlp_norm"}
    assert seen.head.final_norm is None


def test_alibi() -> None:
    falcon = look("falcon", alibi=True, multi_query=False, parallel_attn=False, ffn_hidden_size=96)
    assert position_kind(falcon) == "alibi"
    assert position_kind(look("mpt", d_model=64, n_heads=4, n_layers=2)) == "alibi"


def test_sinusoidal() -> None:
    seen = look("ctrl", n_embd=64, n_layer=2, n_head=4, dff=96)
    assert position_kind(seen) == "sinusoidal"


def test_multi_query_without_fused_groups() -> None:
    seen = look("gpt_bigcode", n_embd=64, n_layer=2, n_head=4, n_positions=64)
    assert (seen.layers[0].attention.heads, seen.layers[0].attention.kv_heads) == (4, 1)


def test_one_scale_for_each_layer() -> None:
    seen = look("gpt2", n_embd=64, n_layer=2, n_head=4, scale_attn_by_inverse_layer_idx=True)
    check_uniform(seen)
    assert [layer.attention.scale for layer in seen.layers] == pytest.approx([0.25, 0.125])
    assert scale_form([seen]) == "{} / (layer_idx + 1)"


def test_layers_of_other_widths_are_refused() -> None:
    seen = look("llama")
    odd = replace(seen.layers[1], mlp=replace(seen.layers[1].mlp, intermediate_size=48))
    with pytest.raises(Refused, match=r"mlp: layers differ in mlp.intermediate_size: 96 and 48"):
        check_uniform(replace(seen, layers=(seen.layers[0], odd)))


@pytest.mark.parametrize(
    ("model_type", "axis", "changes"),
    [
        ("diffllama", "attention", {}),
        ("doge", "attention", {}),
        ("mamba", "attention", {"num_hidden_layers": 2}),
    ],
)
def test_refusals_name_the_axis(model_type: str, axis: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Refused) as caught:
        look(model_type, **changes)
    assert caught.value.axis == axis
    assert "\n" not in str(caught.value)
