"""The zoo: selection, resumption, and a scoreboard that tells refused from failed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from families import run_in

from trtllm_scaffold.errors import InputError, UsageError
from trtllm_scaffold.pipeline import new_port
from trtllm_scaffold.sources import load_path
from trtllm_scaffold.zoo import run as zoo_run
from trtllm_scaffold.zoo.entries import Entry, load_entries, select
from trtllm_scaffold.zoo.run import Outcome, run_entry, run_zoo
from trtllm_scaffold.zoo.scoreboard import to_json, to_markdown


def entry(name: str) -> Entry:
    return next(item for item in load_entries() if item.name == name)


def test_categories_and_names_select() -> None:
    entries = load_entries()
    dense = select(entries, "dense")
    assert {item.category for item in dense} == {"dense"}
    assert [item.name for item in select(entries, "falcon")] == [
        "falcon",
        "falcon+alibi_mha_seq",
        "falcon+new_arch_2ln",
        "falcon+new_arch_1ln",
    ]
    assert select(entries, "") == entries
    with pytest.raises(UsageError, match="lama"):
        select(entries, "dense,lama")


def test_bad_entries_file(tmp_path: Path) -> None:
    path = tmp_path / "entries.json"
    path.write_text('[{"name": "x"}]')
    with pytest.raises(InputError, match="not a list of zoo entries"):
        load_entries(path)


def test_a_crash_is_an_outcome(tmp_path: Path) -> None:
    broken = Entry("broken", "llama", "LlamaForCausalLM", "dense", {"hidden_size": "wide"})
    outcome = run_entry(broken, tmp_path, "1.2")
    assert outcome.status == "error" and outcome.reason


def test_a_refusal_names_its_axis(tmp_path: Path) -> None:
    outcome = run_entry(entry("cpmant"), tmp_path, "1.2")
    assert (outcome.status, outcome.axis) == ("refused", "attention")


@pytest.mark.slow
def test_passes_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [entry("gpt2"), entry("cpmant")]
    first = run_zoo(chosen, tmp_path, jobs=2)
    assert [outcome.status for outcome in first] == ["passed", "refused"]
    monkeypatch.setattr(zoo_run, "_run_all", lambda entries, *_: iter(()) if not entries else 1 / 0)
    assert run_zoo(chosen, tmp_path) == first


def test_another_version_runs_again(tmp_path: Path) -> None:
    path = tmp_path / "gpt2.json"
    outcome = Outcome("gpt2", "dense", "passed", version="0.0.0")
    path.write_text(json.dumps(asdict(outcome)))
    assert zoo_run._stored(path) is None


def test_scoreboard() -> None:
    outcomes = [
        Outcome("a", "dense", "passed", level="native"),
        Outcome("b", "dense", "refused", axis="moe", reason="moe: a | b"),
    ]
    document = to_json(outcomes, "1.2")
    assert document["counts"] == {"passed": 1, "refused": 1}
    page = to_markdown(outcomes, "1.2", "the stand-in")
    assert "| a | passed, native |" in page and "moe: a \\| b" in page


#: Entries whose names or facts make the longest lines.
LONG_LINES = (
    "afmoe",
    "cohere_compass_text",
    "ctrl",
    "gpt2+inv_layer_scale",
    "modernbert-decoder",
    "stablelm+parallel_qkln",
)


@pytest.mark.parametrize("name", LONG_LINES)
def test_ports_of_long_names_are_formatted(name: str, tmp_path: Path) -> None:
    config = zoo_run._write_config(entry(name), tmp_path / "model")
    port = new_port(load_path(config), tmp_path / "port", prove=False).port
    for command in (["ruff", "format", "--check", "."], ["ruff", "check", "."]):
        run_in(port, *command)
