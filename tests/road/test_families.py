"""Every published configuration of the dense families becomes a proven port, or is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import PORTED, REFUSED, config_file, run_in

from trtllm_scaffold.errors import ScaffoldError
from trtllm_scaffold.pipeline import NewResult, new_port
from trtllm_scaffold.sources import load_path
from trtllm_scaffold.verify.check import check_port

#: One configuration per family whose port runs its own suite here.
OWN_SUITE = (
    "CohereLabs__aya-23-8B",
    "EleutherAI__pythia-160m",
    "Qwen__Qwen2.5-0.5B",
    "Qwen__Qwen3-0.6B",
    "allenai__OLMo-2-1124-7B",
    "bigcode__starcoder2-7b",
    "facebook__opt-125m",
    "google__gemma-2b",
    "meta-llama__Llama-3.2-1B-Instruct",
    "microsoft__Phi-3-mini-128k-instruct",
    "mistralai__Mistral-7B-v0.1",
    "openai-community__gpt2",
    "tiiuae__falcon-7b-instruct",
)


def make(name: str, folder: Path, trtllm: str = "1.2", *, prove: bool = False) -> NewResult:
    source = load_path(config_file(name, folder))
    return new_port(source, folder / f"port-{trtllm}", trtllm=trtllm, prove=prove)


def contents(port: Path) -> dict[str, bytes]:
    files = (path for path in port.rglob("*") if path.is_file())
    return {str(path.relative_to(port)): path.read_bytes() for path in files}


@pytest.mark.slow
@pytest.mark.parity_core
@pytest.mark.parametrize("name", PORTED)
def test_becomes_a_proven_port(name: str, tmp_path: Path) -> None:
    result = make(name, tmp_path, prove=True)
    failed = [check.to_json() for check in result.checks if check.status == "failed"]
    assert result.passed, failed
    names = {check.name for check in result.checks if check.status == "passed"}
    assert {"load", "parity fp32 prefill", "parity fp32 decode", "parallel TP 2"} <= names
    assert (result.port / "README.md").is_file()
    assert not list(result.port.rglob("__pycache__"))

    (tmp_path / "again").mkdir()
    again = make(name, tmp_path / "again").port
    assert contents(again) == contents(result.port), "rendered twice, the bytes differ"

    for port in (result.port, make(name, tmp_path, "1.4").port):
        checks = check_port(port, checkpoint=None, trtllm="all")
        assert {check.status for check in checks} == {"passed"}, checks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meta-llama__Llama-3.2-1B-Instruct", "Qwen__Qwen3-0.6B"])
def test_port_for_1_4_is_proven_too(name: str, tmp_path: Path) -> None:
    assert make(name, tmp_path, "1.4", prove=True).passed


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN_SUITE)
def test_own_suite_and_style(name: str, tmp_path: Path) -> None:
    port = make(name, tmp_path).port
    for command in (["ruff", "format", "--check"], ["ruff", "check"], ["pytest", "-q"]):
        output = run_in(port, *command, *([] if command[0] == "pytest" else ["."]))
        if command[0] == "pytest":
            assert "skipped" not in output.splitlines()[-1]


@pytest.mark.parametrize(("name", "axis"), REFUSED.items())
def test_refused_by_axis(name: str, axis: str, tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError, match=f"^{axis}") as refusal:
        make(name, tmp_path)
    assert refusal.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []
