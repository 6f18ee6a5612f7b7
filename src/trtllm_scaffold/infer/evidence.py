"""Collects witnesses of facts, and holds them to agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.infer.nested import names_in, read_key
from trtllm_scaffold.spec.evidence import Evidence
from trtllm_scaffold.spec.quantity import Quantity

Plain = str | int | float | bool | None


class Witnesses:
    """The evidence gathered so far.

    Args:
        raw: The parsed config.json: tells keys it holds from defaults of the class.
        config: The configuration object of the real size.
        where: The config.json as messages name it.
    """

    def __init__(self, raw: Mapping[str, Any], config: Any, where: str) -> None:
        self._raw = raw
        self._config = config
        self._map = dict(getattr(config, "attribute_map", None) or {})
        self._where = where
        self._class = type(config).__name__
        self._seen: dict[Evidence, None] = {}

    @property
    def evidence(self) -> tuple[Evidence, ...]:
        """All of it, in order, without repeats."""
        return tuple(self._seen)

    def trace(self, fact: str, where: str, value: Plain) -> None:
        """Record what a trace showed in a module."""
        self._seen[Evidence(fact, "trace", where, value)] = None

    def config(self, fact: str, key: str, value: Plain) -> None:
        """Record what the configuration says under `key`, held or by its class's default."""
        witness = "config" if self.holds(key) else "class default"
        where = f"{self._where}: {key}" if witness == "config" else f"{self._class}.{key}"
        self._seen[Evidence(fact, witness, where, value)] = None

    def quantity(self, fact: str, where: str, seen: tuple[Plain, ...], found: Quantity) -> None:
        """Record a number: what the tiny models showed, and the keys that explain it."""
        shown = " and ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in seen)
        self.trace(fact, where, f"{shown} in two tiny models: {found.expr or 'the rope settings'}")
        for key in dict.fromkeys(names_in(found.expr)):
            value = read_key(self._config, key)
            told = "by layer" if isinstance(value, Mapping) else None
            self.config(fact, key, value if isinstance(value, (int, float, str)) else told)

    def agree(self, fact: str, first: tuple[str, Plain], second: tuple[str, Plain]) -> None:
        """Hold two witnesses (where, value) to the same value.

        Raises:
            InputError: They differ.
        """
        if first[1] != second[1]:
            raise InputError(
                f"{fact}: {first[0]} says {first[1]!r}, {second[0]} says {second[1]!r}",
                where=self._where,
                hint="one of the two is wrong, or the class does not honour the key",
            )

    def holds(self, key: str) -> bool:
        """Whether the file itself has `key`, under this or another name of the attribute."""
        outer, _, inner = key.partition(".")
        if inner:
            held = self._raw.get(outer)
            return isinstance(held, Mapping) and inner in held
        aliases = {alias for alias, name in self._map.items() if name == key}
        return bool(({key, self._map.get(key, key)} | aliases) & set(self._raw))
