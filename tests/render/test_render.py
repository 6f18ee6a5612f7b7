"""Rendered ports: formatted, linted, the same bytes twice, whole or not at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sample_specs import SPECS

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.render import check_destination, publish, render, rendered_aside


def answers_of(name: str) -> dict:
    return plan_port(SPECS[name], port_names(SPECS[name], None, None), "1.2").answers


def rendered(name: str, dest: Path) -> Path:
    with rendered_aside(answers_of(name), {"config.json": {"a": 1}}, dest) as port:
        publish(port, dest)
    return dest


def contents(port: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(port)): path.read_bytes()
        for path in sorted(port.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def ports(tmp_path_factory) -> Path:
    """Every sample port, rendered once."""
    folder = tmp_path_factory.mktemp("ports")
    for name in SPECS:
        rendered(name, folder / name)
    return folder


@pytest.mark.parametrize("command", [["format", "--check"], ["check"]])
def test_ruff_has_nothing_to_say(ports: Path, command: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *command, "--no-cache", str(ports)],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_replay_gives_the_same_bytes(ports: Path, tmp_path: Path) -> None:
    for name in SPECS:
        answers = yaml.safe_load((ports / name / ".copier-answers.yml").read_text())
        again = tmp_path / name
        again.mkdir()
        render({key: value for key, value in answers.items() if not key.startswith("_")}, again)
        first = contents(ports / name)
        del first["config.json"]
        assert contents(again) == first


def test_only_recorded_answers_reach_the_output(ports: Path) -> None:
    recorded = yaml.safe_load((ports / "llama" / ".copier-answers.yml").read_text())
    assert set(answers_of("llama")) <= set(recorded)


def test_no_machine_paths_and_no_dates(ports: Path) -> None:
    for name, data in contents(ports / "llama").items():
        assert str(ports).encode() not in data, name
        assert b"/tmp/" not in data and b"2026" not in data, name


@pytest.mark.parametrize("name", SPECS)
def test_weight_tables_are_literals(ports: Path, name: str) -> None:
    tree = ast.parse((ports / name / "llama_trtllm" / "weights_llama.py").read_text())
    found = {
        node.target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Name)
        and node.target.id in ("WEIGHTS", "DROPPED")
    }
    assert list(found["WEIGHTS"]) == answers_of(name)["weight_names"]


@pytest.mark.parametrize(
    ("name", "present", "absent"),
    [
        ("llama", "hidden_states, residual = self.input_layernorm", "attention_window_size"),
        ("mistral", "attention_window_size=self.window", "q_norm"),
        ("qwen3", "QKNormRoPEAttention", "ShardedRMSNorm"),
        ("gemma", "use_gemma=True", "LayerNorm("),
        ("gpt2", "embed_positions", "rope"),
        ("cohere", "rope_gptj", "rope_gpt_neox"),
        ("olmo2", "ShardedRMSNorm", "QKNormRoPEAttention"),
        ("opt_350m", "project_in", "self.norm ="),
    ],
)
def test_a_port_has_what_its_model_has(ports: Path, name: str, present: str, absent: str) -> None:
    text = (ports / name / "llama_trtllm" / "modeling_llama.py").read_text()
    assert present in text
    assert absent not in text


@pytest.mark.parametrize("name", SPECS)
def test_a_port_generates_as_its_readme_says_to_serve_it(ports: Path, name: str) -> None:
    """An attention of the port's own cannot be captured, so that its tests ask for no graph."""
    own = "cuda_graph_config: null" in (ports / name / "README.md").read_text()
    test = (ports / name / "tests" / "test_generation.py").read_text()
    assert ('"cuda_graph_config": None' in test) == own
    sources = (ports / name / "llama_trtllm").glob("*.py")
    assert any("cannot be captured" in path.read_text() for path in sources) == own


def test_nothing_is_left_when_rendering_breaks(tmp_path: Path) -> None:
    dest = tmp_path / "port"
    with pytest.raises(RuntimeError), rendered_aside(answers_of("llama"), {}, dest):
        raise RuntimeError("the proof was interrupted")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_answer_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    answers = answers_of("llama")
    answers["weight_targets"] = answers["weight_targets"][:-1]
    with pytest.raises(Exception, match="weight_targets|list"):
        with rendered_aside(answers, {}, tmp_path / "port"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_destinations(tmp_path: Path) -> None:
    check_destination(tmp_path / "new", force=False)
    full = tmp_path / "full"
    full.mkdir()
    check_destination(full, force=False)
    (full / "file").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        check_destination(full, force=False)
    check_destination(full, force=True)
    with pytest.raises(InputError, match="not a folder"):
        check_destination(full / "file", force=True)


def test_force_keeps_other_files(tmp_path: Path) -> None:
    dest = tmp_path / "port"
    dest.mkdir()
    (dest / "notes.txt").write_text("mine")
    rendered("llama", dest)
    assert (dest / "notes.txt").read_text() == "mine"
    assert (dest / "llama_trtllm" / "modeling_llama.py").is_file()
