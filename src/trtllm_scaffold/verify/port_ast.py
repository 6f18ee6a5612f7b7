"""Read a port's package as syntax trees: its imports, classes and what each name stands for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.targets.contract import ROOT, Parameter
from trtllm_scaffold.verify.port_files import read_text

#: The module that holds every TensorRT-LLM import of a port.
COMPATIBILITY_MODULE = "_trtllm"

_IMPORT_ERRORS = {"ImportError", "ModuleNotFoundError"}


@dataclass(frozen=True)
class Alternative:
    """One spelling of an import; `name` is empty for ``import module``."""

    module: str
    name: str
    line: int

    @property
    def path(self) -> str:
        """Full dotted path."""
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass
class Binding:
    """A name bound to a TensorRT-LLM symbol, by one import or by a try/except chain of them.

    Attributes:
        alias: The name.
        alternatives: Where it is looked for, in order.
        optional: It becomes None where it is nowhere.
    """

    alias: str
    alternatives: list[Alternative] = field(default_factory=list)
    optional: bool = False


@dataclass
class PortModule:
    """One file of the package.

    Attributes:
        file: File name, as violations quote it.
        stem: Module name inside the package.
        tree: The parsed file.
        bindings: Names bound to TensorRT-LLM symbols or modules.
        siblings: Names imported from another module of the package: (module stem, name, line).
        classes, functions: Top-level definitions.
    """

    file: str
    stem: str
    tree: ast.Module
    bindings: dict[str, Binding] = field(default_factory=dict)
    siblings: dict[str, tuple[str, str, int]] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)


@dataclass(frozen=True)
class LocalClass:
    """A class of the package."""

    module: PortModule
    node: ast.ClassDef

    def method(self, name: str) -> ast.FunctionDef | None:
        """Its own definition of `name`, if any."""
        for item in self.node.body:
            if isinstance(item, ast.FunctionDef) and item.name == name:
                return item
        return None


@dataclass(frozen=True)
class LocalFunction:
    """A function of the package."""

    module: PortModule
    node: ast.FunctionDef


def parse_package(package: Path) -> dict[str, PortModule]:
    """Parse every file of the package folder `package`, by module stem.

    Raises:
        InputError: If a file is not Python; names the line.
    """
    return {path.stem: _parse(path, package.name) for path in sorted(package.glob("*.py"))}


def _parse(path: Path, package: str) -> PortModule:
    try:
        tree = ast.parse(read_text(path), filename=str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        raise InputError(f"not Python: {error}", where=f"{path}:{line or 1}") from error
    module = PortModule(path.name, path.stem, tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            module.classes[node.name] = node
        elif isinstance(node, ast.FunctionDef):
            module.functions[node.name] = node
    for statement, chain in _imports(tree.body, None):
        _bind(module, statement, chain, package)
    return module


def _imports(
    body: list[ast.stmt], chain: ast.Try | None
) -> Iterator[tuple[ast.Import | ast.ImportFrom, ast.Try | None]]:
    """Every import below `body`, with the outermost import-guarding ``try`` that holds it."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, chain
            continue
        inner = chain
        if isinstance(node, ast.Try) and chain is None and _guards_imports(node):
            inner = node
        for name in ("body", "orelse", "finalbody"):
            yield from _imports(getattr(node, name, []), inner)
        for handler in getattr(node, "handlers", []):
            yield from _imports(handler.body, inner)


def _guards_imports(node: ast.Try) -> bool:
    for handler in node.handlers:
        caught = handler.type
        names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
        if any(isinstance(name, ast.Name) and name.id in _IMPORT_ERRORS for name in names):
            return True
    return False


def _bind(
    module: PortModule, node: ast.Import | ast.ImportFrom, chain: ast.Try | None, package: str
) -> None:
    for item in node.names:
        alias = item.asname or item.name
        if isinstance(node, ast.Import):
            if _is_tensorrt(item.name):
                alias = item.asname or ROOT
                target = item.name if item.asname else ROOT
                _add(module, alias, Alternative(item.name, "", node.lineno), chain)
                if target != item.name:
                    _add(module, alias, Alternative(ROOT, "", node.lineno), None)
        elif _is_tensorrt(node.module or ""):
            _add(module, alias, Alternative(node.module or "", item.name, node.lineno), chain)
        elif (stem := _sibling(node, package)) is not None:
            source = (stem, item.name) if stem else (item.name, "")
            module.siblings[alias] = (*source, node.lineno)


def _is_tensorrt(name: str) -> bool:
    return name == ROOT or name.startswith(ROOT + ".")


def _sibling(node: ast.ImportFrom, package: str) -> str | None:
    """Stem of the sibling module that `node` imports from; empty for the package itself."""
    name = node.module or ""
    if node.level == 1:
        return name
    if node.level == 0 and (name == package or name.startswith(package + ".")):
        return name[len(package) + 1 :]
    return None


def _add(module: PortModule, alias: str, alternative: Alternative, chain: ast.Try | None) -> None:
    binding = module.bindings.get(alias)
    if binding is None or chain is None:
        binding = module.bindings[alias] = Binding(alias)
    binding.alternatives.append(alternative)
    binding.optional = chain is not None and _falls_back_to_none(chain, alias)


def _falls_back_to_none(chain: ast.Try, alias: str) -> bool:
    """Whether a handler of `chain` sets `alias` to None."""
    return any(
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and node.value.value is None
        and any(isinstance(target, ast.Name) and target.id == alias for target in node.targets)
        for handler in chain.handlers
        for node in handler.body
    )


def parameters_of(arguments: ast.arguments, *, method: bool) -> tuple[Parameter, ...]:
    """The parameters of a definition in the manifest's terms, without ``self``."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    found = [
        _parameter(item.arg, "positional_or_keyword", default)
        for item, default in zip(positional, defaults, strict=True)
    ][1 if method else 0 :]
    if arguments.vararg:
        found.append(Parameter(arguments.vararg.arg, "var_positional", None, False))
    found += [
        _parameter(item.arg, "keyword_only", default)
        for item, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        found.append(Parameter(arguments.kwarg.arg, "var_keyword", None, False))
    return tuple(found)


def _parameter(name: str, kind: str, default: ast.expr | None) -> Parameter:
    text = None if default is None else ast.unparse(default)
    return Parameter(name, kind, text, default is None)
