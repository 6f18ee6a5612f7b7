"""Run a port's weight functions on arrays, and hold what they make against what is expected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from trtllm_scaffold.errors import CheckFailed
from trtllm_scaffold.verify.expected import Parameter
from trtllm_scaffold.verify.port_files import PortFiles
from trtllm_scaffold.verify.weight_table import WeightTable

#: The layer's number in a name.
_LAYER = re.compile(r"\.\d+\.")

Shapes = dict[str, tuple[int, ...]]


def concrete(
    wanted: Mapping[str, Parameter], sizes: Mapping[str, int], partial: Mapping[str, set[int]]
) -> dict[str, Parameter]:
    """`wanted` with its layers written out; those in `partial` for some layers only."""
    layers = range(sizes["num_hidden_layers"])
    return {
        name.replace("{i}", str(layer)): item
        for name, item in wanted.items()
        for layer in (partial.get(name, layers) if "{i}" in name else (0,))
    }


def run_port(
    table: WeightTable, arrays: Mapping[str, Any], port: PortFiles, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """The port's own function, with the attributes that `canonicalize` guarantees."""
    config = SimpleNamespace(**{**port.config, **sizes})
    try:
        found = table.canonical_weights(arrays, config)
    except Exception as error:  # the port's own code
        text = str(error).strip("'\"") or "no message"
        raise CheckFailed(f"canonical_weights: {type(error).__name__}: {text}") from error
    if not isinstance(found, dict):
        raise CheckFailed(f"canonical_weights returns a {type(found).__name__}, not a dict")
    return found


def compare(found: Mapping[str, Any], wanted: Mapping[str, Parameter]) -> Iterator[str]:
    """Parameters that are missing, unknown or of another shape."""
    for name, item in wanted.items():
        if name not in found:
            yield f"canonical_weights leaves {name} unfilled"
        elif tuple(found[name].shape) != item.shape:
            shape = list(found[name].shape)
            yield f"{name} becomes {shape}, the model has {list(item.shape)}"
    for name in found:
        if name not in wanted:
            yield f"canonical_weights makes {name}, which the model does not have"


def once_per_layer(problems: list[str]) -> list[str]:
    """Say what is wrong with every layer once."""
    found: dict[str, list[str]] = {}
    for text in problems:
        found.setdefault(_LAYER.sub(".{i}.", text, count=1), []).append(text)
    return [
        texts[0] + (f" (and {len(texts) - 1} layers more)" if len(texts) > 1 else "")
        for texts in found.values()
    ]


def pattern_of(name: str) -> str:
    """A stored name with its layer written as ``{i}``."""
    return _LAYER.sub(".{i}.", name, count=1)
