"""Choose what a port runs on, the real TensorRT-LLM or its stand-in, and say which it was."""

from __future__ import annotations

import importlib
import importlib.util
import os
from dataclasses import dataclass

from trtllm_scaffold.errors import EnvironmentProblem, UsageError
from trtllm_scaffold.targets.contract import GENERATIONS, ROOT

CHOICES = ("auto", "standin", "tensorrt_llm")


@dataclass(frozen=True)
class Runtime:
    """What ``import tensorrt_llm`` gives.

    Attributes:
        name: ``standin`` or ``tensorrt_llm``.
        version: Its ``__version__``.
        generation: The generation whose import paths it has.
    """

    name: str
    version: str
    generation: str

    def to_json(self) -> dict[str, str]:
        """The entry of the report."""
        return {"name": self.name, "version": self.version}


def start_runtime(choice: str, generation: str, device: str = "cpu") -> Runtime:
    """Make ``tensorrt_llm`` importable and say what it is.

    Args:
        choice: ``auto`` takes a real installation where there is one.
        generation: The generation that the stand-in plays.
        device: Where the stand-in keeps its caches; the real one knows CUDA only.

    Raises:
        UsageError: If `choice` or `generation` is unknown.
        EnvironmentProblem: If the real one is asked for and cannot be imported.
    """
    if choice not in CHOICES:
        raise UsageError(f"unknown runtime {choice!r}", hint=f"one of {', '.join(CHOICES)}")
    if choice == "tensorrt_llm":
        return _real()
    from trtllm_scaffold import standin
    from trtllm_scaffold.standin.device import ENVIRONMENT_NAME

    os.environ[ENVIRONMENT_NAME] = device
    if standin.install(generation, force=choice == "standin"):
        version = str(importlib.import_module(ROOT).__version__)
        return Runtime("standin", version, generation)
    return _real()


def _real() -> Runtime:
    from trtllm_scaffold import standin

    standin.uninstall()
    if importlib.util.find_spec(ROOT) is None:
        raise EnvironmentProblem(
            "tensorrt_llm is not installed", hint="install it, or use --runtime standin"
        )
    try:
        version = str(importlib.import_module(ROOT).__version__)
    except Exception as error:  # its import loads compiled libraries, which fail in many ways
        raise EnvironmentProblem(
            f"tensorrt_llm cannot be imported: {type(error).__name__}: {error}",
            hint="mend the installation, or use --runtime standin",
        ) from error
    return Runtime("tensorrt_llm", version, generation_of(version))


def generation_of(version: str) -> str:
    """The known generation that a TensorRT-LLM version belongs to, the nearest one below."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    known = [name for name in GENERATIONS if tuple(map(int, name.split("."))) <= numbers]
    return known[-1] if known else GENERATIONS[0]
