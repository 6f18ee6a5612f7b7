"""Conditions over ``config`` and ``layer_idx`` that can tell the kinds of layers apart."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from trtllm_scaffold.infer.keys import ROLE_OF, is_number, is_size, is_token

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_Entry = str | int | float | bool

#: (condition, its opposite, test) of one number of the configuration, ``{}``, and the layer.
_BY_NUMBER: tuple[tuple[str, str, Callable[[int, int], bool]], ...] = (
    ("layer_idx < {}", "layer_idx >= {}", lambda i, n: i < n),
    ("(layer_idx + 1) % {} == 0", "(layer_idx + 1) % {} != 0", lambda i, n: (i + 1) % n == 0),
    ("layer_idx % {} == 0", "layer_idx % {} != 0", lambda i, n: i % n == 0),
)
_PERIODS = (2, 3, 4)


@dataclass(frozen=True)
class Key:
    """Something about a layer that a configuration tells.

    Attributes:
        name: The attribute that it reads; empty for the layer's place alone.
        columns: For each configuration, the real one last, its value for every layer.
        text: A Python expression; a condition itself where `opposite` is set.
        opposite: The opposite condition.
    """

    name: str
    columns: tuple[tuple[_Entry, ...], ...]
    text: str
    opposite: str = ""

    def condition(self, wanted: Sequence[_Entry]) -> str:
        """Python that is true for the layers whose value is one of `wanted`."""
        if self.opposite:
            return self.text if wanted[0] else self.opposite
        if len(wanted) == 1:
            return f"{self.text} == {_literal(wanted[0])}"
        return f"{self.text} in ({', '.join(map(_literal, wanted))})"


def candidate_keys(configs: Sequence[Any], depths: Sequence[int], depth_expr: str) -> list[Key]:
    """Every key that tiny configurations and the real one have, the telling ones first.

    Lists with an entry for each layer come first, then lists of layers' places, then numbers
    that a layer's place is compared with, then the place alone.

    Args:
        configs: Configuration objects, the real one last.
        depths: Their numbers of layers.
        depth_expr: Expression of the number of layers.
    """
    sizes = set((getattr(configs[-1], "attribute_map", None) or {}).values())
    names = [n for n in sorted(configs[-1].to_dict()) if _usable(n) and n not in sizes]
    numbers = [key for name in names for key in _number_keys(name, configs, depths)]
    return [
        *(key for name in names for key in _list_keys(name, configs, depths)),
        *(key for name in names for key in _place_keys(name, configs, depths)),
        *sorted(numbers, key=_is_unlikely),
        *_fixed_keys(depths, depth_expr),
    ]


def _usable(name: str) -> bool:
    return bool(_WORD.fullmatch(name)) and not keyword.iskeyword(name) and not is_token(name)


def per_layer(config: Any, name: str, depth: int) -> list[Any] | None:
    """The list `name` of a configuration, where it has an entry for each layer."""
    value = getattr(config, name, None)
    if not isinstance(value, (list, tuple)) or len(value) != depth:
        return None
    return list(value)


def _list_keys(name: str, configs: Sequence[Any], depths: Sequence[int]) -> Iterator[Key]:
    lists = [per_layer(c, name, depth) for c, depth in zip(configs, depths, strict=True)]
    columns = tuple(tuple(listed) for listed in lists if listed is not None)
    entries = [entry for column in columns for entry in column]
    if len(columns) != len(lists):
        return
    text = f"config.{name}[layer_idx]"
    if None in entries:
        absent = tuple(tuple(entry is None for entry in column) for column in columns)
        yield Key(name, absent, f"{text} is None", f"{text} is not None")
    if not all(map(_is_plain, entries)):
        return
    distinct = set(entries)
    if all(isinstance(entry, bool) for entry in distinct):
        yield Key(name, columns, text, f"not {text}")
    elif all(isinstance(entry, str) for entry in distinct) or len(distinct) == 2:
        yield Key(name, columns, text)
    if all(is_number(entry) for entry in distinct) and len(distinct) > 2:
        zero = tuple(tuple(entry == 0 for entry in column) for column in columns)
        yield Key(name, zero, f"{text} == 0", f"{text} != 0")


def _is_plain(entry: Any) -> bool:
    """Whether an entry can be written in a condition: a number or a word."""
    return isinstance(entry, (bool, int, float)) or (
        isinstance(entry, str) and bool(_WORD.fullmatch(entry))
    )


def _place_keys(name: str, configs: Sequence[Any], depths: Sequence[int]) -> Iterator[Key]:
    columns = []
    for config, depth in zip(configs, depths, strict=True):
        value = getattr(config, name, None)
        if not is_places(value, depth):
            return
        columns.append(tuple(i in value for i in range(depth)))
    yield Key(
        name, tuple(columns), f"layer_idx in config.{name}", f"layer_idx not in config.{name}"
    )


def is_places(value: Any, depth: int) -> TypeGuard[Sequence[int]]:
    """Whether a value can be a list of layers' places: distinct numbers, in order, not all."""
    if not isinstance(value, (list, tuple)) or not 0 < len(value) < depth:
        return False
    numbers = [item for item in value if is_number(item) and isinstance(item, int)]
    return (
        len(numbers) == len(value)
        and sorted(set(numbers)) == numbers
        and 0 <= numbers[0]
        and numbers[-1] < depth
    )


def _number_keys(name: str, configs: Sequence[Any], depths: Sequence[int]) -> Iterator[Key]:
    held = [getattr(config, name, None) for config in configs]
    values = [value for value in held if is_size(value)]
    if name in ROLE_OF or len(values) != len(held):
        return
    if any(value >= depth for value, depth in zip(values[:-1], depths, strict=False)):
        return  # what it would say of layers does not show in a tiny model
    for text, opposite, test in _BY_NUMBER:
        columns = tuple(
            tuple(test(i, value) for i in range(depth))
            for value, depth in zip(values, depths, strict=True)
        )
        key = f"config.{name}"
        yield Key(name, columns, text.format(key), opposite.format(key))


def _is_unlikely(key: Key) -> bool:
    """Whether a number's name says that it is a period and no first number, or the reverse.

    Two numbers of one value cannot be told apart otherwise.
    """
    period = any(
        word in key.name for word in ("interval", "step", "freq", "period", "pattern", "every")
    )
    return period != ("%" in key.text)


def _fixed_keys(depths: Sequence[int], depth_expr: str) -> Iterator[Key]:
    tests: list[tuple[str, str, Callable[[int, int], bool]]] = [
        ("layer_idx == 0", "layer_idx > 0", lambda i, _: i == 0),
        (
            f"layer_idx == {depth_expr} - 1",
            f"layer_idx < {depth_expr} - 1",
            lambda i, depth: i == depth - 1,
        ),
    ]
    for period in _PERIODS:
        tests += [
            (text.format(period), opposite.format(period), _with(test, period))
            for text, opposite, test in _BY_NUMBER[1:]
        ]
    for text, opposite, test in tests:
        columns = tuple(tuple(test(i, depth) for i in range(depth)) for depth in depths)
        yield Key("", columns, text, opposite)


def _with(test: Callable[[int, int], bool], number: int) -> Callable[[int, int], bool]:
    return lambda i, _: test(i, number)


def _literal(value: _Entry) -> str:
    """A checked word or number as Python, words in double quotes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def all_of(conditions: Sequence[str]) -> str:
    """Conditions joined by ``and``; each must be one comparison or already in brackets."""
    return " and ".join(dict.fromkeys(conditions))
