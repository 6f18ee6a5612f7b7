"""A checkout of TensorRT-LLM: its generation, and the rows that a new model needs in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from trtllm_scaffold.errors import InputError

MODELS = "tensorrt_llm/_torch/models"
INDEX = f"{MODELS}/_arch_index.py"
PACKAGE = f"{MODELS}/__init__.py"
MATRIX = "docs/source/models/supported-models.md"
TESTS = "tests/unittest/_torch/modeling"

#: A file that only one generation's layout has.
_NEW_LAYOUT = "tensorrt_llm/_torch/attention/attention.py"
_MAX_BYTES = 4 << 20
_ROW = re.compile(r'^    "(?P<key>[A-Za-z0-9_]+)": "(?P<module>[a-z0-9_]+)",$')
_IMPORT = re.compile(r"^from \.(?P<module>modeling_[a-z0-9_]+) import ")


@dataclass(frozen=True)
class Tree:
    """A checkout of TensorRT-LLM.

    Attributes:
        root: Its top folder.
        generation: Whose layout it has.
    """

    root: Path
    generation: str

    def read(self, path: str) -> str:
        """The text of one of its files.

        Raises:
            InputError: It is missing, too large or not UTF-8.
        """
        place = self.root / path
        try:
            if place.stat().st_size > _MAX_BYTES:
                raise InputError("too large for a file of TensorRT-LLM's tree", where=str(place))
            return place.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"cannot be read: {error}", where=str(place), hint="give a whole checkout"
            ) from error


@dataclass(frozen=True)
class Model:
    """What the tree is told of a model: `hf_example` is its id on the hub, empty if unknown."""

    name: str
    architecture: str
    title: str
    hf_example: str

    @property
    def module(self) -> str:
        """Its module's name."""
        return f"modeling_{self.name}"


def open_tree(root: Path, trtllm: str) -> Tree:
    """The checkout at `root`, which must have the layout of the generation `trtllm`.

    Raises:
        InputError: It is no checkout of TensorRT-LLM, or of the other generation.
    """
    if not (root / MODELS).is_dir():
        raise InputError(
            f"no {MODELS} there, so it is no checkout of TensorRT-LLM",
            where=f"--in-tree {root}",
            hint="give the top folder of a clone of NVIDIA/TensorRT-LLM",
        )
    generation = "1.4" if (root / _NEW_LAYOUT).is_file() else "1.2"
    if generation != trtllm:
        has = "has" if generation == "1.4" else "lacks"
        raise InputError(
            f"the tree {has} {_NEW_LAYOUT}, as {generation} does, and the port is for {trtllm}",
            where=f"--in-tree {root}",
            hint=f"give --trtllm {generation}, or a checkout of {trtllm}",
        )
    return Tree(root, generation)


def refuse_taken(tree: Tree, name: str, architecture: str) -> None:
    """Raises InputError where the tree has a module of that name, or serves that architecture."""
    path = f"{MODELS}/modeling_{name}.py"
    if (tree.root / path).exists():
        raise InputError(
            f"the tree has a {path} already", where=str(tree.root), hint="give another --name"
        )
    for place in sorted((tree.root / MODELS).glob("modeling_*.py")):
        text = tree.read(f"{MODELS}/{place.name}")
        if f'register_auto_model("{architecture}")' in text:
            raise InputError(
                f"the tree serves {architecture} already, in {place.name}",
                where=str(tree.root),
                hint="change that file instead",
            )


def registration(tree: Tree, model: Model) -> dict[str, str]:
    """The tree's files of registration with the model's rows: path -> text."""
    if (tree.root / INDEX).is_file():
        text = tree.read(INDEX)
        for table in ("MODEL_ARCH_TO_MODULE", "MODEL_CLASS_TO_MODULE"):
            text = _with_index_row(text, table, model)
        return {INDEX: text}
    return {PACKAGE: _with_import(tree.read(PACKAGE), model)}


def _with_index_row(text: str, table: str, model: Model) -> str:
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith(f"{table} = {{")), None)
    if start is None:
        raise InputError(f"no table {table}", where=INDEX, hint="give an unchanged checkout")
    row = f'    "{model.architecture}": "{model.module}",'
    for number in range(start + 1, len(lines)):
        found = _ROW.match(lines[number])
        if lines[number] == "}" or (found and found["key"] > model.architecture):
            lines.insert(number, row)
            return "\n".join(lines) + "\n"
    raise InputError(f"the table {table} has no end", where=INDEX)


def _with_import(text: str, model: Model) -> str:
    """`models/__init__.py` of the older layout, which imports every model."""
    lines = text.splitlines()
    imports = [
        (i, found["module"]) for i, line in enumerate(lines) if (found := _IMPORT.match(line))
    ]
    after = [i for i, module in imports if module > model.module]
    exports = next((i for i, line in enumerate(lines) if line == "__all__ = ["), None)
    if not after or exports is None:
        raise InputError("no sorted imports and __all__", where=PACKAGE)
    entries = range(exports + 1, len(lines))
    later = f'    "{model.architecture}'
    place = next(i for i in entries if lines[i] == "]" or lines[i].rstrip('",') > later)
    lines.insert(place, f'    "{model.architecture}",')
    lines.insert(after[0], f"from .{model.module} import {model.architecture}")
    return "\n".join(lines) + "\n"


def support_matrix(tree: Tree, model: Model) -> dict[str, str]:
    """The page of supported models with the model's row: path -> text.

    A row that only the AutoDeploy backend earned loses its footnote.
    """
    lines = tree.read(MATRIX).splitlines()
    header = next((i for i, line in enumerate(lines) if line.startswith("| Architecture ")), None)
    if header is None:
        raise InputError("no table with a column Architecture", where=MATRIX)
    widths = [len(cell) - 2 for cell in lines[header].strip("|").split("|")]
    name = f"`{model.architecture}`"
    for number in range(header + 2, len(lines) + 1):
        row = lines[number] if number < len(lines) else ""
        if row.startswith(f"| {name} "):
            cells = [cell.strip() for cell in row.strip("|").split("|")]
            lines[number] = _table_row([name, *cells[1:]], widths)
            break
        if not row.startswith("|") or row.lower() > f"| {name}".lower():
            example = f"`{model.hf_example}`" if model.hf_example else "-"
            lines.insert(number, _table_row([name, model.title, example], widths))
            break
    return {MATRIX: "\n".join(lines) + "\n"}


def _table_row(cells: list[str], widths: list[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
    return "| " + " | ".join(padded) + " |"
