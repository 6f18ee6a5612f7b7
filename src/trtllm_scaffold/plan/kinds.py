"""Layers that differ: which facts vary, and the condition under which a layer has each."""

from __future__ import annotations

import ast
from collections.abc import Callable, Hashable

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.spec import LayerKind, ModelSpec

#: Comparison -> how its opposite is written.
_OPPOSITES: dict[type[ast.cmpop], str] = {
    ast.In: "not in",
    ast.NotIn: "in",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Lt: ">=",
    ast.LtE: ">",
    ast.Gt: "<=",
    ast.GtE: "<",
}


def negated(condition: str) -> str:
    """The opposite of `condition`, as one would write it."""
    body = ast.parse(condition, mode="eval").body
    if not isinstance(body, ast.Compare) or len(body.ops) > 1:
        return f"not ({condition})"
    left, right = (ast.unparse(part).replace("'", '"') for part in (body.left, body.comparators[0]))
    return f"{left} {_OPPOSITES[type(body.ops[0])]} {right}"


def condition_of(
    spec: ModelSpec, fact: str, read: Callable[[LayerKind], Hashable], wanted: Hashable
) -> str:
    """The Python condition under which `read(layer)` is `wanted`; empty where it always is.

    Raises:
        Refused: Several kinds have it, or the kind's condition is not known.
    """
    having = [kind for kind in spec.layer_kinds if read(kind) == wanted]
    lacking = [kind for kind in spec.layer_kinds if read(kind) != wanted]
    if not lacking:
        return ""
    if len(having) == 1 and having[0].condition:
        return having[0].condition
    if len(lacking) == 1 and lacking[0].condition:
        return negated(lacking[0].condition)
    if all(kind.condition for kind in having):
        return " or ".join(kind.condition for kind in having)
    raise Refused(fact, "layers differ, and nothing in the configuration says which is which")


def choice(spec: ModelSpec, fact: str, read: Callable[[LayerKind], str]) -> str:
    """Code that is `read(layer)` for each layer: one expression, or a choice by conditions.

    Raises:
        Refused: A kind's condition is not known.
    """
    found = ""
    for text in dict.fromkeys(read(kind) for kind in spec.layer_kinds):
        if not found:
            found = text
        else:
            found = f"{text} if {condition_of(spec, fact, read, text)} else {found}"
    return found


def constant(spec: ModelSpec, fact: str, read: Callable[[LayerKind], Hashable]) -> None:
    """Refuses layers that differ in a fact for which no port has a way to differ.

    Raises:
        Refused: Names the fact and two of its values.
    """
    values = list(dict.fromkeys(read(kind) for kind in spec.layer_kinds))
    if len(values) > 1:
        raise Refused(fact, f"layers differ: {values[0]} and {values[1]}", where=spec.source)
