"""The API contract of one TensorRT-LLM generation, read from its manifest, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trtllm_scaffold.errors import UsageError

GENERATIONS: tuple[str, ...] = ("1.2", "1.4")
ROOT = "tensorrt_llm"

#: Release that stands for a generation (the version a port is pinned to).
RELEASES: Mapping[str, str] = MappingProxyType({"1.2": "1.2.1", "1.4": "1.4.0rc1"})


@dataclass(frozen=True)
class Parameter:
    """One parameter of a constructor, function or method, without ``self``/``cls``.

    Attributes:
        name: The keyword.
        kind: ``positional_or_keyword``, ``keyword_only``, ``var_positional`` or ``var_keyword``.
        default: Source text of the default, None if there is none (a default of None is "None").
        required: Whether a call without it fails.
        annotation: Source text of the annotation, if it was read.
    """

    name: str
    kind: str
    default: str | None
    required: bool
    annotation: str | None = None


@dataclass(frozen=True)
class Method:
    """A method of interest to a port. ``parameters`` is None where the list was not read."""

    name: str
    parameters: tuple[Parameter, ...] | None
    decorator: str = ""


@dataclass(frozen=True)
class Symbol:
    """One importable name of the generation.

    Attributes:
        module: Import path of the module that holds the name.
        name: The name.
        kind: ``class``, ``dataclass``, ``pydantic_model``, ``function``, ``enum``, ``variable``
            or ``reexport``.
        parameters: Of the constructor or function. None where they were not read: nothing may
            be concluded then.
        inherits_init: The constructor is that of the first base.
        bases: Import paths or plain names of the bases.
        methods: Methods that a port may call or override.
        members: Enum members and their values.
        attributes: Names and texts of attributes and properties.
        target: For a reexport, the full path of what it names.
        frozen: For a dataclass, whether instances are immutable.
        provenance: Why the entry is trusted (confidence and note).
    """

    module: str
    name: str
    kind: str
    parameters: tuple[Parameter, ...] | None = None
    inherits_init: bool = False
    bases: tuple[str, ...] = ()
    methods: Mapping[str, Method] = field(default_factory=dict)
    members: Mapping[str, object] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    target: str | None = None
    frozen: bool = False
    provenance: str = ""

    @property
    def path(self) -> str:
        """Full dotted path, ``module.name``."""
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Contract:
    """Every module and symbol that one generation is known to have.

    Absence proves nothing about the real package: the manifests cover what ports touch. The
    static check and the stand-in are strict on purpose and treat absence as an error.
    """

    generation: str
    release: str
    symbols: Mapping[str, Mapping[str, Symbol]]

    def has_module(self, module: str) -> bool:
        """Whether ``module`` is a module of the manifest or a package above one."""
        prefix = module + "."
        return any(name == module or name.startswith(prefix) for name in self.symbols)

    def find(self, module: str, name: str) -> Symbol | None:
        """The symbol as written in ``module`` (a reexport stays one), or None."""
        return self.symbols.get(module, {}).get(name)

    def resolve(self, module: str, name: str) -> Symbol | None:
        """The symbol with reexports followed; the last one known where a target is not listed."""
        symbol = self.find(module, name)
        seen = set()
        while symbol is not None and symbol.target is not None and symbol.path not in seen:
            seen.add(symbol.path)
            following = self.find(*symbol.target.rpartition(".")[::2])
            if following is None:
                return symbol
            symbol = following
        return symbol

    def constructor(self, symbol: Symbol) -> tuple[Parameter, ...] | None:
        """Parameters of a class's constructor, those of a base where it is inherited."""
        if symbol.parameters or not symbol.inherits_init:
            return symbol.parameters
        for base in symbol.bases:
            parent = self.resolve(*base.rpartition(".")[::2])
            if parent is not None:
                return self.constructor(parent)
        return symbol.parameters

    def homes(self, name: str) -> tuple[str, ...]:
        """Modules of this generation that hold ``name``: what an error about a path suggests."""
        return tuple(module for module, names in self.symbols.items() if name in names)


def manifest_path(generation: str) -> Path:
    """File of the manifest of ``generation``.

    Raises:
        UsageError: If the generation is not one of ``GENERATIONS``.
    """
    if generation not in GENERATIONS:
        raise UsageError(
            f"unknown TensorRT-LLM generation {generation!r}",
            hint=f"one of {', '.join(GENERATIONS)}",
        )
    return Path(__file__).parent / f"{generation}.json"


@cache
def load_contract(generation: str) -> Contract:
    """Read the contract of ``generation`` ("1.2" or "1.4").

    Raises:
        UsageError: If the generation is not one of ``GENERATIONS``.
    """
    raw = json.loads(manifest_path(generation).read_text(encoding="utf-8"))
    modules = {
        module: MappingProxyType(
            {name: _symbol(module, name, item) for name, item in names.items()}
        )
        for module, names in raw["modules"].items()
    }
    return Contract(generation, RELEASES[generation], MappingProxyType(modules))


def _symbol(module: str, name: str, item: dict[str, Any]) -> Symbol:
    methods = item.get("methods") or {}
    if isinstance(methods, list):  # enums list method names only
        methods = {text.split("(")[0].strip(): {} for text in methods}
    return Symbol(
        module=module,
        name=name,
        kind=item["kind"],
        parameters=_parameters(item["init"] if "init" in item else item.get("params")),
        inherits_init=bool(item.get("init_inherited")),
        bases=tuple(item.get("bases") or ()),
        methods=MappingProxyType({key: _method(key, value) for key, value in methods.items()}),
        members=MappingProxyType(dict(item.get("members") or {})),
        attributes=tuple(item.get("properties") or ()) + tuple(item.get("attributes") or ()),
        target=item.get("target"),
        frozen=bool(item.get("frozen")),
        provenance="; ".join(
            text for text in (item.get("confidence", ""), item.get("note", "")) if text
        ),
    )


def _method(name: str, item: dict[str, Any]) -> Method:
    return Method(name, _parameters(item.get("params")), item.get("decorator") or "")


def _parameters(items: list[dict[str, Any]] | None) -> tuple[Parameter, ...] | None:
    if items is None:
        return None
    return tuple(
        Parameter(
            name=item["name"],
            kind=item["kind"],
            default=item.get("default"),
            required=bool(item.get("required")),
            annotation=item.get("annotation"),
        )
        for item in items
    )
