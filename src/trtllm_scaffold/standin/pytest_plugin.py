"""Pytest plugin of ports: chooses the runtime before collection and reports what it was."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest

RUNTIME_OPTION, GENERATION_OPTION = "trtllm_scaffold_runtime", "trtllm_scaffold_generation"
RUNTIME_VARIABLE = "TRTLLM_SCAFFOLD_RUNTIME"
GENERATION_VARIABLE = "TRTLLM_SCAFFOLD_GENERATION"
RUNTIMES = ("auto", "standin", "tensorrt_llm")
#: Words in a skip's reason that tell what was missing.
GPU_WORDS = ("cuda", "gpu")
REAL_WORDS = ("tensorrt_llm", "tensorrt-llm", "real runtime")

_runtime = {"line": ""}
_skipped = {"gpu": 0, "real": 0}


def pytest_addoption(parser: Any) -> None:
    """Declare the ini options; an empty runtime leaves the plugin off."""
    parser.addini(RUNTIME_OPTION, "runtime of the tests: auto, standin or tensorrt_llm", default="")
    parser.addini(GENERATION_OPTION, "TensorRT-LLM generation that the stand-in plays", default="")


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: Any) -> None:
    """Put the runtime in place, if the project asks for one, before its conftest is read."""
    config = early_config
    asked = os.environ.get(RUNTIME_VARIABLE) if config.getini(RUNTIME_OPTION) else ""
    asked = asked or config.getini(RUNTIME_OPTION)
    if not asked:
        return
    _runtime["line"] = choose(asked, _generation(config))


def _generation(config: Any) -> str:
    return os.environ.get(GENERATION_VARIABLE) or config.getini(GENERATION_OPTION) or "1.2"


def choose(asked: str, generation: str) -> str:
    """Install the stand-in if it is wanted, and say what the tests run on.

    Args:
        asked: ``auto`` (the real package if there is one), ``standin`` or ``tensorrt_llm``.
        generation: Generation that the stand-in plays.

    Raises:
        pytest.UsageError: If ``asked`` is no runtime, or the real package is asked for and absent.
    """
    if asked not in RUNTIMES:
        raise pytest.UsageError(f"{RUNTIME_OPTION} is {asked!r}, not one of {', '.join(RUNTIMES)}")
    real = importlib.util.find_spec("tensorrt_llm") is not None and not _installed()
    if asked == "tensorrt_llm" and not real:
        raise pytest.UsageError("TensorRT-LLM is asked for as the runtime, but is not installed")
    if asked == "tensorrt_llm" or (asked == "auto" and real):
        return "TensorRT-LLM, the installed package"
    from trtllm_scaffold.errors import ScaffoldError
    from trtllm_scaffold.standin.install import install, version

    try:
        install(generation, force=True)
    except ScaffoldError as error:
        raise pytest.UsageError(str(error)) from error
    return f"stand-in {version(generation)} (not TensorRT-LLM itself)"


def _installed() -> bool:
    import sys

    module = sys.modules.get("trtllm_scaffold.standin.install")
    return module is not None and bool(module.installed())


def pytest_report_header(config: Any) -> str | None:
    """Which runtime made this run."""
    line = _runtime["line"]
    return f"trtllm runtime: {line}" if line else None


def pytest_runtest_logreport(report: Any) -> None:
    """Count skips for want of a GPU or of the real runtime."""
    if not _runtime["line"] or not report.skipped:
        return
    reason = str(report.longrepr).lower()
    if any(word in reason for word in REAL_WORDS):
        _skipped["real"] += 1
    elif any(word in reason for word in GPU_WORDS):
        _skipped["gpu"] += 1


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how much was not run, and why."""
    if not _runtime["line"]:
        return
    for kind, what in (("gpu", "a GPU"), ("real", "the real TensorRT-LLM")):
        if _skipped[kind]:
            terminalreporter.write_line(f"{_skipped[kind]} test(s) skipped for want of {what}")
