"""The rarer axes of transformers' own decoders, label by label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer import infer
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import ModelSpec, TensorSpec

torch.set_num_threads(1)

SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHORT = {"n_embd": 256, "n_layer": 4, "n_head": 8, "vocab_size": 512}


def spec_of(model_type: str, sizes: dict[str, Any] = SIZES, **changes: Any) -> ModelSpec:
    if model_type not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {model_type}")
    config_class = CONFIG_MAPPING[model_type]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    plain = {"architectures": [model_class.__name__], "model_type": model_type}
    raw = {**plain, **sizes, **changes}
    return infer(Sources(raw, "here", None, None, Path()), HFClasses(config_class, model_class))


def tensor_with(spec: ModelSpec, role: str) -> TensorSpec:
    found = [tensor for tensor in spec.checkpoint.tensors if role in tensor.roles]
    assert len(found) == 1
    return found[0]


def test_xielu_with_stored_constants() -> None:
    spec = spec_of("apertus")
    mlp = spec.layer.mlp
    assert (mlp.kind, mlp.activation, mlp.down_norm) == ("plain", "xielu", None)
    assert mlp.activation_parameters == (("beta", 0.5), ("eps", -1e-06))
    for name in ("alpha_p", "alpha_n"):
        tensor = tensor_with(spec, f"mlp.activation.{name}")
        assert (tensor.name, tensor.shape) == (f"model.layers.{{i}}.mlp.act_fn.{name}", (1,))
    assert dict(spec.checkpoint.dropped) == {
        f"model.layers.{{i}}.mlp.act_fn.{name}": "a constant of the activation"
        for name in ("beta", "eps")
    }


def test_norms_before_both_last_projections() -> None:
    spec = spec_of("bitnet")
    attention, mlp = spec.layer.attention, spec.layer.mlp
    assert attention.output_norm is not None and mlp.down_norm is not None
    assert (attention.output_norm.label, mlp.down_norm.label) == ("rmsnorm", "rmsnorm")
    assert (mlp.kind, mlp.activation) == ("gated", "relu2")
    assert tensor_with(spec, "attention.output_norm.weight").shape == (256,)
    assert tensor_with(spec, "mlp.down_norm.weight").shape == (640,)


@pytest.mark.parametrize("normed", [False, True])
def test_embedding_norm_and_residual_after_the_norm(normed: bool) -> None:
    sizes = {k: v for k, v in SIZES.items() if k in ("vocab_size", "hidden_size")}
    changes = {"n_layer": 4, "n_head": 8, "apply_residual_connection_post_layernorm": normed}
    spec = spec_of("bloom", sizes, **changes)
    assert spec.embedding.norm is not None and spec.embedding.norm.bias
    block = spec.layer.block
    assert (block.residual_after_norm, block.placement) == (normed, "pre")
    assert block.attention_input_norm == "input_layernorm"
    assert block.mlp_input_norm == "post_attention_layernorm"
    assert (spec.position.kind, spec.head.tied) == ("alibi", True)
    assert tensor_with(spec, "attention.q.weight").layout == "per_head"
    assert tensor_with(spec, "embedding.norm.bias").per_layer is False


def test_four_blocks_of_query_value_and_key() -> None:
    tensor = tensor_with(spec_of("codegen", SHORT, rotary_dim=16), "attention.q.weight")
    assert (tensor.layout, tensor.blocks, tensor.transposed) == ("blocks", 4, False)
    assert tensor.roles == tuple(f"attention.{part}.weight" for part in "qvk")
    assert tensor.shape == (768, 256)


def test_query_key_norm_with_a_weight_for_each_head() -> None:
    cohere = spec_of("cohere", use_qk_norm=True)
    norm = cohere.layer.attention.qk_norm
    assert norm is not None and norm.scope == "per_head_weight"
    assert norm.norm.label == "layernorm without bias"
    tensor = tensor_with(cohere, "attention.k_norm.weight")
    assert (tensor.shape, tensor.per_head) == ((4, 32), False)


def test_query_key_norm_with_a_module_for_each_head() -> None:
    spec = spec_of("stablelm", qk_layernorm=True)
    norm = spec.layer.attention.qk_norm
    assert norm is not None and (norm.scope, norm.when) == ("per_head_weight", "before_rope")
    assert norm.norm.label == "layernorm without bias"
    for which in "qk":
        tensor = tensor_with(spec, f"attention.{which}_norm.weight")
        assert tensor.name == f"model.layers.{{i}}.self_attn.{which}_layernorm.norms.{{j}}.weight"
        assert (tensor.shape, tensor.per_head) == ((32,), True)


def test_sinks_as_a_factor() -> None:
    spec = spec_of("granite_swa", layer_types=["full_attention"] * 4)
    assert spec.layer.attention.sinks
    assert tensor_with(spec, "attention.sinks").shape == (8,)


def test_norms_without_weights_everywhere() -> None:
    spec = spec_of("nanochat")
    norms = [spec.embedding.norm, spec.head.final_norm, *dict(spec.layer.block.norms).values()]
    assert [norm and norm.label for norm in norms] == ["rmsnorm without weight"] * 4
    assert (spec.layer.mlp.kind, spec.layer.mlp.activation) == ("plain", "relu2")
    assert spec.head.softcap is not None
    assert spec.head.softcap.expr == "config.final_logit_softcapping"


def test_one_more_row_than_words() -> None:
    spec = spec_of("moshi", ffn_dim=640)
    assert spec.embedding.rows is not None
    assert (spec.embedding.rows.value, spec.embedding.rows.expr) == (513, "config.vocab_size + 1")
    assert (spec.vocab_size.value, spec.head.tied) == (512, False)
    assert tensor_with(spec, "mlp.gate.weight").roles == ("mlp.gate.weight", "mlp.up.weight")


def test_dense_layer_before_the_head_and_a_layer_without_norm() -> None:
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    spec = spec_of("modernbert-decoder", layer_types=kinds, local_attention=8)
    dense = spec.head.dense
    assert dense is not None
    assert (dense.activation, dense.bias, dense.norm.label) == (
        "gelu",
        False,
        "layernorm without bias",
    )
    assert (spec.head.bias, spec.embedding.norm is not None) == (True, True)
    tensor = tensor_with(spec, "norm.attn_norm.weight")
    assert (tensor.only_layers, tensor.shape) == ((1, 2, 3), (256,))
    assert tensor_with(spec, "head.dense.weight").name == "lm_head.dense.weight"
    assert tensor_with(spec, "head.norm.weight").name == "lm_head.norm.weight"
    assert tensor_with(spec, "mlp.gate.weight").roles == ("mlp.gate.weight", "mlp.up.weight")


@pytest.mark.parametrize(
    ("model_type", "axis", "changes"),
    [
        ("diffllama", "attention", {}),
        ("doge", "attention", {}),
        ("gemma3n_text", "block", {"num_kv_shared_layers": 0}),
        ("hrm_text", "block", {}),
        ("cpmant", "attention", {}),
    ],
)
def test_what_depends_on_content_stays_refused(
    model_type: str, axis: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(Refused) as caught:
        spec_of(model_type, **changes)
    assert caught.value.axis == axis
