"""Every published configuration of the dense families becomes a proven port, or is refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from families import PORTED, REFUSED, config_file

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


@pytest.mark.slow
@pytest.mark.parametrize("name", PORTED)
def test_becomes_a_proven_port(name: str, tmp_path: Path) -> None:
    result = make(name, tmp_path, prove=True)
    failed = [check.to_json() for check in result.checks if check.status == "failed"]
    assert result.passed, failed
    names = {check.name for check in result.checks if check.status == "passed"}
    assert {"load", "parity fp32 prefill", "parity fp32 decode", "parallel TP 2"} <= names
    assert (result.port / "README.md").is_file()
    assert not list(result.port.rglob("__pycache__"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["meta-llama__Llama-3.2-1B-Instruct", "Qwen__Qwen3-0.6B"])
def test_port_for_1_4_is_proven_too(name: str, tmp_path: Path) -> None:
    assert make(name, tmp_path, "1.4", prove=True).passed


@pytest.mark.parametrize("name", PORTED)
def test_ports_keep_to_both_contracts(name: str, tmp_path: Path) -> None:
    for trtllm in ("1.2", "1.4"):
        port = make(name, tmp_path, trtllm).port
        checks = check_port(port, checkpoint=None, trtllm="all")
        assert {check.status for check in checks} == {"passed"}, checks


@pytest.mark.parametrize("name", PORTED)
def test_rendering_twice_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    ports = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        folder.mkdir()
        ports.append(make(name, folder).port)
    first, second = (
        {
            str(file.relative_to(port)): file.read_bytes()
            for file in port.rglob("*")
            if file.is_file()
        }
        for port in ports
    )
    assert first == second


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN_SUITE)
def test_own_suite_and_style(name: str, tmp_path: Path) -> None:
    port = make(name, tmp_path).port
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    for variable in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"):
        environment.pop(variable, None)
    for command in (["ruff", "format", "--check"], ["ruff", "check"], ["pytest", "-q"]):
        result = subprocess.run(
            [sys.executable, "-m", *command, *([] if command[0] == "pytest" else ["."])],
            cwd=port,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
        if command[0] == "pytest":
            assert "skipped" not in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(("name", "axis"), REFUSED.items())
def test_refused_by_axis(name: str, axis: str, tmp_path: Path) -> None:
    with pytest.raises(ScaffoldError, match=f"^{axis}") as refusal:
        make(name, tmp_path)
    assert refusal.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []
