"""A whole model's own folder makes a port of its text decoder, which computes its logits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import whole_models
from families import run_in

from trtllm_scaffold.pipeline import new_port
from trtllm_scaffold.sources import load_path
from trtllm_scaffold.verify.harness import Driver, Piece, Setup, build_model
from trtllm_scaffold.verify.parity import make_case
from trtllm_scaffold.verify.port_files import read_port
from trtllm_scaffold.verify.port_module import import_port, read_checkpoint
from trtllm_scaffold.verify.runtime import start_runtime
from trtllm_scaffold.verify.whole_model import check_whole_model

LENGTH = 21

#: What a port of a text decoder may do wrong: file, what stands there, what is made of it, and
#: what the check of the whole model says of it.
FAULTS = (
    ("weights_gemma3.py", 'OTHERS = (\n    "multi_modal_projector.",', "OTHERS = (", "projector"),
    ("modeling_gemma3.py", "= text_config(model_config.pre", "= (model_config.pre", "Gemma3Config"),
)


@pytest.mark.slow
def test_the_whole_models_folder_goes_the_same_road(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    model = whole_models.saved(whole_models.gemma3(), folder)
    sources = replace(load_path(folder), text_only=True)
    result = new_port(sources, tmp_path / "port")
    unproven = [check.to_json() for check in result.checks if check.status != "passed"]
    assert [check["name"] for check in unproven] == ["CUDA graph"], unproven
    assert "whole model" in [check.name for check in result.checks]
    assert "vision_tower" in result.to_json()["text_only"]
    assert "**Text only.**" in (result.port / "README.md").read_text()
    assert json.loads((result.port / "config.json").read_text()) == sources.raw
    for command in (["ruff", "format", "--check", "."], ["ruff", "check", "."]):
        run_in(result.port, *command)
    _same_logits(model, folder, result.port / result.package)
    _faults_are_caught(result.port, result.port / result.package)


def _same_logits(model: torch.nn.Module, folder: Path, package: Path) -> None:
    """The port, made from what the whole model's class stored, against that class."""
    from transformers import AutoConfig

    start_runtime("standin", "1.2")
    import_port(package)
    weights = read_checkpoint(folder)
    assert any(name.startswith("vision_tower.") for name in weights)
    setup = Setup(LENGTH)
    config = AutoConfig.from_pretrained(folder)
    port = build_model(config, weights, setup)
    tokens = torch.randint(3, 110, (LENGTH,), generator=torch.Generator().manual_seed(2))
    with Driver(port, setup) as driver:
        driver.reserve({0: LENGTH})
        found = [driver.forward([Piece(0, tokens[:-3], 0, True)])[0]]
        for place in range(LENGTH - 3, LENGTH):
            found += driver.forward([Piece(0, tokens[place : place + 1], place, False)])
    with torch.inference_mode():
        expected = model(input_ids=tokens[None]).logits[0]
    error = (torch.cat(found) - expected).abs().max() / expected.abs().max()
    assert error < 1e-5, error
    unknown = {**weights, "language_model.model.surprise.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"surprise\.weight is in the checkpoint but not in"):
        build_model(config, unknown, setup)


def _faults_are_caught(port: Path, package: Path) -> None:
    files = read_port(port)
    for name, right, wrong, reason in FAULTS:
        path = package / name
        before = path.read_text()
        assert right in before
        path.write_text(before.replace(right, wrong))
        import_port(package)
        with make_case(files.tiny_configs[0], package) as case:
            found = check_whole_model(case, files)
        assert found.status == "failed" and reason in found.reason, found
        path.write_text(before)
