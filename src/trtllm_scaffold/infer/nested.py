"""Keys of configurations inside a configuration, as ``ffn_config.moe_top_k``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from trtllm_scaffold.infer.keys import is_number

#: Behind the name of a list with one number for all layers.
FIRST = "[0]"

#: What an expression over a configuration object reads: a key, or a key of a nested one.
_READ = re.compile(r"\bconfig\.(\w+(?:\.\w+)?)")


def names_in(expr: str) -> tuple[str, ...]:
    """Every key that an expression reads, dotted where it is a nested one."""
    return tuple(_READ.findall(expr))


def read_key(config: Any, name: str) -> Any:
    """The value of a key, a nested one or the first of a list; None where there is none."""
    for part in name.removesuffix(FIRST).split("."):
        config = getattr(config, part, None)
    if name.endswith(FIRST):
        return config[0] if isinstance(config, (list, tuple)) and config else None
    return config


def nested_names(configs: Sequence[Any]) -> list[str]:
    """The dotted keys that every one of some configuration objects has."""
    found = [set(_dotted(config)) for config in configs]
    return sorted(set.intersection(*found))


def uniform_lists(configs: Sequence[Any]) -> list[str]:
    """The keys under which every configuration has a list of equal numbers, as ``key[0]``."""
    found = [
        {
            f"{key}{FIRST}"
            for key in config.to_dict()
            if isinstance(listed := getattr(config, key, None), (list, tuple))
            and listed
            and all(is_number(entry) and entry == listed[0] for entry in listed)
        }
        for config in configs
    ]
    return sorted(set.intersection(*found))


def _dotted(config: Any) -> Iterator[str]:
    for outer in config.to_dict():
        value: Any = getattr(config, outer, None)
        if hasattr(value, "to_dict"):
            yield from (f"{outer}.{key}" for key in value.to_dict())


def nested_edits(
    source: Mapping[str, Any], full: Mapping[str, Any], edit: Callable[[Mapping[str, Any]], Any]
) -> dict[str, Any]:
    """Return the nested configurations of a file with their own edits.

    Args:
        source: The parsed config.json.
        full: Every value of its configuration object.
        edit: Tells the edits of one nested configuration from all its values.
    """
    edits = {}
    for key, value in full.items():
        if isinstance(value, Mapping) and key.endswith("config") and "quant" not in key:
            changed = edit(value)
            held = source.get(key)
            if changed:
                edits[key] = {**(held if isinstance(held, Mapping) else {}), **changed}
    return edits
