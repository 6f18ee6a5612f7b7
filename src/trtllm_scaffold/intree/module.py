"""The files of a port's package -> one `modeling_<name>.py` as TensorRT-LLM's tree has them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.intree.imports import Imports

_RUNTIME = "_trtllm"


@dataclass
class _Module:
    """One file of the package.

    Attributes:
        docstring: Its first string.
        siblings: Names of the package's modules that it imports.
        imports: What it imports from elsewhere.
        body: Everything below the imports, as it was written.
        names: What it defines.
        absent: Names of TensorRT-LLM that it imports and the generation lacks.
    """

    docstring: str
    siblings: list[str]
    imports: Imports
    body: str
    names: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def one_module(package: Path, name: str, generation: str) -> str:
    """One module that holds the whole port.

    Args:
        package: The port's package.
        name: `<name>` of its modules.
        generation: Whose layout the imports of TensorRT-LLM follow.

    Raises:
        InputError: Two of the files define the same name, or one is not as rendered.
    """
    runtime = runtime_imports(package / f"{_RUNTIME}.py", generation)
    modules = _in_order(package, f"modeling_{name}", runtime)
    _qualify_clashes(modules)
    _refuse_clashes(modules)
    imports = Imports()
    for module in modules.values():
        imports.update(module.imports)
    docstring = modules[f"modeling_{name}"].docstring
    head = f'"""{docstring}"""\n\n{imports.render()}'
    absent = sorted({name for module in modules.values() for name in module.absent})
    if absent:
        lacking = "\n".join(f"{name} = None" for name in absent)
        head += f"\n#: TensorRT-LLM {generation} has no such name.\n{lacking}\n"
    bodies = "\n\n\n".join(module.body for module in modules.values())
    return f"# SPDX-License-Identifier: Apache-2.0\n{head}\n\n{bodies}\n".replace(
        "\n\n\n\n", "\n\n\n"
    )


def _in_order(package: Path, top: str, runtime: dict[str, str]) -> dict[str, _Module]:
    """The modules under `top`, each behind those that it imports."""
    found: dict[str, _Module] = {}

    def visit(name: str) -> None:
        module = _read(package / f"{name}.py", runtime)
        for sibling in module.siblings:
            if sibling not in found:
                visit(sibling)
        found[name] = module

    visit(top)
    return found


def _read(path: Path, runtime: dict[str, str]) -> _Module:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    siblings: list[str] = []
    absent: list[str] = []
    imports = Imports()
    taken: set[int] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imports.add_plain(node)
        elif isinstance(node, ast.ImportFrom) and node.level == 1 and node.module == _RUNTIME:
            for alias in node.names:
                place = _place(runtime, alias.name)
                if place:
                    imports.add(place, alias.name, alias.asname)
                else:
                    absent.append(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
            siblings.append(node.module)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                imports.add(str(node.module), alias.name, alias.asname)
        elif node is not tree.body[0] or ast.get_docstring(tree) is None:
            continue
        taken.update(range(node.lineno, int(node.end_lineno or node.lineno) + 1))
    lines = source.splitlines()
    body = "\n".join(line for number, line in enumerate(lines, 1) if number not in taken)
    docstring = ast.get_docstring(tree, clean=False) or ""
    return _Module(
        docstring, siblings, imports, body.strip("\n"), list(_defined(tree.body)), absent
    )


def _place(runtime: dict[str, str], name: str) -> str:
    if name not in runtime:
        raise InputError(
            f"{_RUNTIME}.py does not import {name} from TensorRT-LLM, so that no file of its tree "
            "can import it instead",
            hint="move it to another file of the port's package",
        )
    return runtime[name]


def _defined(body: Iterable[ast.stmt]) -> Iterable[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (target.id for target in targets if isinstance(target, ast.Name))


def _qualify_clashes(modules: dict[str, _Module]) -> None:
    """Spells out a name of the standard library that another file imports from elsewhere.

    `Mapping` is a type of `collections.abc` in one file and TensorRT-LLM's in another.
    """
    everywhere = {
        (name, place)
        for module in modules.values()
        for place, names in module.imports.names.items()
        for name, asname in names
        if asname is None
    }
    for module in modules.values():
        for place, names in list(module.imports.names.items()):
            parent, _, last = place.rpartition(".")
            if not parent or parent.split(".")[0] not in sys.stdlib_module_names:
                continue
            for name, asname in sorted(names, key=str):
                if any(other == name and at != place for other, at in everywhere):
                    module.imports.names[place].discard((name, asname))
                    module.imports.add(parent, last)
                    module.body = _replace_name(module.body, name, f"{last}.{name}")
            if not module.imports.names[place]:
                del module.imports.names[place]


def _replace_name(source: str, name: str, text: str) -> str:
    """Replaces a bare name everywhere in `source`."""
    lines = [line.encode() for line in source.split("\n")]
    found = [
        (node.lineno - 1, node.col_offset)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and node.id == name
    ]
    for line, column in sorted(found, reverse=True):
        whole = lines[line]
        lines[line] = whole[:column] + text.encode() + whole[column + len(name) :]
    return b"\n".join(lines).decode()


def _refuse_clashes(modules: dict[str, _Module]) -> None:
    owners: dict[str, str] = {}
    for module in modules.values():
        for place, names in module.imports.names.items():
            for name, asname in names:
                if owners.setdefault(asname or name, place) != place:
                    raise InputError(
                        f"{asname or name} comes from {owners[asname or name]} and from {place}, "
                        "and one module cannot have both"
                    )
    for owner, module in modules.items():
        for name in module.names:
            if owners.setdefault(name, owner) != owner:
                raise InputError(
                    f"{name} comes from {owners[name]} and from {owner}.py, and one module cannot "
                    "have both"
                )


def runtime_imports(path: Path, generation: str) -> dict[str, str]:
    """Where each TensorRT-LLM name of the port lies in a generation: name -> module.

    The module is empty for a name that the generation lacks, which the port sets to None.
    """
    found: dict[str, str] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        chosen = [node]
        if isinstance(node, ast.Try):
            chosen = node.body if generation == "1.4" else node.handlers[0].body
        for each in chosen:
            if isinstance(each, ast.ImportFrom):
                found.update({alias.name: str(each.module) for alias in each.names})
            elif isinstance(node, ast.Try):
                found.update(dict.fromkeys(_defined([each]), ""))
    return found
