"""The exact labels of the thirteen families, from their published configurations."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from published_configs import ALL, FOLDER, classes_of, config_of, load

from trtllm_scaffold.infer import infer
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.spec import ModelSpec, Quantity


@cache
def spec_of(name: str) -> ModelSpec:
    raw = load(name)
    return infer(Sources(raw, name, None, None, FOLDER), classes_of(raw))


def labels(spec: ModelSpec) -> dict[str, Any]:
    attention, mlp, rope = spec.layer.attention, spec.layer.mlp, spec.position.rope
    biases = {
        "q": attention.q_bias, "k": attention.k_bias, "v": attention.v_bias,
        "o": attention.o_bias, "g": mlp.gate_bias, "u": mlp.up_bias, "d": mlp.down_bias,
    }  # fmt: skip
    qk_norm = attention.qk_norm
    return {
        "attention": attention.kind,
        "qk_norm": qk_norm and (qk_norm.norm.label, qk_norm.scope, qk_norm.when),
        "biases": "".join(key for key, value in biases.items() if value),
        "windows": [kind.attention.window is not None for kind in spec.layer_kinds],
        "placement": spec.layer.block.placement,
        "norm": {norm.label for _, norm in spec.layer.block.norms},
        "mlp": (mlp.kind, mlp.activation),
        "position": rope.style if rope else spec.position.kind,
        "scaling": rope and rope.scaling and rope.scaling.kind,
        "final_norm": spec.head.final_norm is not None,
        "tied": spec.head.tied,
        "projected": spec.embedding.projection,
    }


LLAMA = {
    "attention": "MHA",
    "qk_norm": None,
    "biases": "",
    "windows": [False],
    "placement": "pre",
    "norm": {"rmsnorm"},
    "mlp": ("gated", "silu"),
    "position": "neox",
    "scaling": None,
    "final_norm": True,
    "tied": False,
    "projected": False,
}
PLAIN = {**LLAMA, "norm": {"layernorm"}, "biases": "qkvoud", "mlp": ("plain", "gelu")}
FALCON = {**PLAIN, "biases": "", "attention": "MQA", "tied": True}
LLAMA3 = {**LLAMA, "attention": "GQA", "scaling": "llama3"}
OPT = {**PLAIN, "mlp": ("plain", "relu"), "position": "learned", "tied": True}
COHERE = {
    **LLAMA,
    "attention": "GQA",
    "placement": "parallel, one norm",
    "norm": {"layernorm without bias"},
    "position": "interleaved",
    "tied": True,
}
PHI3 = {**LLAMA, "scaling": "longrope"}
QWEN2 = {**LLAMA, "attention": "GQA", "biases": "qkv", "tied": True}
HEAD_NORM = ("rmsnorm", "head", "before_rope")
FULL_NORM = ("rmsnorm", "full", "before_rope")

EXPECTED = {
    "CohereLabs__aya-23-8B": COHERE,
    "EleutherAI__pythia-160m": {**PLAIN, "placement": "parallel, two norms"},
    "Qwen__Qwen2.5-0.5B": QWEN2,
    "Qwen__Qwen3-0.6B": {**LLAMA, "attention": "GQA", "qk_norm": HEAD_NORM, "tied": True},
    "allenai__OLMo-2-1124-7B": {**LLAMA, "qk_norm": FULL_NORM, "placement": "branch_output"},
    "bigcode__starcoder2-7b": {
        **PLAIN, "attention": "GQA", "mlp": ("plain", "gelu_tanh"), "windows": [True],
        "tied": True,
    },
    "facebook__opt-125m": OPT,
    "google__gemma-2b": {
        **LLAMA, "attention": "MQA", "norm": {"rmsnorm 1+w"}, "mlp": ("gated", "gelu_tanh"),
        "tied": True,
    },
    "meta-llama__Llama-2-7b-hf": LLAMA,
    "meta-llama__Llama-3.2-1B-Instruct": {**LLAMA3, "tied": True},
    "meta-llama__Meta-Llama-3.1-8B": LLAMA3,
    "microsoft__Phi-3-mini-128k-instruct": PHI3,
    "microsoft__Phi-3-mini-4k-instruct": {**LLAMA, "windows": [True]},
    "mistralai__Mistral-7B-v0.1": {**LLAMA, "attention": "GQA", "windows": [True]},
    "mistralai__Mistral-Nemo-Base-2407": {**LLAMA, "attention": "GQA"},
    "nvidia__Llama-3.1-70B-Instruct-FP8": LLAMA3,
    "openai-community__gpt2": {
        **PLAIN, "mlp": ("plain", "gelu_tanh"), "position": "learned", "tied": True,
    },
    "tiiuae__falcon-7b-instruct": {**FALCON, "placement": "parallel, one norm"},
    "falcon, new architecture": {
        **FALCON, "attention": "GQA", "placement": "parallel, two norms",
    },
    "falcon, new architecture, one norm": {
        **FALCON, "attention": "GQA", "placement": "parallel, one norm",
    },
    "falcon, rw layout": {**FALCON, "attention": "MHA", "biases": "qkvoud"},
    "opt, post-norm, projected": {
        **OPT, "placement": "post", "final_norm": False, "projected": True,
    },
    "qwen2, windows on late layers": {**QWEN2, "windows": [False, True]},
    "qwen3, windows on late layers": {
        **LLAMA, "attention": "GQA", "qk_norm": HEAD_NORM, "tied": True,
        "windows": [False, True],
    },
    "gpt_neox, sequential": PLAIN,
    "llama, every bias": {**LLAMA, "biases": "qkvogud"},
    "phi3, partial rotary": {**LLAMA, "windows": [True]},
    "phi3, partial longrope": PHI3,
    "llama, yarn in the new spelling": {**LLAMA, "scaling": "yarn"},
    "cohere, qk norm": {
        **COHERE, "qk_norm": ("layernorm without bias", "per_head_weight", "before_rope"),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_labels(name: str) -> None:
    assert labels(spec_of(name)) == EXPECTED[name]


def quantities(spec: ModelSpec) -> dict[str, Quantity | None]:
    attention, block = spec.layer.attention, spec.layer.block
    found = {
        "heads": attention.num_attention_heads,
        "kv_heads": attention.num_key_value_heads,
        "head_dim": attention.head_dim,
        "scale": attention.scale,
        "window": spec.layer_kinds[-1].attention.window,
        "intermediate": spec.layer.mlp.intermediate_size,
        "multiplier": spec.embedding.multiplier,
        "logits": spec.head.multiplier,
        "attention_coefficient": block.attention_coefficient,
        "mlp_coefficient": block.mlp_coefficient,
    }
    found.update({f"eps of {name}": norm.eps for name, norm in block.norms})
    return found


@pytest.mark.parametrize("name", ALL)
def test_every_expression_yields_its_value(name: str) -> None:
    config = config_of(load(name))
    for fact, quantity in quantities(spec_of(name)).items():
        if quantity is not None:
            value = eval(quantity.expr, {"__builtins__": {}}, {"config": config})  # ours
            assert value == quantity.value, fact


@pytest.mark.parametrize(
    ("name", "fact", "value", "expr"),
    [
        ("google__gemma-2b", "multiplier", 2048**0.5, "config.hidden_size ** 0.5"),
        ("google__gemma-2b", "kv_heads", 1, "config.num_key_value_heads"),
        ("CohereLabs__aya-23-8B", "logits", 0.0625, "config.logit_scale"),
        ("mistralai__Mistral-7B-v0.1", "window", 4096, "config.sliding_window"),
        ("qwen2, windows on late layers", "window", 4096, "config.sliding_window"),
        ("tiiuae__falcon-7b-instruct", "heads", 71, "config.num_attention_heads"),
        ("tiiuae__falcon-7b-instruct", "kv_heads", 1, "1"),
        ("falcon, new architecture", "kv_heads", 8, "config.num_kv_heads"),
        ("openai-community__gpt2", "intermediate", 3072, "4 * config.hidden_size"),
        ("facebook__opt-125m", "intermediate", 3072, "config.ffn_dim"),
        ("Qwen__Qwen3-0.6B", "scale", 128**-0.5, "config.head_dim ** -0.5"),
    ],
)
def test_numbers_come_from_the_key_that_sets_them(
    name: str, fact: str, value: float, expr: str
) -> None:
    assert quantities(spec_of(name))[fact] == Quantity(value, expr)


@pytest.mark.parametrize(
    ("name", "dim", "theta"),
    [
        ("EleutherAI__pythia-160m", 16, 10000),
        ("meta-llama__Meta-Llama-3.1-8B", 128, 500000.0),
        ("phi3, partial longrope", 72, 10000.0),
        ("llama, yarn in the new spelling", 128, 50000.0),
        ("Qwen__Qwen3-0.6B", 128, 1000000),
    ],
)
def test_rope(name: str, dim: int, theta: float) -> None:
    rope = spec_of(name).position.rope
    assert rope is not None
    assert (rope.dim.value, rope.theta.value) == (dim, theta)


def test_scaling_keeps_every_parameter() -> None:
    rope = spec_of("meta-llama__Llama-3.2-1B-Instruct").position.rope
    assert rope is not None and rope.scaling is not None
    assert dict(rope.scaling.parameters) == {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    }


def test_learned_positions() -> None:
    opt = spec_of("facebook__opt-125m").position.learned
    gpt2 = spec_of("openai-community__gpt2").position.learned
    assert opt is not None and gpt2 is not None
    assert (opt.offset, opt.rows.value) == (2, 2050)
    assert (gpt2.offset, gpt2.rows) == (0, Quantity(1024, "config.max_position_embeddings"))


def test_layers_with_windows_follow_the_real_pattern() -> None:
    spec = spec_of("qwen2, windows on late layers")
    assert spec.layer_pattern == (0,) * 21 + (1,) * 3
    assert spec_of("Qwen__Qwen2.5-0.5B").layer_pattern == (0,) * 24


def test_conditions_tell_the_kinds_apart() -> None:
    name = "qwen2, windows on late layers"
    spec, config = spec_of(name), config_of(load(name))
    for layer_idx, kind in enumerate(spec.layer_pattern):
        names = {"config": config, "layer_idx": layer_idx}
        held = [eval(k.condition, {"__builtins__": {}}, names) for k in spec.layer_kinds]  # ours
        assert held == [index == kind for index in range(len(spec.layer_kinds))]
    assert spec.layer_kinds[1].condition == 'config.layer_types[layer_idx] == "sliding_attention"'
    assert spec_of("Qwen__Qwen2.5-0.5B").layer.condition == ""
    assert {kind.rope for kind in spec.layer_kinds} == {spec.position.rope}


@pytest.mark.parametrize(
    ("name", "tensor", "roles", "layout", "transposed"),
    [
        ("microsoft__Phi-3-mini-4k-instruct", "qkv_proj.weight", "qkv", "rows", False),
        ("tiiuae__falcon-7b-instruct", "query_key_value.weight", "qkv", "rows", False),
        ("falcon, new architecture", "query_key_value.weight", "qkv", "per_group", False),
        ("falcon, rw layout", "query_key_value.bias", "qkv", "per_head", False),
        ("EleutherAI__pythia-160m", "query_key_value.weight", "qkv", "per_head", False),
        ("openai-community__gpt2", "c_attn.weight", "qkv", "rows", True),
        ("openai-community__gpt2", "c_attn.bias", "qkv", "rows", False),
        ("openai-community__gpt2", "attn.c_proj.weight", "o", "whole", True),
    ],
)
def test_layouts(name: str, tensor: str, roles: str, layout: str, transposed: bool) -> None:
    part = tensor.rpartition(".")[2]
    (found,) = [t for t in spec_of(name).checkpoint.tensors if t.name.endswith(tensor)]
    assert found.roles == tuple(f"attention.{role}.{part}" for role in roles)
    assert (found.layout, found.transposed) == (layout, transposed)


@pytest.mark.parametrize("name", ["meta-llama__Llama-2-7b-hf", "facebook__opt-125m"])
def test_evidence_names_its_witnesses(name: str) -> None:
    evidence = spec_of(name).evidence
    facts = {entry.fact for entry in evidence}
    assert {
        "attention.kind", "attention.num_key_value_heads", "attention.scale", "attention.window",
        "attention.qk_norm", "position.kind", "norm.kind", "norm.placement", "norm.eps",
        "mlp.kind", "mlp.activation", "head.tied", "hidden_size", "vocab_size",
    } <= facts  # fmt: skip
    assert {entry.witness for entry in evidence} >= {"trace", "config"}
    tied = [entry.witness for entry in evidence if entry.fact == "head.tied"]
    assert "trace" in tied and len(tied) == 2
    assert all(isinstance(entry.value, (str, int, float, bool, type(None))) for entry in evidence)
