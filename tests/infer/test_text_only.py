"""A text decoder inside a whole model: what it is, where it is stored, and when it is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import whole_models

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.infer.stored_prefixes import Spelling, decoder_header, find_spelling
from trtllm_scaffold.pipeline import hf_classes, read_model
from trtllm_scaffold.sources import CheckpointHeader, TensorInfo, load_path
from trtllm_scaffold.spec import ModelSpec


def read(raw: dict[str, Any], folder: Path, header: CheckpointHeader | None = None) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(raw))
    sources = replace(load_path(folder / "config.json"), text_only=True)
    sources = sources if header is None else replace(sources, header=header)
    return read_model(sources, hf_classes(sources, False))[0]


def names_only(names: list[str]) -> CheckpointHeader:
    return CheckpointHeader(dict.fromkeys(names, TensorInfo(None, None, "index")))


def test_a_decoder_is_read_inside_its_whole_model(tmp_path: Path) -> None:
    spec = read(whole_models.gemma3(), tmp_path)
    assert (spec.architecture, spec.model_type) == ("Gemma3ForConditionalGeneration", "gemma3")
    assert spec.wrapper is not None
    assert spec.wrapper.text_class == "Gemma3ForCausalLM"
    assert spec.wrapper.stored_prefixes == (("", "language_model."),)
    assert spec.wrapper.others == ("multi_modal_projector.", "vision_tower.")
    assert all(t.name.startswith("language_model.model.") for t in spec.checkpoint.tensors)
    assert spec.head.tied and spec.embedding.multiplier is not None
    witness = next(item for item in spec.evidence if item.fact == "modality")
    assert witness.witness == "trace" and "within" in str(witness.value)


def test_another_computation_for_text_is_refused(tmp_path: Path) -> None:
    """HF's whole model leaves out the cap on the logits that its decoder alone has."""
    with pytest.raises(Refused, match="differ on text by") as refusal:
        read(whole_models.gemma3(final_logit_softcapping=3.0), tmp_path)
    assert refusal.value.axis == "modality"


def test_the_checkpoint_settles_what_two_classes_say_of_the_head(tmp_path: Path) -> None:
    raw = whole_models.mistral3()
    with pytest.raises(Refused, match="True in Mistral3Config, but False in its text_config"):
        read(raw, tmp_path)
    whole_models.saved(whole_models.mistral3(tie_word_embeddings=False), tmp_path)
    spec = read(raw, tmp_path)
    assert not spec.head.tied
    assert "language_model.lm_head.weight" in {t.name for t in spec.checkpoint.tensors}


def test_no_decoder_of_its_own_no_port(tmp_path: Path, llama: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="holds no text decoder"):
        read(llama, tmp_path)
    flat = {k: v for k, v in whole_models.gemma3().items() if k != "text_config"}
    with pytest.raises(Refused, match="keeps its keys elsewhere"):
        read(flat, tmp_path)
    strange = {**whole_models.gemma3(), "architectures": ["Gemma3Private"]}
    with pytest.raises(Refused, match="neither a class of Gemma3Config"):
        read(strange, tmp_path)
    quantized = {**whole_models.gemma3(), "quantization_config": {"quant_method": "modelopt"}}
    quantized["quantization_config"]["quant_algo"] = "FP8"
    with pytest.raises(Refused, match="is quantized"):
        read(quantized, tmp_path)


@pytest.fixture
def private(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Make transformers know a whole model of module names that no model of its own has."""

    def known(factor: float) -> dict[str, Any]:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        raw = whole_models.mistral3(tie_word_embeddings=False)
        del raw["vision_config"]
        raw |= {"model_type": "private_whole", "architectures": ["PrivateWhole"]}
        config_class, model_class = whole_models.private(raw, factor)
        monkeypatch.setitem(CONFIG_MAPPING._extra_content, "private_whole", config_class)
        transformers = sys.modules["transformers"]  # which its first import replaces
        monkeypatch.setattr(transformers, "PrivateWhole", model_class, raising=False)
        return raw

    return known


def test_module_names_of_the_whole_model_do_not_matter(
    private: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    spec = read(private(1.0), tmp_path)
    assert spec.wrapper is not None
    assert dict(spec.wrapper.stored_prefixes) == {"model.": "reader.", "lm_head.": "writer."}
    assert spec.wrapper.others == ("eye.",)
    assert "reader.layers.{i}.mlp.up_proj.weight" in {t.name for t in spec.checkpoint.tensors}
    with pytest.raises(Refused, match="PrivateWhole and MistralForCausalLM differ on text"):
        read(private(1.01), tmp_path)


OWN = {
    "model.embed.weight": torch.randn(7, 3),
    "model.blocks.0.norm.weight": torch.randn(3),
    "head.weight": torch.randn(7, 3),
}


def whole(own: dict[str, str], more: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**{stored: OWN[name] for name, stored in own.items()}, **more}


def test_prefixes_are_told_by_values() -> None:
    stored = whole(
        {
            "model.embed.weight": "core.words.embed.weight",
            "model.blocks.0.norm.weight": "core.words.blocks.0.norm.weight",
            "head.weight": "head.weight",
        },
        {"core.eye.blocks.0.norm.weight": torch.randn(3), "newline": torch.randn(3)},
    )
    found = find_spelling(OWN, stored, "a test")
    assert dict(found.prefixes) == {"model.": "core.words.", "": ""}
    assert found.others == ("core.eye.", "newline")
    assert [found.own(name) for name in list(stored)[:3]] == list(OWN)
    assert found.own("model.embed.weight") is None, "only the decoder alone is stored so"


def test_more_than_a_prefix_is_refused() -> None:
    apart = {"model.embed.weight": "a.embed.weight", "head.weight": "a.head.weight"}
    with pytest.raises(Refused, match="begins"):
        find_spelling(
            OWN, whole({**apart, "model.blocks.0.norm.weight": "b.blocks.0.norm.weight"}, {}), "x"
        )
    with pytest.raises(Refused, match="no tensor with the values"):
        find_spelling(OWN, whole(apart, {"a.blocks.0.norm.weight": torch.randn(3)}), "x")


def test_the_header_chooses_among_spellings_and_explains_every_name() -> None:
    old = Spelling((("", "text."),), ("eye.",))
    new = Spelling((("model.", "model.text."), ("", "")), ("model.eye.",))
    names = ["model.text.embed.weight", "head.weight", "model.eye.a.weight"]
    header, chosen = decoder_header(names_only(names), (old, new), ["model.embed.weight"], "h")
    assert chosen == new
    assert set(header.tensors) == {"model.embed.weight", "head.weight"}
    with pytest.raises(InputError, match="nothing explains the stored tensor model.surprise"):
        decoder_header(names_only([*names, "model.surprise"]), (new,), ["model.embed.weight"], "h")
    with pytest.raises(InputError, match="neither text.model.embed.weight nor model.text.embed"):
        decoder_header(names_only(["embed"]), (old, new), ["model.embed.weight"], "h")
