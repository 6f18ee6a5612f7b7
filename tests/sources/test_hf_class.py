"""Which transformers classes a config stands for, and what is refused on which observable fact."""

from __future__ import annotations

import pytest

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.sources.hf_class import resolve_classes


def resolve(model_type, architecture, folder=".", trust=False, **keys):
    raw = {"model_type": model_type, "architectures": [architecture], **keys}
    return resolve_classes(raw, folder, trust)


@pytest.mark.parametrize(
    ("model_type", "architecture"),
    [
        ("llama", "LlamaForCausalLM"),
        ("mistral", "MistralForCausalLM"),
        ("qwen2", "Qwen2ForCausalLM"),
        ("qwen3", "Qwen3ForCausalLM"),
        ("gemma", "GemmaForCausalLM"),
        ("phi3", "Phi3ForCausalLM"),
        ("gpt2", "GPT2LMHeadModel"),
        ("gpt_neox", "GPTNeoXForCausalLM"),
        ("opt", "OPTForCausalLM"),
        ("falcon", "FalconForCausalLM"),
        ("starcoder2", "Starcoder2ForCausalLM"),
        ("olmo2", "Olmo2ForCausalLM"),
        ("cohere", "CohereForCausalLM"),
    ],
)
def test_decoders_of_transformers(model_type, architecture):
    found = resolve(model_type, architecture)
    assert found.model_class.__name__ == architecture
    assert found.config_class.model_type == model_type
    assert not found.remote


def test_an_unknown_family_without_code_is_none():
    assert resolve("zork", "ZorkForCausalLM") is None


@pytest.mark.parametrize(
    ("config", "axis", "message", "hint"),
    [
        (
            {"model_type": "t5", "architecture": "T5ForConditionalGeneration"},
            "encoder-decoder",
            "is_encoder_decoder is true",
            "decoder-only",
        ),
        (
            {"model_type": "bart", "architecture": "BartForCausalLM", "is_encoder_decoder": True},
            "encoder-decoder",
            "(config.json)",
            "decoder-only",
        ),
        (
            {"model_type": "zork", "architecture": "Zork", "is_encoder_decoder": True},
            "encoder-decoder",
            "(config.json)",
            "decoder-only",
        ),
        (
            {"model_type": "gemma3", "architecture": "Gemma3ForConditionalGeneration"},
            "modality",
            "text_config makes it a wrapper",
            "--text-only ports its text decoder alone, as Gemma3ForCausalLM",
        ),
        (
            {
                "model_type": "llava",
                "architecture": "LlavaForConditionalGeneration",
                "text_config": {"model_type": "mistral"},
            },
            "modality",
            "text_config",
            "as MistralForCausalLM",
        ),
        (
            {"model_type": "zork", "architecture": "Zork", "vision_config": {}},
            "modality",
            "reads images",
            "reads text alone",
        ),
        (
            {"model_type": "zork", "architecture": "Zork", "text_config": {"model_type": [1]}},
            "modality",
            "text_config",
            "reads text alone",
        ),
        (
            {"model_type": "llama", "architecture": "LlamaForSequenceClassification"},
            "head",
            "LlamaForSequenceClassification is not a causal language model",
            '["LlamaForCausalLM"]',
        ),
        (
            {"model_type": "vit", "architecture": "ViTModel"},
            "architecture",
            "no causal language model of model_type 'vit'",
            "ForCausalLM",
        ),
        (
            {"model_type": "zork", "architecture": "Zork", "auto_map": {"AutoConfig": "c.C"}},
            "architecture",
            "brings its own code",
            "--trust-remote-code",
        ),
    ],
)
def test_refused_by_what_can_be_observed(config, axis, message, hint):
    with pytest.raises(Refused) as caught:
        resolve(**config)
    assert caught.value.axis == axis
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("architecture", ["MistralForCausalLM", "YiForCausalLM"])
def test_two_names_that_disagree_are_both_quoted(architecture):
    with pytest.raises(InputError) as caught:
        resolve("llama", architecture)
    assert "LlamaForCausalLM" in caught.value.message
    assert architecture in caught.value.message


CODE = """
from transformers import LlamaConfig, LlamaForCausalLM
open({marker!r}, "w").close()
class ZorkConfig(LlamaConfig):
    model_type = "zork"
class ZorkForCausalLM(LlamaForCausalLM):
    config_class = ZorkConfig
"""
AUTO_MAP = {"AutoConfig": "zork.ZorkConfig", "AutoModelForCausalLM": "zork.ZorkForCausalLM"}


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A folder with code of its own, which leaves a mark when it runs."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "zork"
    folder.mkdir()
    marker = tmp_path / "it-ran"
    (folder / "zork.py").write_text(CODE.format(marker=str(marker)))
    return folder, marker


def test_remote_code_runs_only_when_trusted(remote):
    folder, marker = remote
    with pytest.raises(Refused, match="--trust-remote-code"):
        resolve("zork", "ZorkForCausalLM", folder, auto_map=AUTO_MAP)
    assert resolve("llama", "LlamaForCausalLM", folder, auto_map=AUTO_MAP).remote is False
    assert not marker.exists()
    found = resolve("zork", "ZorkForCausalLM", folder, trust=True, auto_map=AUTO_MAP)
    assert found.remote and found.model_class.__name__ == "ZorkForCausalLM"
    assert found.config_class.__name__ == "ZorkConfig"
    assert marker.exists()


@pytest.mark.parametrize(
    "auto_map",
    [
        {},
        [],
        {"AutoConfig": "zork.ZorkConfig"},
        AUTO_MAP | {"AutoConfig": "../evil.ZorkConfig"},
        AUTO_MAP | {"AutoModelForCausalLM": ["zork.ZorkForCausalLM", None]},
    ],
)
def test_malformed_references_to_remote_code(remote, auto_map):
    folder, marker = remote
    with pytest.raises(InputError, match="auto_map has"):
        resolve("zork", "ZorkForCausalLM", folder, trust=True, auto_map=auto_map)
    assert not marker.exists()


def test_broken_remote_code_is_one_line(remote):
    folder, _ = remote
    (folder / "zork.py").write_text("import no_such_package_anywhere\n")
    with pytest.raises(InputError, match="own code cannot be imported"):
        resolve("zork", "ZorkForCausalLM", folder, trust=True, auto_map=AUTO_MAP)
