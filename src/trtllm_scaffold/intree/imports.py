"""A block of imports in the order and the form that formatters leave alone."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator

_WIDTH = 100
_TREE = "tensorrt_llm._torch."
_MODELS = "tensorrt_llm._torch.models."


class Imports:
    """What one module imports: names by module, and whole modules."""

    def __init__(self) -> None:
        self.names: dict[str, set[tuple[str, str | None]]] = {}
        self.plain: set[tuple[str, str | None]] = set()

    def add(self, module: str, name: str, asname: str | None = None) -> None:
        """Adds `from module import name`."""
        self.names.setdefault(_relative(module), set()).add((name, asname))

    def add_plain(self, node: ast.Import) -> None:
        """Adds `import module`."""
        self.plain.update((alias.name, alias.asname) for alias in node.names)

    def update(self, other: Imports) -> None:
        """Adds what `other` imports."""
        self.plain |= other.plain
        for module, names in other.names.items():
            self.names.setdefault(module, set()).update(names)

    def render(self) -> str:
        """The statements, in sections."""
        sections: dict[int, list[str]] = {}
        for module, asname in sorted(self.plain):
            text = f"import {module}" + (f" as {asname}" if asname else "")
            sections.setdefault(_section(module), []).append(text)
        for module in sorted(self.names, key=_module_order):
            text = _statement(module, self.names[module])
            sections.setdefault(_section(module), []).append(text)
        return "\n\n".join("\n".join(sections[key]) for key in sorted(sections)) + "\n"


def _relative(module: str) -> str:
    """A module of the PyTorch backend as a model file names it."""
    if module.startswith(_MODELS):
        return "." + module.removeprefix(_MODELS)
    if module.startswith(_TREE):
        return ".." + module.removeprefix(_TREE)
    return module


def _section(module: str) -> int:
    top = module.split(".")[0]
    if top == "__future__":
        return 0
    if not top:
        return 4
    if top == "tensorrt_llm":
        return 3
    return 1 if top in sys.stdlib_module_names else 2


def _module_order(module: str) -> tuple[int, str]:
    """Relative modules lie furthest first, as formatters sort them."""
    dots = len(module) - len(module.lstrip("."))
    return -dots, module.lstrip(".").lower()


def _member_order(member: tuple[str, str | None]) -> tuple[int, str]:
    name = member[0]
    return (0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2, name)


def _statement(module: str, names: Iterable[tuple[str, str | None]]) -> str:
    members = [
        name + (f" as {asname}" if asname else "")
        for name, asname in sorted(names, key=_member_order)
    ]
    line = f"from {module} import {', '.join(members)}"
    return line if len(line) <= _WIDTH else "\n".join(_broken(module, members))


def _broken(module: str, members: Iterable[str]) -> Iterator[str]:
    yield f"from {module} import ("
    yield from (f"    {member}," for member in members)
    yield ")"
