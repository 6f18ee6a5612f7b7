from __future__ import annotations

from types import SimpleNamespace

import pytest
from published_configs import ALL, config_of, load

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.infer.normalize import dtype, is_per_layer_type, rope_parameters


def test_old_and_new_spelling_read_the_same():
    scaling = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **scaling}}
    new = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **scaling}}
    expected = {"rope_type": "llama3", "rope_theta": 5e5, **scaling}
    assert rope_parameters(old) == rope_parameters(new) == expected


@pytest.mark.parametrize("name", ALL)
def test_a_file_and_its_configuration_object_agree(name):
    raw = load(name)
    from_file, from_object = rope_parameters(raw), rope_parameters(config_of(raw))
    defaults = {"partial_rotary_factor": 1.0}
    for key, value in from_file.items():
        assert from_object.get(key, defaults.get(key)) == value, key
    if "rope_theta" not in from_file and from_object:
        assert from_object["rope_theta"] in (10000.0, 500000.0)


def test_neox_names_and_su():
    assert rope_parameters({"rotary_emb_base": 10000, "rotary_pct": 0.25}) == {
        "rope_type": "default",
        "rope_theta": 10000,
        "partial_rotary_factor": 0.25,
    }
    su = {
        "rope_scaling": {"type": "su", "long_factor": [1.0], "short_factor": [1.0]},
        "original_max_position_embeddings": 4096,
    }
    read = rope_parameters(su)
    assert read["rope_type"] == "longrope"
    assert read["original_max_position_embeddings"] == 4096


def test_original_length_falls_back_to_the_longest_position():
    raw = {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 4096}
    assert rope_parameters(raw)["original_max_position_embeddings"] == 4096
    raw["rope_scaling"] = {"type": "linear", "factor": 4.0}
    assert "original_max_position_embeddings" not in rope_parameters(raw)


def test_nothing_said_is_nothing_read():
    assert rope_parameters({"hidden_size": 64, "rope_scaling": None}) == {}


def test_layer_types_are_told_apart_in_both_spellings():
    old = {
        "rope_theta": 1000000,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    read = rope_parameters(old)
    assert is_per_layer_type(read)
    assert read["full_attention"] == {
        "rope_type": "linear",
        "rope_theta": 1000000,
        "factor": 8.0,
    }
    assert read["sliding_attention"] == {"rope_type": "default", "rope_theta": 10000}
    new = {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1000000, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000},
            "rope_type": "default",
            "rope_theta": None,
        }
    }
    assert rope_parameters(new) == read
    assert not is_per_layer_type(rope_parameters({"rope_theta": 1.0}))
    assert not is_per_layer_type({})


def test_a_configuration_object_of_the_older_generation_is_read():
    config = SimpleNamespace(
        rope_theta=500000.0, rope_scaling={"rope_type": "linear", "factor": 2.0}
    )
    assert rope_parameters(config) == {
        "rope_type": "linear",
        "rope_theta": 500000.0,
        "factor": 2.0,
    }


@pytest.mark.parametrize(
    "raw, words",
    [
        ({"rope_theta": 1e4, "rotary_emb_base": 5e5}, ("rope_theta", "10000.0", "500000.0")),
        (
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
            ("rope_theta", "10000.0", "500000.0"),
        ),
        (
            {"partial_rotary_factor": 0.5, "rotary_pct": 0.25},
            ("partial_rotary_factor", "rotary_pct", "0.5", "0.25"),
        ),
        ({"rope_scaling": {"type": "yarn", "rope_type": "linear"}}, ("yarn", "linear")),
        (
            {
                "rope_scaling": {"type": "yarn", "original_max_position_embeddings": 2048},
                "original_max_position_embeddings": 4096,
            },
            ("2048", "4096"),
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "linear", "factor": 4.0},
            },
            ("rope_parameters.factor", "rope_scaling.factor", "2.0", "4.0"),
        ),
    ],
)
def test_disagreeing_spellings_are_an_error_that_names_both(raw, words):
    with pytest.raises(InputError) as caught:
        rope_parameters(raw)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "raw",
    [
        {"rope_scaling": "yarn"},
        {"rope_scaling": ["yarn"]},
        {"rope_parameters": {"rope_type": ["yarn"]}},
        {"rope_parameters": {"rope_type": "yarn", "factor": [[1.0]]}},
    ],
)
def test_malformed_settings_are_one_clear_line(raw):
    with pytest.raises(InputError) as caught:
        rope_parameters(raw)
    assert "\n" not in str(caught.value)


def test_dtype_is_read_under_both_names():
    import torch

    assert dtype({"torch_dtype": "bfloat16"}) == "bfloat16"
    assert dtype({"dtype": "torch.float16"}) == "float16"
    assert dtype(SimpleNamespace(dtype=torch.bfloat16, torch_dtype=torch.bfloat16)) == "bfloat16"
    assert dtype({}) == "float32"
    assert dtype({"torch_dtype": "auto"}, default="bfloat16") == "bfloat16"
    with pytest.raises(InputError, match="'float16' but torch_dtype is 'bfloat16'"):
        dtype({"dtype": "float16", "torch_dtype": "bfloat16"})
    with pytest.raises(InputError, match="int8"):
        dtype({"dtype": "int8"})


def test_dtype_of_every_published_file():
    for name in ALL:
        raw = load(name)
        assert dtype(raw) == raw.get("torch_dtype", "float32")
