"""A model that brings its own code goes the same road, and its port carries that code to test."""

from __future__ import annotations

import json
from pathlib import Path

import odd_fork
import pytest
from families import run_in

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.pipeline import new_port
from trtllm_scaffold.sources import load_path

CODE = "modeling_odd"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with the configuration and the code of a decoder that transformers has not."""
    folder = tmp_path / "model"
    folder.mkdir()
    raw = odd_fork.raw(qk_norm="after", layout="values_first", rope="plain")
    classes = {"AutoConfig": "OddConfig", "AutoModelForCausalLM": "OddForCausalLM"}
    raw["auto_map"] = {key: f"{CODE}.{name}" for key, name in classes.items()}
    (folder / "config.json").write_text(json.dumps(raw))
    code = Path(odd_fork.__file__).read_text().partition("\nCLASSES =")[0]
    (folder / f"{CODE}.py").write_text(code)
    return folder


@pytest.mark.slow
def test_own_code_goes_the_same_road(model: Path, tmp_path: Path) -> None:
    result = new_port(load_path(model), tmp_path / "port", trust_remote_code=True)
    unproven = [check.to_json() for check in result.checks if check.status != "passed"]
    assert [check["name"] for check in unproven] == ["CUDA graph"], unproven
    reference = result.port / "tests" / "hf_reference" / f"{CODE}.py"
    assert reference.read_text() == (model / f"{CODE}.py").read_text()
    for command in (["ruff", "format", "--check", "."], ["ruff", "check", "."]):
        run_in(result.port, *command)
    run_in(result.port, "pytest", "-q", "-k", "registration or generation or layers or weights")


def test_own_code_never_runs_unasked(model: Path, tmp_path: Path) -> None:
    (model / f"{CODE}.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(Refused, match="brings its own code"):
        new_port(load_path(model), tmp_path / "port")
