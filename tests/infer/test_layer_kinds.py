"""Published decoders whose layers differ, or whose positions are no plain rope, label by label."""

from __future__ import annotations

from typing import Any

import pytest
from zoo_specs import ENTRIES, infer_from, spec_of

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.tiny_layers import is_per_layer, kept_layers, layer_rows, own_sizes
from trtllm_scaffold.spec import AlibiSpec, LayerKind, SinusoidalSpec

SLIDING = 'config.layer_types[layer_idx] == "sliding_attention"'
FULL = 'config.layer_types[layer_idx] == "full_attention"'
WINDOW = "config.sliding_window"
BY_LIST = "neox config.layer_rope_theta[layer_idx]"


def label(kind: LayerKind) -> tuple[str, str, str]:
    """(condition, window, rope) of a kind in a few words."""
    window, rope = kind.attention.window, kind.rope
    shown = "no rope"
    if rope is not None:
        turned = " inverse" if rope.inverse else ""
        shown = f"{rope.style}{turned} {rope.theta.expr or rope.theta.value} {rope.layer_type}"
    return kind.condition, window.expr if window else "", shown.strip()


@pytest.mark.parametrize(
    ("name", "pattern", "kinds"),
    [
        ("cohere2", (0, 1, 0, 1),
         [(SLIDING, WINDOW, "interleaved 10000.0"), (FULL, "", "no rope")]),
        ("cohere_compass_text", (0, 1, 0, 1),
         [(SLIDING, WINDOW, "neox 10000.0 sliding_attention"), (FULL, "", "no rope")]),
        ("exaone4", (0, 0, 0, 1), [(SLIDING, WINDOW, "neox 10000.0"), (FULL, "", "no rope")]),
        ("gemma2", (0, 1, 0, 1), [(SLIDING, WINDOW, "neox 10000.0"), (FULL, "", "neox 10000.0")]),
        ("gemma3_text", (0, 1, 0, 1),
         [(SLIDING, WINDOW, "neox 10000.0 sliding_attention"),
          (FULL, "", "neox 1000000.0 full_attention")]),
        ("gpt_neo", (0, 1, 0, 1),
         [('config.attention_layers[layer_idx] == "global"', "", "no rope"),
          ('config.attention_layers[layer_idx] == "local"', "config.window_size", "no rope")]),
        ("granite_swa", (0, 1, 2, 1),
         [("config.layer_rope_theta[layer_idx] == 0", "", "no rope"), (SLIDING, WINDOW, BY_LIST),
          (f"{FULL} and config.layer_rope_theta[layer_idx] != 0", "", BY_LIST)]),
        ("ministral", (0, 1, 0, 1),
         [(SLIDING, WINDOW, "neox 10000.0"), (FULL, "", "neox 10000.0")]),
        ("modernbert-decoder", (0, 1, 2, 1),
         [("layer_idx == 0", "", "neox 160000.0 full_attention"),
          (SLIDING, WINDOW, "neox 10000.0 sliding_attention"),
          (f"{FULL} and layer_idx > 0", "", "neox 160000.0 full_attention")]),
        ("nanochat", (0, 0, 0), [("", "", "neox inverse 10000.0")]),
        ("smollm3", (0, 1, 0, 1),
         [("config.no_rope_layers[layer_idx] == 1", "", "neox 2000000.0"),
          ("config.no_rope_layers[layer_idx] == 0", "", "no rope")]),
        ("smollm3+swa", (0, 1, 0, 1), [(SLIDING, WINDOW, "neox 2000000.0"), (FULL, "", "no rope")]),
        ("qwen3", (0, 0, 1, 1), [(FULL, "", "neox 10000.0"), (SLIDING, WINDOW, "neox 10000.0")]),
    ],
)  # fmt: skip
def test_kinds_of_layers(
    name: str, pattern: tuple[int, ...], kinds: list[tuple[str, str, str]]
) -> None:
    spec = spec_of(name)
    assert spec.layer_pattern == pattern
    assert [label(kind) for kind in spec.layer_kinds] == kinds


def test_first_layer_without_a_norm() -> None:
    spec = spec_of("modernbert-decoder")
    norms = [kind.block.attention_input_norm for kind in spec.layer_kinds]
    assert norms == [None, "attn_norm", "attn_norm"]
    partial = {t.name: t.only_layers for t in spec.checkpoint.tensors if t.only_layers}
    assert partial == {"model.layers.{i}.attn_norm.weight": (1, 2, 3)}


def test_scale_by_layer() -> None:
    spec = spec_of("gpt2+inv_layer_scale")
    assert spec.layer.attention.scale.value == 0.25
    assert spec.layer.attention.scale.expr.endswith("** -0.5 / (layer_idx + 1)")


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("bloom", {}, AlibiSpec()),
        ("bloom", {"n_head": 6, "hidden_size": 96}, AlibiSpec()),
        ("mpt", {}, AlibiSpec()),
        ("mpt", {"n_heads": 12, "d_model": 192}, AlibiSpec()),
        ("falcon+alibi_mha_seq", {}, AlibiSpec(scaled=True)),
        ("falcon+alibi_mha_seq", {"num_attention_heads": 6, "hidden_size": 96, "num_kv_heads": 6},
         AlibiSpec(scaled=True)),
    ],
)  # fmt: skip
def test_alibi(name: str, changes: dict[str, Any], expected: AlibiSpec) -> None:
    position = spec_of(name, **changes).position
    assert (position.kind, position.alibi) == ("alibi", expected)


def test_sinusoids_and_learned_positions() -> None:
    assert spec_of("ctrl").position.sinusoidal == SinusoidalSpec("concatenated")
    learned = spec_of("biogpt").position.learned
    assert learned is not None and learned.offset == 2


ORIGINAL = {"factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 4.0},
        {"rope_type": "yarn", **ORIGINAL},
        {"rope_type": "yarn", **ORIGINAL, "attention_factor": 1.3, "beta_fast": 20.0,
         "beta_slow": 2.0, "truncate": False},
        {"rope_type": "yarn", **ORIGINAL, "mscale": 0.7, "mscale_all_dim": 0.4},
    ],
)  # fmt: skip
def test_scalings_come_with_every_parameter(scaling: dict[str, Any]) -> None:
    spec = spec_of("llama", rope_parameters={"rope_theta": 5000.0, **scaling})
    rope = spec.position.rope
    assert rope is not None and rope.scaling is not None
    assert rope.scaling.kind == scaling["rope_type"]
    given = {k: v for k, v in scaling.items() if k != "rope_type"}
    assert dict(rope.scaling.parameters) == given
    assert spec.layer.attention.has_default_scale


def test_one_scaling_by_layer_type() -> None:
    scaled = {"rope_type": "yarn", "rope_theta": 90000.0, **ORIGINAL}
    plain = {"rope_type": "default", "rope_theta": 10000.0}
    by_type = {"sliding_attention": plain, "full_attention": scaled}
    near, far = spec_of("gemma3_text", rope_parameters=by_type).layer_kinds
    assert near.rope is not None and near.rope.scaling is None
    assert far.rope is not None and far.rope.scaling is not None
    assert far.rope.scaling.get("factor") == 4.0
    assert near.attention.scale == far.attention.scale


SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("model_type", "axis"),
    [
        ("bert", "attention"), ("big_bird", "attention"), ("blt", "model"),
        ("electra", "attention"), ("falcon_mamba", "attention"), ("jamba", "attention"),
        ("lfm3", "attention"), ("mamba", "attention"), ("minimax", "attention"),
        ("olmo_hybrid", "attention"), ("qwen3_5_text", "attention"), ("qwen3_next", "attention"),
        ("recurrent_gemma", "attention"), ("rembert", "attention"), ("roberta", "attention"),
        ("roformer", "attention"), ("rwkv", "attention"), ("trocr", "attention"),
        ("xlm", "block"), ("xlm-roberta-xl", "attention"), ("xmod", "model"),
    ],
)  # fmt: skip
def test_what_is_no_dense_decoder_is_refused(model_type: str, axis: str) -> None:
    with pytest.raises(Refused) as caught:
        infer_from(model_type, SIZES)
    assert caught.value.axis == axis
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model_type", ["rwkv", "blt"])
def test_sizes_that_no_key_gives_are_refused(model_type: str) -> None:
    with pytest.raises(Refused, match="no key of the configuration gives"):
        infer_from(model_type, {})


#: Latent attention that is expressed.
LATENT = (
    "axk2",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "dots3_note",
    "dots3_note_text",
    "glm_moe_dsa",
    "minicpm3",
)
#: Layers of experts beside an attention, or a dense layer, that nobody has said how to express.
NOT_YET = ("inkling2_text", "inkling_text", "jetmoe", "zaya")


@pytest.mark.parametrize(
    "name",
    [
        n
        for n, entry in ENTRIES.items()
        if n in NOT_YET or (entry.category == "mla" and entry.model_type not in LATENT)
    ],
)
def test_latents_and_odd_layers_of_experts_are_refused_by_axis(name: str) -> None:
    with pytest.raises(Refused) as caught:
        spec_of(name)
    assert caught.value.axis in ("moe", "attention", "block", "embedding", "mlp", "model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gemma4_text", "gemma3n_text", "diffllama", "doge", "cpmant"])
def test_dense_decoders_without_an_expression_are_refused(name: str) -> None:
    with pytest.raises(Refused) as caught:
        spec_of(name)
    assert caught.value.axis in ("attention", "block", "position")


def test_numbers_in_the_order_of_the_layers_are_places() -> None:
    """A list of the layers with experts names all of them: it sets no layer apart."""
    assert not is_per_layer([0, 1, 2, 3], 4)
    assert is_per_layer([0, 1, 2, 2], 4)
    assert is_per_layer([0, 1], 2), "two flags"
    full = {"moe_layers": [0, 1, 2, 3, 4, 5], "no_rope_layers": [1, 1, 0, 1, 1, 0]}
    assert kept_layers(layer_rows(full, 6), 3) != tuple(range(6))


def test_sizes_that_layers_have_to_themselves_are_named() -> None:
    held = {"num_hidden_layers": 2, "head_dim": 32, "by_layer": {"1": {"head_dim": 24}}}
    assert own_sizes(held) == "layers differ in head_dim (32 and 24 in by_layer)"
