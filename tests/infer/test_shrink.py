from __future__ import annotations

import copy
import json

import pytest
import torch
from published_configs import ALL, PUBLISHED, classes_of, config_of, load

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.infer.keys import is_number, is_scalar, is_token, keys_of
from trtllm_scaffold.infer.normalize import rope_parameters
from trtllm_scaffold.infer.shrink import shrink
from trtllm_scaffold.infer.tiny_layers import kept_layers
from trtllm_scaffold.infer.tiny_sizes import real_sizes
from trtllm_scaffold.sources.hf_class import HFClasses

STYLES = [("published", 0), ("published", 1), ("odd", 0), ("odd", 1)]


def sizes_of(raw):
    config = config_of(raw)
    return real_sizes({**raw, **config.to_dict()}, config.attribute_map)


def head_width(sizes):
    return sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]


@pytest.mark.parametrize("style, variant", STYLES)
@pytest.mark.parametrize("name", ALL)
def test_tiny_model_builds_and_runs_past_its_window_and_original_length(name, style, variant):
    torch.set_num_threads(1)
    raw = load(name)
    before = copy.deepcopy(raw)
    classes = classes_of(raw)
    tiny = shrink(raw, classes, style=style, variant=variant)
    assert raw == before
    assert json.loads(json.dumps(tiny)) == tiny
    assert "quantization_config" not in tiny and "auto_map" not in tiny
    config = classes.config_class.from_dict(copy.deepcopy(tiny))
    config._attn_implementation = "eager"
    model = classes.model_class(config).float().eval()
    assert sum(p.numel() for p in model.parameters()) < 6_000_000
    with torch.no_grad():
        logits = model(torch.randint(3, tiny["vocab_size"], (2, 40))).logits
    assert logits.shape == (2, 40, tiny["vocab_size"])
    assert bool(logits.isfinite().all())


@pytest.mark.parametrize("style, variant", STYLES)
@pytest.mark.parametrize("name", ALL)
def test_kind_of_attention_and_widths_are_kept(name, style, variant):
    raw = load(name)
    tiny = shrink(raw, classes_of(raw), style=style, variant=variant)
    real, small = sizes_of(raw), sizes_of(tiny)
    heads, kv = small["num_attention_heads"], small.get("num_key_value_heads")
    if kv is not None:
        real_heads, real_kv = real["num_attention_heads"], real["num_key_value_heads"]
        assert (kv == heads) == (real_kv == real_heads)
        assert (kv == 1) == (real_kv == 1)
        assert heads % kv == 0
        if real_heads // real_kv in (1, 2, 3, 4):
            assert heads // kv == real_heads // real_kv
    assert (small["hidden_size"] == heads * head_width(small)) == (
        real["hidden_size"] == real["num_attention_heads"] * head_width(real)
    )
    if "embedding_size" in real:
        assert (small["embedding_size"] == small["hidden_size"]) == (
            real["embedding_size"] == real["hidden_size"]
        )
    fraction = rope_parameters(config_of(tiny)).get("partial_rotary_factor", 1.0)
    assert int(head_width(small) * fraction) % 2 == 0
    assert small["vocab_size"] % 2 == 1
    assert 3 <= small["num_hidden_layers"] <= 6


@pytest.mark.parametrize("name", ALL)
def test_published_sizes_divide_by_tensor_parallel_sizes_and_scalars_stay(name):
    raw = load(name)
    tiny = shrink(raw, classes_of(raw), style="published")
    small = sizes_of(tiny)
    assert small["num_attention_heads"] % 4 == 0
    assert small.get("num_key_value_heads", 2) in (1, 2, 4)
    assert head_width(small) == 32
    for key, value in raw.items():
        if is_scalar(key, value):
            assert tiny[key] == value, key
    old, new = rope_parameters(config_of(raw)), rope_parameters(config_of(tiny))
    changed = {"original_max_position_embeddings", "long_factor", "short_factor"}
    assert {k: v for k, v in old.items() if k not in changed} == {
        k: v for k, v in new.items() if k not in changed
    }


@pytest.mark.parametrize("name", ALL)
def test_odd_variants_differ_in_every_size_and_scalar(name):
    raw = load(name)
    classes = classes_of(raw)
    first, second = (shrink(raw, classes, style="odd", variant=v) for v in (0, 1))
    a, b = sizes_of(first), sizes_of(second)
    assert set(a) == set(b)
    for role in a:
        inert = role == "sliding_window" and first["sliding_window"] == raw["sliding_window"]
        mqa = role == "num_key_value_heads" and a[role] == 1
        assert inert or mqa or a[role] != b[role], role
    one, two = config_of(first).to_dict(), config_of(second).to_dict()
    published = config_of(raw).to_dict()
    scalars = [k for k, v in one.items() if is_scalar(k, v) and v]
    values = [one[k] for k in scalars]
    assert len(set(values)) == len(values)
    for key in scalars:
        assert len({one[key], two[key], published[key]}) == 3, key
    thetas = [rope_parameters(config_of(c)).get("rope_theta") for c in (first, second, raw)]
    assert thetas == [None] * 3 or len(set(thetas)) == 3


@pytest.mark.parametrize("name", PUBLISHED)
def test_token_ids_lie_inside_the_vocabulary_and_equal_ids_stay_equal(name):
    raw = load(name)
    tiny = shrink(raw, classes_of(raw), style="odd")
    flat = {}
    for key, value in config_of(tiny).to_dict().items():
        if is_token(key) and value is not None:
            flat[key] = value if isinstance(value, list) else [value]
            assert all(0 <= item < tiny["vocab_size"] for item in flat[key])
    for key, ids in flat.items():
        if key in raw and isinstance(raw[key], list):
            assert len(set(ids)) == len(set(raw[key]))
    if raw.get("bos_token_id") is not None and raw["bos_token_id"] == raw.get("eos_token_id"):
        assert tiny["bos_token_id"] == tiny["eos_token_id"]


def test_active_window_becomes_short_and_inactive_one_stays_inactive():
    mistral = load("mistralai__Mistral-7B-v0.1")
    assert shrink(mistral, classes_of(mistral), style="published")["sliding_window"] == 5
    phi3 = load("microsoft__Phi-3-mini-128k-instruct")
    tiny = shrink(phi3, classes_of(phi3), style="published")
    assert tiny["sliding_window"] > tiny["max_position_embeddings"]
    nemo = load("mistralai__Mistral-Nemo-Base-2407")
    assert shrink(nemo, classes_of(nemo), style="odd")["sliding_window"] is None


def test_every_kind_of_layer_is_kept_in_order():
    raw = load("qwen2, windows on late layers")
    for style, variant in STYLES:
        tiny = shrink(raw, classes_of(raw), style=style, variant=variant)
        kinds = tiny["layer_types"]
        assert len(kinds) == tiny["num_hidden_layers"]
        assert kinds[0] == "full_attention" and kinds[-1] == "sliding_attention"
        assert kinds.count("full_attention") == tiny["max_window_layers"]


def test_kept_layers_hold_first_last_and_one_of_each_row():
    rows = tuple((kind,) for kind in "aabaacaad")
    kept = kept_layers(rows, 3)
    assert {rows[i] for i in kept} == set(rows)
    assert kept[0] == 0 and kept[-1] == 8
    assert len(kept_layers((("a",),) * 40, 4)) == 4
    assert kept_layers((("a",),) * 2, 4) == (0, 1)


def test_lengths_around_a_scaling_keep_their_ratio():
    raw = load("microsoft__Phi-3-mini-128k-instruct")
    for style, variant in STYLES:
        tiny = shrink(raw, classes_of(raw), style=style, variant=variant)
        original = tiny["original_max_position_embeddings"]
        assert 16 <= original <= 32
        assert tiny["max_position_embeddings"] == 32 * original
        half = tiny["hidden_size"] // tiny["num_attention_heads"] // 2
        for name in ("long_factor", "short_factor"):
            cut, whole = tiny["rope_scaling"][name], raw["rope_scaling"][name]
            assert len(cut) == half
            assert (cut[0], cut[-1]) == (whole[0], whole[-1])
            assert set(cut) <= set(whole)


def test_synonyms_of_one_size_move_together():
    raw = load("openai-community__gpt2")
    tiny = shrink(raw, classes_of(raw), style="odd")
    assert tiny["n_ctx"] == tiny["n_positions"] == 72
    assert tiny["n_embd"] == 288
    assert tiny.get("n_inner") is None
    assert keys_of("hidden_size", {"hidden_size": "n_embd"})[0] == "hidden_size"


def test_unknown_keys_are_kept_and_unknown_copies_of_a_size_follow_it():
    raw = load("meta-llama__Llama-2-7b-hf")
    raw["some_table_rows"] = raw["vocab_size"]
    raw["some_flag"], raw["some_word"], raw["some_large"] = True, "x", 77
    tiny = shrink(raw, classes_of(raw), style="published")
    assert tiny["some_table_rows"] == tiny["vocab_size"]
    assert (tiny["some_flag"], tiny["some_word"], tiny["some_large"]) == (True, "x", 77)


def test_what_layers_may_be_counted_by_becomes_small():
    raw = load("meta-llama__Llama-2-7b-hf")
    raw["global_at"] = [0, 7, 14, 31]
    raw["by_layer"] = {"7": {"x": 1}, "31": {"x": 2}}
    for style, variant in STYLES:
        tiny = shrink(raw, classes_of(raw), style=style, variant=variant)
        depth = tiny["num_hidden_layers"]
        assert tiny["global_at"][0] == 0 and tiny["global_at"][-1] == depth - 1
        assert 0 < len(tiny["global_at"]) < depth
        assert tiny["by_layer"][str(depth - 1)] == {"x": 2} and len(tiny["by_layer"]) == 2
    whole = shrink(raw, classes_of(raw), style="odd", whole_depth=True)
    assert whole["num_hidden_layers"] == 32
    assert all(whole[key] == raw[key] for key in ("global_at", "by_layer"))


def test_a_private_class_is_shrunk_by_its_own_names():
    from transformers import LlamaConfig, LlamaForCausalLM

    class RenamedConfig(LlamaConfig):
        model_type = "renamed"
        attribute_map = {
            "hidden_size": "width_of_things",
            "num_hidden_layers": "depth_of_things",
        }

    raw = {
        **load("meta-llama__Llama-2-7b-hf"),
        "model_type": "renamed",
        "width_of_things": 4096,
        "depth_of_things": 32,
    }
    del raw["hidden_size"], raw["num_hidden_layers"]
    tiny = shrink(raw, HFClasses(RenamedConfig, LlamaForCausalLM), style="odd")
    assert tiny["width_of_things"] == 192 and tiny["depth_of_things"] == 3


def test_values_that_the_class_rejects_are_one_clear_line():
    raw = load("meta-llama__Llama-2-7b-hf")
    raw["hidden_size"] = "wide"
    with pytest.raises(InputError, match="LlamaConfig rejects") as caught:
        shrink(raw, classes_of(raw), style="odd")
    assert "\n" not in str(caught.value)


def renamed_llama(names):
    """A private fork of llama whose configuration has none of the usual names."""
    from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig

    class ForkConfig(PretrainedConfig):
        model_type = "fork"

        def __init__(self, **kwargs):
            for key, value in names.items():
                setattr(self, key, kwargs.pop(key, value))
            super().__init__(**kwargs)

    canonical = {new: old for old, new in FORK_NAMES.items()}

    class ForkForCausalLM(LlamaForCausalLM):
        def __init__(self, config):
            values = {canonical[k]: getattr(config, k) for k in names if k in canonical}
            super().__init__(LlamaConfig(**values, rms_norm_eps=1e-5, pad_token_id=0))

    return HFClasses(ForkConfig, ForkForCausalLM)


FORK_NAMES = {
    "hidden_size": "breadth",
    "num_attention_heads": "eyes",
    "num_key_value_heads": "ears",
    "num_hidden_layers": "storeys",
    "intermediate_size": "belly",
    "vocab_size": "alphabet",
}


@pytest.mark.parametrize("heads, kv", [(32, 8), (32, 32)])
def test_a_fork_without_any_usual_name_is_probed(heads, kv):
    values = {
        "breadth": 4096,
        "eyes": heads,
        "ears": kv,
        "storeys": 6,
        "belly": 11008,
        "alphabet": 32000,
    }
    classes = renamed_llama(values)
    raw = {"architectures": ["ForkForCausalLM"], "model_type": "fork", **values}
    tiny = [shrink(raw, classes, style="odd", variant=v) for v in (0, 1)]
    for small in tiny:
        assert small["breadth"] % small["eyes"] == 0
        assert small["eyes"] % small["ears"] == 0
        assert (small["eyes"] == small["ears"]) == (heads == kv)
        model = classes.model_class(classes.config_class.from_dict(dict(small))).eval()
        assert sum(p.numel() for p in model.parameters()) < 6_000_000
        with torch.no_grad():
            assert model(torch.randint(3, small["alphabet"], (1, 20))).logits.isfinite().all()
    for key in values:
        assert tiny[0][key] != tiny[1][key] != raw[key], key


def test_large_sizes_of_unknown_names_become_small():
    values = {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "num_hidden_layers": 6,
        "belly": 1_000_000,
        "vocab_size": 32000,
    }
    canonical = {k: k for k in values if k != "belly"} | {"belly": "intermediate_size"}
    classes = renamed_llama(values)

    class Model(classes.model_class):
        def __init__(self, config):
            from transformers import LlamaConfig, LlamaForCausalLM

            sizes = {canonical[k]: getattr(config, k) for k in values}
            LlamaForCausalLM.__init__(self, LlamaConfig(**sizes, pad_token_id=0))

    tiny = shrink({**values}, HFClasses(classes.config_class, Model), style="odd")
    assert tiny["belly"] == 44


def test_missing_sizes_name_the_keys_that_were_looked_for():
    classes = renamed_llama({"breadth": 64})
    raw = {"hidden_size": 64, "vocab_size": 128, "n_layer": 2}
    with pytest.raises(Refused, match="attention: no key .* gives num_attention_heads"):
        shrink(raw, classes, style="odd")


def test_scalars_are_told_from_sizes_rates_and_tokens():
    assert is_scalar("rms_norm_eps", 1e-5) and is_scalar("query_pre_attn_scalar", 256)
    assert is_scalar("logit_scale", 0.0625) and is_scalar("some_factor", 3.5)
    for key, value in (
        ("attention_dropout", 0.1),
        ("initializer_range", 0.02),
        ("hidden_size", 64),
        ("pad_token_id", 3),
        ("use_cache", True),
        ("partial_rotary_factor", 0.5),
    ):
        assert not is_scalar(key, value), key
    assert not is_number(True)


def test_scalars_of_a_nested_configuration_share_no_value_with_those_around_it():
    """MPT's clip sits inside; a number outside that looks the same would be taken for it."""
    raw = {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "d_model": 512,
        "n_heads": 8,
        "n_layers": 4,
        "embedding_fraction": 1.0,
        "attn_config": {"alibi": True, "clip_qkv": 0.5},
    }
    for variant in (0, 1):
        tiny = shrink(raw, classes_of(raw), style="odd", variant=variant)
        assert tiny["attn_config"]["clip_qkv"] != tiny["embedding_fraction"]
        assert tiny["attn_config"]["clip_qkv"] not in (0.5, 1.0)


@pytest.mark.parametrize("name", ["google__gemma-2-9b", "google__gemma-3-1b-it"])
def test_a_scalar_that_equals_a_size_by_chance_stays_a_scalar(name):
    """Published as 256, like head_dim: neither a width nor, at a smaller value, a window."""
    raw = load(name)
    assert raw["query_pre_attn_scalar"] == raw["head_dim"]
    classes = classes_of(raw)
    assert shrink(raw, classes, style="published", variant=0)["query_pre_attn_scalar"] == 256
    tiny = [shrink(raw, classes, style="odd", variant=variant) for variant in (0, 1)]
    alike = {
        key
        for key in tiny[0]
        if all(made.get(key) == made["query_pre_attn_scalar"] for made in tiny)
    }
    assert alike == {"query_pre_attn_scalar"}


def test_a_number_of_an_unknown_name_is_no_window_that_has_one():
    raw = {**load("mistralai__Mistral-7B-v0.1"), "sink_span": 300}
    classes = classes_of(raw)
    seen: dict[str, object] = {}

    def live(tiny, found, _classes):
        seen.update(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trtllm_scaffold.infer.probe.live_edits", live)
        tiny = shrink(raw, classes, style="odd", variant=0)
    assert seen["sink_span"] not in (tiny["sliding_window"], 300)
