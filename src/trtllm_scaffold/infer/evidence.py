"""Collects witnesses of facts, and holds them to agree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.spec.evidence import Evidence
from trtllm_scaffold.spec.quantity import Quantity

Plain = str | int | float | bool | None


class Witnesses:
    """The evidence gathered so far.

    Args:
        raw: The parsed config.json: tells keys it holds from defaults of the class.
        attribute_map: Other names that the configuration class has for its attributes.
        where: The config.json as messages name it.
        config_class: Name of the configuration class.
    """

    def __init__(
        self,
        raw: Mapping[str, Any],
        attribute_map: Mapping[str, str],
        where: str,
        config_class: str,
    ) -> None:
        self._raw = raw
        self._map = attribute_map
        self._where = where
        self._class = config_class
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
        witness = "config" if self._holds(key) else "class default"
        where = f"{self._where}: {key}" if witness == "config" else f"{self._class}.{key}"
        self._seen[Evidence(fact, witness, where, value)] = None

    def quantity(self, fact: str, where: str, seen: tuple[Plain, ...], found: Quantity) -> None:
        """Record a number: what the tiny models showed, and the keys that explain it."""
        shown = " and ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in seen)
        self.trace(fact, where, f"{shown} in two tiny models: {found.expr or 'the rope settings'}")
        for key in dict.fromkeys(re.findall(r"config\.(\w+)", found.expr)):
            self.config(fact, key, self._raw.get(key, found.value))

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

    def _holds(self, key: str) -> bool:
        aliases = {alias for alias, name in self._map.items() if name == key}
        return bool(({key, self._map.get(key, key)} | aliases) & set(self._raw))
