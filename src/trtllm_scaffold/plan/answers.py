"""Copier answers: flat scalars and short lists of scalars, JSON-plain, code already formatted."""

from __future__ import annotations

import ast
import re

from trtllm_scaffold.spec import Quantity

Scalar = str | int | float | bool
Answers = dict[str, Scalar | list[str] | list[int]]

#: A power whose operands are names, attributes or numbers: ruff writes it without spaces.
_SIMPLE_POWER = re.compile(r"(?<![\w.)])([\w.]+) \*\* (-?[\w.]+)")


def code(quantity: Quantity | None) -> str:
    """The expression of `quantity` as the port writes it; empty for None.

    Parsing it back guards against anything but an expression.
    """
    if quantity is None:
        return ""
    text = ast.unparse(ast.parse(quantity.expr, mode="eval")).replace("'", '"')  # plain words
    return _SIMPLE_POWER.sub(r"\1**\2", text)
