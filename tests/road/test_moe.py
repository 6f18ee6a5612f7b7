"""Mixtures of experts on the whole road: inferred, rendered, proven with experts divided."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trtllm_scaffold.pipeline import NewResult, new_port
from trtllm_scaffold.sources import load_path
from trtllm_scaffold.zoo.entries import load_entries, select
from trtllm_scaffold.zoo.run import _write_config

SPLITS = {"parallel TP 2", "parallel EP 2", "parallel attention DP 2", "parallel PP 2"}


def make(name: str, folder: Path, trtllm: str = "1.2", *, prove: bool) -> NewResult:
    (entry,) = select(load_entries(), name)
    source = load_path(_write_config(entry, folder / "source"))
    return new_port(source, folder / "port", trtllm=trtllm, prove=prove)


@pytest.mark.slow
def test_becomes_a_proven_port(tmp_path: Path) -> None:
    # Stacked and alternating experts with biases, a clamped activation, sinks and a window.
    result = make("gpt_oss", tmp_path, "1.4", prove=True)
    failed = [check.to_json() for check in result.checks if check.status == "failed"]
    assert result.passed, failed
    passed = {check.name: check for check in result.checks if check.status == "passed"}
    assert {"load", "parity fp32 mixed batch", "parity bf16", *SPLITS} <= set(passed)
    assert passed["load"].measured["largest_ep"] >= 2


@pytest.mark.slow
def test_own_suite_and_style(tmp_path: Path) -> None:
    # A dense first layer, shared experts, a routing class of the port's own.
    port = make("ernie4_5_moe", tmp_path, prove=False).port
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    for variable in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"):
        environment.pop(variable, None)
    chosen = ["tests/test_experts.py", "tests/test_weights.py", "tests/test_tensor_parallel.py"]
    pytest_command = ["pytest", "-q", *chosen, "-k", "not published and not widths"]
    for command in (["ruff", "format", "--check", "."], ["ruff", "check", "."], pytest_command):
        result = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=port,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
        if command[0] == "pytest":
            assert "skipped" not in result.stdout.splitlines()[-1]
