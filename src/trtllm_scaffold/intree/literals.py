"""JSON values as Python literals, laid out as formatters leave them."""

from __future__ import annotations

import json
from typing import Any

_WIDTH = 100


def literal(value: Any, indent: int = 0, used: int = 0) -> str:
    """Python source of a JSON value.

    Args:
        value: What `json.loads` gives.
        indent: Columns before the line on which it starts.
        used: Columns on that line that other text takes, a comma behind it included.
    """
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list):
        return repr(value)
    flat = _flat(value)
    if len(flat) + indent + used <= _WIDTH or not value:
        return flat
    margin = " " * (indent + 4)
    if isinstance(value, list):
        lines = [f"{margin}{literal(item, indent + 4, 1)}," for item in value]
        return "[\n" + "\n".join(lines) + "\n" + " " * indent + "]"
    lines = []
    for key, item in value.items():
        head = f"{json.dumps(key)}: "
        lines.append(f"{margin}{head}{literal(item, indent + 4, len(head) + 1)},")
    return "{\n" + "\n".join(lines) + "\n" + " " * indent + "}"


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {_flat(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flat, value)) + "]"
    return literal(value)
