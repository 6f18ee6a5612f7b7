from __future__ import annotations

import json

import pytest
from published_configs import FOLDER, PUBLISHED, load

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.infer.quantization import quantization_evidence, read_quantization

FP8_FILE = {
    "producer": {"name": "modelopt", "version": "0.23.0"},
    "quantization": {
        "quant_algo": "FP8",
        "kv_cache_quant_algo": "FP8",
        "exclude_modules": ["lm_head"],
    },
}


def compressed(weights, inputs, **more):
    groups = {"group_0": {"weights": weights, "input_activations": inputs, "targets": ["Linear"]}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, **more}


FP8_CHANNEL = {"num_bits": 8, "type": "float", "strategy": "channel"}
FP8_TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_declare_none_in_config_json(name):
    assert read_quantization(load(name), None) is None


def test_modelopt_file_is_read_nested_and_flat():
    raw = load("nvidia__Llama-3.1-70B-Instruct-FP8")
    nested = read_quantization(raw, FP8_FILE)
    flat = read_quantization(raw, FP8_FILE["quantization"])
    evidence = quantization_evidence(nested)
    assert nested == flat
    assert (nested.algorithm, nested.kv_cache, nested.exclude) == ("FP8", "FP8", ("lm_head",))
    assert nested.source.startswith("hf_quant_config.json")
    assert {(e.fact, e.value) for e in evidence} == {
        ("quantization.algorithm", "FP8"),
        ("quantization.kv_cache", "FP8"),
        ("quantization.exclude", "lm_head"),
    }


def test_modelopt_file_goes_before_config_json():
    raw = {"quantization_config": {"quant_method": "gptq"}}
    spec = read_quantization(raw, FP8_FILE)
    assert spec.algorithm == "FP8"


@pytest.mark.parametrize(
    "declared, algorithm",
    [
        ("fp8_pb_wo", "FP8_BLOCK_SCALES"),
        ("NVFP4", "NVFP4"),
        ("W4A16_AWQ", "W4A16_AWQ"),
        ("W4A8_AWQ", "W4A8_AWQ"),
        ("FP8_PER_CHANNEL_PER_TOKEN", "FP8_PER_CHANNEL_PER_TOKEN"),
    ],
)
def test_modelopt_algorithms(declared, algorithm):
    spec = read_quantization({}, {"quantization": {"quant_algo": declared}})
    assert (spec.algorithm, spec.kv_cache, spec.exclude) == (algorithm, None, ())


def test_modelopt_inside_config_json():
    block = {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "kv_cache_scheme": {"num_bits": 8, "type": "float"},
        "ignore": ["lm_head", "model.layers.0.*"],
    }
    spec = read_quantization({"quantization_config": block}, None)
    assert (spec.algorithm, spec.kv_cache) == ("FP8", "FP8")
    assert spec.exclude == ("lm_head", "model.layers.0.*")


def test_only_the_cache_or_nothing_at_all():
    assert read_quantization({}, {"quantization": {"quant_algo": None}}) is None
    spec = read_quantization(
        {}, {"quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}
    )
    assert (spec.algorithm, spec.kv_cache) == ("NO_QUANT", "FP8")


def test_fp8_in_blocks_and_compressed_tensors():
    block = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head"],
        "ignored_layers": ["lm_head", "model.embed_tokens"],
    }
    spec = read_quantization({"quantization_config": block}, None)
    assert spec.algorithm == "FP8_BLOCK_SCALES"
    assert spec.exclude == ("lm_head", "model.embed_tokens")
    tokens = compressed(FP8_CHANNEL, FP8_TOKEN, ignore=["lm_head"])
    spec = read_quantization({"quantization_config": tokens}, None)
    assert (spec.algorithm, spec.exclude) == ("FP8_PER_CHANNEL_PER_TOKEN", ("lm_head",))
    blocks = compressed(
        {**FP8_CHANNEL, "strategy": "block", "block_structure": [128, 128]}, FP8_TOKEN
    )
    assert read_quantization({"compression_config": blocks}, None).algorithm == "FP8_BLOCK_SCALES"


@pytest.mark.parametrize(
    "block, words",
    [
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, "without weight_block_size"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, "[64, 64]"),
        ({"bits": 4}, "none"),
        (compressed({"num_bits": 4, "type": "int"}, FP8_TOKEN), "4-bit int"),
        (compressed({**FP8_CHANNEL, "strategy": "tensor"}, FP8_TOKEN), "per tensor"),
        ({"quant_method": "compressed-tensors", "config_groups": {}}, "one group"),
        (compressed(FP8_CHANNEL, None), "input_activations"),
        (compressed(FP8_CHANNEL, FP8_TOKEN, ignore=["re:.*lm_head"]), "re:.*lm_head"),
        (
            compressed(FP8_CHANNEL, FP8_TOKEN, kv_cache_scheme={"num_bits": 4, "type": "int"}),
            "kv_cache_scheme",
        ),
        ({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}, "MIXED_PRECISION"),
    ],
)
def test_what_has_no_reader_is_refused_by_axis(block, words):
    with pytest.raises(Refused) as caught:
        read_quantization({"quantization_config": block}, None)
    assert caught.value.axis == "quantization"
    assert words in str(caught.value)
    assert caught.value.hint


def test_published_static_fp8_is_refused():
    raw = json.loads((FOLDER / "mistralai__Devstral-2-123B-Instruct-2512.json").read_text())
    with pytest.raises(Refused, match="fp8 without weight_block_size"):
        read_quantization(raw, None)


@pytest.mark.parametrize(
    "raw, modelopt",
    [
        ({"quantization_config": "fp8"}, None),
        ({"quantization_config": {"quant_method": 8}}, None),
        ({}, {"quantization": ["FP8"]}),
        ({}, {"quantization": {"quant_algo": "FP8", "exclude_modules": "lm_head"}}),
        ({}, {"quantization": {"quant_algo": "FP8", "exclude_modules": [1]}}),
    ],
)
def test_malformed_declarations_are_bad_input(raw, modelopt):
    with pytest.raises(InputError) as caught:
        read_quantization(raw, modelopt)
    assert "\n" not in str(caught.value)
