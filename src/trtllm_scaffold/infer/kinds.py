"""Groups layers of equal equations, and carries the pattern over to the real depth."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.labels import layer_facts
from trtllm_scaffold.infer.trace import Observation

Window = int | None

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


@dataclass(frozen=True)
class Pattern:
    """Which layers of the real model are of which kind.

    Attributes:
        windows: For each kind its window in each observation.
        conditions: For each kind the Python condition over ``config`` and ``layer_idx``.
        layers: For each real layer its kind.
        key: The configuration key that says so; empty for a uniform model.
    """

    windows: tuple[tuple[Window, ...], ...]
    conditions: tuple[str, ...]
    layers: tuple[int, ...]
    key: str = ""


def check_uniform(observation: Observation) -> None:
    """Refuse layers that differ in more than the window.

    Raises:
        Refused: Names the first fact in which two layers differ, and both values.
    """
    first = layer_facts(observation.layers[0])
    for layer in observation.layers[1:]:
        for fact, value in layer_facts(layer).items():
            if value != first[fact]:
                raise Refused(
                    fact.split(".")[0],
                    f"layers differ in {fact}: {first[fact]} and {value}",
                    where=layer.layer.name,
                    hint="layers that differ in their window alone are expressed",
                )


def layer_pattern(observations: Sequence[Observation], real_config: Any, depth: int) -> Pattern:
    """Find the kinds of layers and the real pattern.

    Args:
        observations: One per tiny configuration.
        real_config: The configuration object of the real size.
        depth: Its number of layers.

    Raises:
        Refused: Layers differ, and no per-layer list of the configuration tells how.
    """
    windows = [tuple(f.attention.window for f in o.layers) for o in observations]
    if all(len(set(w)) == 1 for w in windows):
        return Pattern((tuple(w[0] for w in windows),), ("",), (0,) * depth)
    for name in sorted(filter(_WORD.fullmatch, real_config.to_dict())):
        lists = [
            _strings(o.config, name, len(w)) for o, w in zip(observations, windows, strict=True)
        ]
        real = _strings(real_config, name, depth)
        if real is None or any(listed is None for listed in lists):
            continue
        table = _explained([listed or [] for listed in lists], windows)
        if table is not None and set(real) <= set(table):
            kinds = list(dict.fromkeys(table[entry] for entry in real))
            conditions = [
                _condition(name, [e for e in dict.fromkeys(real) if table[e] == kind])
                for kind in kinds
            ]
            layers = tuple(kinds.index(table[entry]) for entry in real)
            return Pattern(tuple(kinds), tuple(conditions), layers, name)
    raise Refused(
        "attention",
        f"layers have windows {windows[0]}, and no list of the configuration says which",
        hint="a per-layer list such as layer_types is read",
    )


def _condition(name: str, entries: list[str]) -> str:
    """Python that is true for the layers whose entry of the list `name` is one of `entries`."""
    values = [json.loads(entry) for entry in entries]
    for value in values:
        plain = isinstance(value, (int, bool)) or (
            isinstance(value, str) and _WORD.fullmatch(value)
        )
        if not plain:
            raise Refused("attention", f"{name} names layers by {str(value)[:40]!r}, not by words")
    if len(values) == 1:
        return f"config.{name}[layer_idx] == {_literal(values[0])}"
    return f"config.{name}[layer_idx] in ({', '.join(map(_literal, values))})"


def _literal(value: str | int) -> str:
    """A checked word or number as Python, words in double quotes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _strings(config: Any, name: str, length: int) -> list[str] | None:
    value = getattr(config, name, None)
    if not isinstance(value, (list, tuple)) or len(value) != length:
        return None
    return [json.dumps(entry, default=str) for entry in value]


def _explained(
    lists: list[list[str]], windows: Sequence[tuple[Window, ...]]
) -> dict[str, tuple[Window, ...]] | None:
    """The windows (one per observation) of each entry, where entries decide them."""
    tables: list[dict[str, Window]] = []
    for listed, seen in zip(lists, windows, strict=True):
        table: dict[str, Window] = {}
        for entry, window in zip(listed, seen, strict=True):
            if table.setdefault(entry, window) != window:
                return None
        tables.append(table)
    if any(set(table) != set(tables[0]) for table in tables):
        return None
    return {entry: tuple(table[entry] for table in tables) for entry in tables[0]}
