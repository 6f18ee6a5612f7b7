"""Looks at this machine: versions, git, a GPU, the runtime, and what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from typing import Any

PACKAGE = "trtllm-scaffold"
RUNTIME_VARIABLE = "TRTLLM_SCAFFOLD_RUNTIME"
OLDEST_PYTHON = (3, 10)

_PURPOSE = {
    "torch": "inference by tracing, proofs",
    "transformers": "the reference models",
    "copier": "rendering and updating ports",
    "safetensors": "checkpoints",
    "huggingface_hub": "models on the hub",
    "jinja2": "the template",
    "typer": "the command line",
}
_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)\s*((?:[<>=!~]=?\s*[\w.]+\s*,?\s*)*)")


def examine() -> dict[str, Any]:
    """Look at the machine without importing torch.

    Returns:
        The `doctor --json` document: `found`, a list of {name, status, detail} with status "ok",
        "missing", "old" or "none"; `runtime`, {name, version, why}; `missing`, a list of {what,
        do}; and `ok`, whether everything required is there.
    """
    found = [_python(), *_packages(), _git(), _gpu(), _tensorrt_llm()]
    missing = [
        {"what": item["name"], "do": item.pop("do")} for item in found if item.get("do") is not None
    ]
    return {"found": found, "runtime": _runtime(), "missing": missing, "ok": not missing}


def _item(name: str, status: str, detail: str, do: str | None = None) -> dict[str, Any]:
    item = {"name": name, "status": status, "detail": detail}
    return item if do is None else {**item, "do": do}


def installed(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _python() -> dict[str, Any]:
    if sys.version_info < OLDEST_PYTHON:
        oldest = ".".join(map(str, OLDEST_PYTHON))
        do = f"use Python {oldest} or newer"
        return _item("python", "old", platform.python_version(), do)
    return _item("python", "ok", f"{platform.python_version()}, {sys.executable}")


def requirements() -> dict[str, str]:
    """Return this package's own requirements: name to version bounds, without the extras."""
    try:
        declared = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        declared = []
    found = (_REQUIREMENT.match(line) for line in declared if ";" not in line)
    wanted = {match[1].replace("-", "_"): match[2].strip() for match in found if match}
    return wanted or dict.fromkeys(_PURPOSE, "")


def _packages() -> list[dict[str, Any]]:
    wanted = requirements()
    items = []
    for name in sorted(wanted, key=lambda name: (name not in _PURPOSE, name)):
        version, bounds = installed(name), wanted[name]
        purpose = f", for {_PURPOSE[name]}" if name in _PURPOSE else ""
        do = f'pip install "{name}{bounds}"'
        if version is None:
            items.append(_item(name, "missing", f"needed{purpose}", do))
        elif not satisfies(version, bounds):
            items.append(_item(name, "old", f"{version}, but {bounds} is needed{purpose}", do))
        else:
            items.append(_item(name, "ok", f"{version}{purpose}"))
    return items


def satisfies(version: str, bounds: str) -> bool:
    """Whether a version lies within bounds such as ">=9.19,<10" (release numbers only)."""
    for bound in filter(None, bounds.replace(" ", "").split(",")):
        operator = bound.rstrip("0123456789.abcrdevpost")
        have, want = _release(version), _release(bound[len(operator) :])
        size = max(len(have), len(want))
        have += (0,) * (size - len(have))
        want += (0,) * (size - len(want))
        holds = {">=": have >= want, "<": have < want, "==": have == want, ">": have > want}
        if not holds.get(operator, True):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _answer(*command: str) -> str | None:
    """Return the first line that a program prints, or None if it cannot be run."""
    program = shutil.which(command[0])
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.splitlines() or [""])[0].strip()


def _git() -> dict[str, Any]:
    answer = _answer("git", "--version")
    if answer is None:
        return _item("git", "missing", "needed by copier", "install git")
    return _item("git", "ok", answer.removeprefix("git version "))


def _gpu() -> dict[str, Any]:
    if shutil.which("nvidia-smi") is None:
        return _item("gpu", "none", "no nvidia-smi found; proofs run on the CPU")
    answer = _answer("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")
    if not answer:
        return _item("gpu", "none", "nvidia-smi lists no GPU; proofs run on the CPU")
    return _item("gpu", "ok", answer)


def _tensorrt_llm() -> dict[str, Any]:
    version = installed("tensorrt_llm")
    if version is None:
        return _item("tensorrt_llm", "none", "optional; the stand-in takes its place")
    return _item("tensorrt_llm", "ok", version)


def _runtime() -> dict[str, Any]:
    """Return which runtime `prove --runtime auto` will use, and why."""
    asked = os.environ.get(RUNTIME_VARIABLE)
    version = installed("tensorrt_llm")
    if asked == "standin":
        why = f"{RUNTIME_VARIABLE} asks for it"
    elif version is None:
        why = "tensorrt_llm is not installed"
    else:
        return {"name": "tensorrt_llm", "version": version, "why": f"{version} is installed"}
    return {"name": "standin", "version": None, "why": f"plain PyTorch, as {why}"}
