"""Adoption: ports without a record of their template become updatable, or are told why not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from template_releases import (
    commit,
    edit,
    files,
    make_port,
    plan,
    sample_deriver,
)

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.lifecycle.adopt import Adoption, find_nearest, write_adoption
from trtllm_scaffold.lifecycle.history import open_history
from trtllm_scaffold.lifecycle.merge import Kind
from trtllm_scaffold.lifecycle.update import apply_update

ANSWERS = ".copier-answers.yml"
MODELING = "llama_trtllm/modeling_llama.py"


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A port of v0.1.0 for TensorRT-LLM 1.4."""
    return make_port(root, "v0.1.0", "qwen3", "1.4", tmp_path_factory.mktemp("made") / "port")


def nearest(root: Path, port: Path, trtllm: str | None = None) -> Adoption:
    with open_history(root) as history:
        return find_nearest(port, history, sample_deriver("qwen3"), trtllm)


def test_an_edited_port_without_a_record_is_adopted_and_updates(
    root: Path, made: Path, tmp_path: Path
) -> None:
    port = shutil.copytree(made, tmp_path / "port")
    recorded = (port / ANSWERS).read_bytes()
    (port / ANSWERS).unlink()
    (port / "checkpoint.json").unlink()
    (port / "examples/serve.sh").unlink()
    edit(port / MODELING, lambda text: text.replace("import torch\n", "import torch  # mine\n", 1))
    before = files(port)
    found = nearest(root, port)
    assert files(port) == before
    assert (found.version, found.trtllm) == ("v0.1.0", "1.4") and 0.99 < found.share < 1
    edits = [(each.path, each.lines, each.missing) for each in found.differences]
    assert [edit[::2] for edit in edits] == [("examples/serve.sh", True), (MODELING, False)]
    assert edits[1][1] == 1
    write_adoption(found)
    assert (port / ANSWERS).read_bytes() == recorded and (port / "checkpoint.json").is_file()
    commit(port)

    update = plan(root, port, "qwen3")
    assert not update.paths(Kind.conflict)
    apply_update(update)
    text = (port / MODELING).read_text()
    assert "import torch  # mine\n" in text and text.endswith("# The end of llama.\n")
    assert not (port / "examples/serve.sh").exists()
    with pytest.raises(InputError, match="v0.2.0 is known, so that there is nothing to adopt"):
        nearest(root, port)


def test_a_port_that_is_too_far_is_refused_with_its_differences(
    root: Path, made: Path, tmp_path: Path
) -> None:
    port = shutil.copytree(made, tmp_path / "port")
    edit(port / ANSWERS, lambda text: text.replace("v0.1.0", "v0.1.0-1-g0123456789ab-dirty"))
    edit(port / MODELING, lambda text: "\n".join(f"# {line}" for line in text.splitlines()))
    (port / "llama_trtllm/weights_llama.py").write_text("WEIGHTS = {}\n")
    before = files(port)
    with pytest.raises(Refused, match="too far from any render") as refused:
        nearest(root, port, "1.4")
    message = refused.value.message
    assert "v0.1.0 for TensorRT-LLM 1.4" in message
    assert f"{MODELING} differs in " in message and "weights_llama.py differs in" in message
    assert "README.md" not in message
    assert files(port) == before
