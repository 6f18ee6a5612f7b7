from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from published_configs import classes_of, config_of, load
from transformers import PretrainedConfig

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.normalize import rope_parameters
from trtllm_scaffold.infer.quantity import Fitter, nice_number
from trtllm_scaffold.infer.shrink import shrink
from trtllm_scaffold.spec.quantity import Quantity


def fitter_of(name):
    raw = load(name)
    classes = classes_of(raw)
    tiny = tuple(config_of(shrink(raw, classes, style="odd", variant=v)) for v in (0, 1))
    return Fitter(tiny, config_of(raw), held=raw), tiny, config_of(raw)


def evaluate(expr, config):
    return eval(expr, {"__builtins__": {}}, {"config": config})  # ours, from checked names


CASES = [
    ("meta-llama__Llama-2-7b-hf", lambda c: c.rms_norm_eps, (), "config.rms_norm_eps"),
    (
        "meta-llama__Llama-2-7b-hf",
        lambda c: c.head_dim**-0.5,
        (),
        "(config.hidden_size // config.num_attention_heads) ** -0.5",
    ),
    (
        "meta-llama__Llama-3.2-1B-Instruct",
        lambda c: c.head_dim**-0.5,
        (),
        "config.head_dim ** -0.5",
    ),
    (
        "meta-llama__Llama-2-7b-hf",
        lambda c: c.num_key_value_heads,
        ("num_key_value_heads",),
        "config.num_key_value_heads",
    ),
    ("openai-community__gpt2", lambda c: c.n_embd, (), "config.hidden_size"),
    ("openai-community__gpt2", lambda c: c.n_positions, (), "config.max_position_embeddings"),
    ("openai-community__gpt2", lambda c: 4 * c.n_embd, (), "4 * config.hidden_size"),
    (
        "openai-community__gpt2",
        lambda c: c.n_embd // c.n_head,
        (),
        "config.hidden_size // config.num_attention_heads",
    ),
    (
        "openai-community__gpt2",
        lambda c: (c.n_embd // c.n_head) ** -0.5,
        (),
        "(config.hidden_size // config.num_attention_heads) ** -0.5",
    ),
    ("google__gemma-2b", lambda c: c.hidden_size**0.5, (), "config.hidden_size ** 0.5"),
    ("google__gemma-2b", lambda c: 1, ("num_key_value_heads",), "config.num_key_value_heads"),
    (
        "facebook__opt-125m",
        lambda c: c.max_position_embeddings + 2,
        (),
        "config.max_position_embeddings + 2",
    ),
    ("facebook__opt-125m", lambda c: 1e-5, (), "1e-05"),
    (
        "tiiuae__falcon-7b-instruct",
        lambda c: 1,
        ("num_key_value_heads", "num_kv_heads"),
        "1",
    ),
    ("CohereLabs__aya-23-8B", lambda c: c.logit_scale, (), "config.logit_scale"),
    ("CohereLabs__aya-23-8B", lambda c: 1 / c.logit_scale, (), "1 / config.logit_scale"),
    ("bigcode__starcoder2-7b", lambda c: c.norm_epsilon, (), "config.norm_epsilon"),
    ("bigcode__starcoder2-7b", lambda c: c.sliding_window, (), "config.sliding_window"),
    (
        "Qwen__Qwen3-0.6B",
        lambda c: c.num_attention_heads * c.head_dim,
        (),
        "config.num_attention_heads * config.head_dim",
    ),
]


@pytest.mark.parametrize("name, number, hints, expr", CASES)
def test_the_expression_is_the_expected_one_and_yields_the_number_everywhere(
    name, number, hints, expr
):
    fitter, tiny, real = fitter_of(name)
    found = fitter.fit("axis.fact", [number(c) for c in tiny], hints=hints)
    assert found.expr == expr
    assert found.value == pytest.approx(number(real), rel=1e-12)
    for config in (*tiny, real):
        assert evaluate(found.expr, config) == pytest.approx(number(config), rel=1e-12)


def test_rope_numbers_carry_no_expression():
    fitter, tiny, _ = fitter_of("EleutherAI__pythia-160m")
    thetas = [rope_parameters(c)["rope_theta"] for c in tiny]
    assert fitter.fit("position.rope.theta", thetas) == Quantity(10000, "")
    dims = [
        int(c.hidden_size // c.num_attention_heads * rope_parameters(c)["partial_rotary_factor"])
        for c in tiny
    ]
    assert fitter.fit("position.rope.dim", dims) == Quantity(16, "")
    full, tiny, _ = fitter_of("meta-llama__Llama-2-7b-hf")
    assert full.fit("position.rope.dim", [c.head_dim for c in tiny]) == Quantity(
        128, "config.hidden_size // config.num_attention_heads"
    )


def test_what_the_class_computes_gives_way_to_what_the_file_holds():
    fitter, tiny, _ = fitter_of("mistralai__Mistral-7B-v0.1")
    widths = [c.hidden_size // c.num_attention_heads for c in tiny]
    found = fitter.fit("attention.head_dim", widths, hints=("head_dim",))
    assert found == Quantity(128, "config.hidden_size // config.num_attention_heads")
    fitter, tiny, _ = fitter_of("mistralai__Mistral-Nemo-Base-2407")
    found = fitter.fit("attention.head_dim", [c.head_dim for c in tiny], hints=("head_dim",))
    assert found == Quantity(128, "config.head_dim")


def test_observed_floats_may_be_a_little_off_and_constants_become_round():
    fitter, tiny, _ = fitter_of("meta-llama__Llama-2-7b-hf")
    noisy = [c.rms_norm_eps * (1 + 3e-6) for c in tiny]
    assert fitter.fit("norm.eps", noisy).expr == "config.rms_norm_eps"
    assert fitter.fit("norm.eps", [1.0000004e-5, 9.999997e-6]) == Quantity(1e-05, "1e-05")
    assert nice_number(0.35000001, 1e-5) == 0.35
    assert nice_number(7, 1e-5) == 7


def test_integers_must_match_exactly():
    fitter, tiny, _ = fitter_of("meta-llama__Llama-2-7b-hf")
    off = [c.vocab_size * 1000003 + 11 for c in tiny]
    with pytest.raises(Refused):
        fitter.fit("embedding.rows", off, rtol=0.5)


def test_nothing_fits_is_refused_by_axis_with_both_values():
    fitter, _, _ = fitter_of("meta-llama__Llama-2-7b-hf")
    with pytest.raises(Refused) as caught:
        fitter.fit("head.multiplier", [0.123456789, 77.0001234])
    assert caught.value.axis == "head"
    assert "0.123457" in str(caught.value) and "77.0001" in str(caught.value)


def test_a_hinted_expression_is_tried_before_a_constant():
    fitter, tiny, _ = fitter_of("Qwen__Qwen2.5-0.5B")
    values = [c.hidden_size // c.num_attention_heads for c in tiny]
    hint = "config.hidden_size // config.num_attention_heads"
    assert fitter.fit("attention.head_dim", values, hints=(hint,)).expr == hint
    harmless = fitter.fit("attention.head_dim", values, hints=("__import__('os')", "config.nope"))
    assert harmless.expr == hint


class Config(SimpleNamespace):
    attribute_map: dict = {}

    def to_dict(self):
        return dict(vars(self))


def test_only_checked_names_enter_an_expression():
    keys = {"a b": 11, "x);import os": 13, "class": 17, "_hidden": 19, "é": 23, "eos_token_id": 29}
    one = Config(**keys)
    two = Config(**{key: value * 2 for key, value in keys.items()})
    fitter = Fitter((one, two), one)
    for value in keys.values():
        with pytest.raises(Refused):
            fitter.fit("mlp.x", [value, value * 2])


def test_rope_keys_never_enter_an_expression():
    one, two = Config(rope_theta=731.0, ok=3.5), Config(rope_theta=1193.0, ok=4.5)
    fitter = Fitter((one, two), one)
    with pytest.raises(Refused):
        fitter.fit("mlp.x", [731.0, 1193.0])
    assert fitter.fit("position.rope.theta", [731.0, 1193.0]) == Quantity(731.0, "")


def test_an_attribute_that_is_no_number_on_one_side_is_not_used():
    one, two, real = Config(width=8, k=3), Config(width=16, k=5), Config(width=None, k=4)
    fitter = Fitter((one, two), real)
    with pytest.raises(Refused):
        fitter.fit("mlp.x", [8, 16])


def test_documented_order_between_attributes_that_agree():
    def config(n, k):
        return Config(zeta=n, num_attention_heads=n, num_key_value_heads=n, other=k)

    fitter = Fitter((config(4, 1), config(6, 2)), config(32, 3))
    assert fitter.fit("attention.x", [4, 6]).expr == "config.num_attention_heads"
    hinted = fitter.fit("attention.x", [4, 6], hints=("zeta",))
    assert hinted == Quantity(32, "config.zeta")


def test_one_configuration_prefers_an_attribute_to_a_constant():
    one = Config(scale=0.37)
    assert Fitter((one,), Config(scale=0.5)).fit("head.x", [0.37]) == Quantity(0.5, "config.scale")
    assert Fitter((one,), one).fit("head.x", [0.5]) == Quantity(0.5, "0.5")


def test_a_wrong_number_of_values_is_a_mistake_of_the_caller():
    fitter, _, _ = fitter_of("meta-llama__Llama-2-7b-hf")
    with pytest.raises(ValueError, match="1 values for 2"):
        fitter.fit("norm.eps", [1.0])


def test_huge_values_do_not_overflow():
    one, two = Config(a=10**400, b=3), Config(a=10**401, b=5)
    fitter = Fitter((one, two), one)
    assert fitter.fit("mlp.x", [3, 5]).expr == "config.b"
    with pytest.raises(Refused):
        fitter.fit("mlp.x", [math.pi, math.e])


def test_two_keys_that_look_alike_in_tiny_models_are_not_chosen_from():
    def config(**keys):
        return PretrainedConfig(tie_word_embeddings=False, **keys)

    tiny = [config(bound=0.37, share=0.37), config(bound=0.53, share=0.53)]
    fitter = Fitter(tiny, config(bound=0.5, share=1.0), held=("bound", "share"))
    with pytest.raises(Refused, match=r"config\.bound and config\.share .* 0\.5 and 1 in the real"):
        fitter.fit("attention.qkv_clip", (0.37, 0.53))
    hinted = fitter.fit("attention.qkv_clip", (0.37, 0.53), hints=("share",))
    assert (hinted.expr, hinted.value) == ("config.share", 1.0)
    with pytest.raises(Refused, match=r"config\.bound \*\* -0\.5 and config\.share \*\* -0\.5"):
        fitter.fit("attention.scale", (0.37**-0.5, 0.53**-0.5))
    alike = Fitter(tiny, config(bound=0.5, share=0.5), held=("bound", "share"))
    assert alike.fit("attention.qkv_clip", (0.37, 0.53)).value == 0.5


def test_a_root_of_a_key_has_rivals_too():
    def config(**keys):
        return PretrainedConfig(tie_word_embeddings=False, **keys)

    tiny = [config(window=5, scalar=5), config(window=7, scalar=7)]
    fitter = Fitter(tiny, config(window=512, scalar=256), held=("window", "scalar"))
    with pytest.raises(Refused, match=r"config\.\w+ \*\* -0\.5 and config\.\w+ \*\* -0\.5 explain"):
        fitter.fit("attention.scale", (5**-0.5, 7**-0.5))


@pytest.mark.parametrize("name", ["google__gemma-3-1b-it", "google__gemma-2-9b"])
def test_a_scale_is_not_taken_for_the_window(name):
    # Both its scalar and its head size are 256: no other key may share the tiny scalar's value.
    fitter, tiny, _ = fitter_of(name)
    observed = [config.query_pre_attn_scalar**-0.5 for config in tiny]
    found = fitter.fit("attention.scale", observed)
    assert (found.value, found.expr) == (256**-0.5, "config.query_pre_attn_scalar ** -0.5")
