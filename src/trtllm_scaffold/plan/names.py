"""The names of a port: fixed at birth, checked to be identifiers that clash with nothing."""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass

from trtllm_scaffold.errors import InputError, UsageError
from trtllm_scaffold.spec import ModelSpec

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,80}\Z")
_SUFFIXES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "Model")
#: Packages that a port's own package would shadow, since its parent leads `sys.path`.
_TAKEN = frozenset({"tensorrt_llm", "transformers", "torch", "numpy", "tests", "examples"})


@dataclass(frozen=True)
class PortNames:
    """Attributes:
    name: Stem of the port's files, such as ``llama``.
    package: The import name, such as ``llama_trtllm``.
    class_prefix: Stem of the port's classes, such as ``Llama``.
    """

    name: str
    package: str
    class_prefix: str


def is_identifier(text: str) -> bool:
    """Whether `text` is a plain ASCII identifier and no keyword."""
    return bool(_IDENTIFIER.match(text)) and not keyword.iskeyword(text)


def class_prefix_of(architecture: str) -> str:
    """The stem of the port's classes."""
    for suffix in _SUFFIXES:
        if architecture.endswith(suffix) and len(architecture) > len(suffix):
            return architecture[: -len(suffix)]
    return architecture


def port_names(spec: ModelSpec, name: str | None, package: str | None) -> PortNames:
    """Names for the port of `spec`; `name` and `package` override the derived ones.

    Raises:
        UsageError: An option is not an identifier, or names a package that it would shadow.
        InputError: The architecture is not an identifier.
    """
    if not is_identifier(spec.architecture):
        raise InputError(
            f"architectures[0] is {spec.architecture!r}, not an identifier", where=spec.source
        )
    derived = re.sub(r"\W+", "_", spec.model_type).strip("_").lower() or "model"
    stem = name or (derived if is_identifier(derived) else f"model_{derived}")
    if not is_identifier(stem):
        raise UsageError(f"--name {stem!r} is not an identifier", hint="try letters and _")
    chosen = package or f"{stem}_trtllm"
    if not is_identifier(chosen):
        raise UsageError(f"--package {chosen!r} is not an identifier", hint="try letters and _")
    if chosen in _TAKEN or chosen in sys.stdlib_module_names:
        raise UsageError(f"--package {chosen!r} would shadow an installed package of that name")
    return PortNames(stem, chosen, class_prefix_of(spec.architecture))
