"""Fixtures that every area of the suite shares."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gpu.plugin import Report, add_options, share_out_devices
from hub_server import Hub
from small_llama import LLAMA

share_out_devices()
if not Path("/dev/nvidiactl").exists():  # no GPU: kernels run in Triton's interpreter
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports triton


def pytest_addoption(parser: pytest.Parser) -> None:
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Report(config), "gpu report")


@pytest.fixture
def llama() -> dict[str, Any]:
    """A small, valid config.json to change at will."""
    return json.loads(json.dumps(LLAMA))


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Write text or an object as config.json in a new folder; return the file."""

    def write(content: Any, name: str = "config.json") -> Path:
        path = tmp_path / "model" / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty model hub on loopback."""
    with Hub() as server:
        yield server


@pytest.fixture
def call_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line inside this process: as `run_cli`, but what it imports is kept."""
    from trtllm_scaffold.cli import run

    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    call.folder = folder  # type: ignore[attr-defined]
    return call


@pytest.fixture
def run_cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command line in a process of its own, in an empty folder, off the network."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    base = {
        key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRTLLM"))
    }
    base |= {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": "http://127.0.0.1:9"}

    def run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trtllm_scaffold.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=folder,
            env=base | env,
            timeout=120,
        )

    run.folder = folder  # type: ignore[attr-defined]
    return run
