"""A configuration whose class nobody has: refused, or read as an assumption that is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from families import FOLDER, run_in

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.pipeline import inspect_model, new_port
from trtllm_scaffold.sources import Sources, load_path


def unknown(tmp_path: Path, **changes: Any) -> Sources:
    raw = json.loads((FOLDER / "mistralai__Mistral-7B-v0.1.json").read_text())
    names = {"model_type": "brand-new", "architectures": ["BrandNewForCausalLM"]}
    path = tmp_path / "model" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**raw, **names, **changes}))
    return load_path(path)


def test_refused_unless_allowed(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no class for 'brand-new'"):
        new_port(unknown(tmp_path), tmp_path / "port")


def test_inspect_names_the_assumption(tmp_path: Path) -> None:
    document = inspect_model(unknown(tmp_path)).to_json()
    assert document["proven"] is False
    assert document["model"]["architecture"] == "BrandNewForCausalLM"
    (assumption,) = document["evidence"]["model_type"]
    assert assumption["witness"] == "assumption"
    assert "MistralForCausalLM" in assumption["value"]
    assert document["spec"]["attention"]["window"] == 4096


def test_a_key_that_no_plain_decoder_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="attn_softcap"):
        new_port(unknown(tmp_path, attn_softcap=30.0), tmp_path / "port", allow_unproven=True)
    assert not (tmp_path / "port").exists()


def test_the_port_says_that_it_is_unproven(tmp_path: Path) -> None:
    result = new_port(unknown(tmp_path), tmp_path / "port", allow_unproven=True)
    assert not result.passed and not result.to_json()["proven"]
    assert [check.status for check in result.checks] == ["passed", "passed", "skipped"]
    readme = (result.port / "README.md").read_text()
    assert "**Not proven.**" in readme and "`MistralForCausalLM`" in readme
    assert json.loads((result.port / "config.json").read_text())["model_type"] == "brand-new"
    for command in (["ruff", "format", "--check", "."], ["ruff", "check", "."]):
        run_in(result.port, *command)
    run_in(result.port, "pytest", "-q", "-k", "registration or generation or weights")


@pytest.mark.parametrize("key", ["rms_norm_eps", "tie_word_embeddings", "rope_theta"])
def test_defaults_of_the_assumed_class_are_not_taken(key: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=f"does not say {key}"):
        inspect_model(unknown(tmp_path, **{key: None}))
