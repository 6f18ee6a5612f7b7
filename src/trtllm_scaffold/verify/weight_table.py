"""A port's weight table and its functions, read without torch."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import CheckFailed
from trtllm_scaffold.verify.port_files import read_text

#: Importing one of these would make the load proof slow, or impossible where it is absent.
_HEAVY = {"torch", "tensorrt_llm", "transformers"}


@dataclass(frozen=True)
class WeightTable:
    """What ``weights_<name>.py`` says.

    Attributes:
        weights: Stored name -> canonical parameters that it fills.
        dropped: Stored name -> why no parameter needs it.
        canonical_weights: The port's function (checkpoint, config) -> parameters.
    """

    weights: Mapping[str, tuple[str, ...]]
    dropped: Mapping[str, str]
    canonical_weights: Callable[[Mapping[str, Any], Any], dict[str, Any]]


def read_weight_table(path: Path) -> WeightTable:
    """Read the literals and import the functions of a weights module by its file alone.

    Raises:
        CheckFailed: If it imports torch at module level, lacks a table, or cannot be imported.
    """
    where = str(path)
    try:
        tree = ast.parse(read_text(path), filename=where)
    except (SyntaxError, ValueError, RecursionError) as error:
        raise CheckFailed(f"not Python: {error}", where=where) from error
    for node in tree.body:
        heavy = _imported(node) & _HEAVY
        if heavy:
            raise CheckFailed(
                f"line {node.lineno} imports {', '.join(sorted(heavy))}",
                where=where,
                hint="the weights module must import without it: move the import into a function",
            )
    weights = _literal(tree, "WEIGHTS", where)
    dropped = _literal(tree, "DROPPED", where)
    _check_types(weights, dropped, where)
    return WeightTable(weights, dropped, _function(path, "canonical_weights"))


def _imported(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Import):
        return {item.name.split(".")[0] for item in node.names}
    if isinstance(node, ast.ImportFrom) and node.level == 0:
        return {(node.module or "").split(".")[0]}
    return set()


def _literal(tree: ast.Module, name: str, where: str) -> dict[str, Any]:
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        if any(isinstance(item, ast.Name) and item.id == name for item in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            try:
                value = ast.literal_eval(node.value) if node.value else None
            except (ValueError, TypeError, RecursionError):
                value = None
            if isinstance(value, dict):
                return value
            raise CheckFailed(f"{name} is not a literal dict", where=f"{where}:{node.lineno}")
    raise CheckFailed(f"no table {name}", where=where)


def _check_types(weights: dict[str, Any], dropped: dict[str, Any], where: str) -> None:
    for name, targets in weights.items():
        good = isinstance(targets, tuple) and targets and all(map(_is_text, targets))
        if not _is_text(name) or not good:
            raise CheckFailed(f"WEIGHTS[{name!r}] is not a tuple of names", where=where)
    for name, reason in dropped.items():
        if not _is_text(name) or not _is_text(reason):
            raise CheckFailed(f"DROPPED[{name!r}] gives no reason", where=where)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _function(path: Path, name: str) -> Callable[..., Any]:
    private = f"_trtllm_scaffold_load_{abs(hash(path)):x}"
    spec = importlib.util.spec_from_file_location(private, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        spec.loader.exec_module(module)
        found = getattr(module, name)
    except Exception as error:  # the port's own code: whatever it raises is the port's fault
        raise CheckFailed(
            f"importing it fails: {type(error).__name__}: {error}", where=str(path)
        ) from error
    finally:
        sys.dont_write_bytecode = before
    if not callable(found):
        raise CheckFailed(f"{name} is not a function", where=str(path))
    return found  # type: ignore[no-any-return]
