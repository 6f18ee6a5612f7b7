"""Run a port's weight functions on arrays, and hold what they make against what is expected."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from trtllm_scaffold.errors import CheckFailed
from trtllm_scaffold.verify.expected_mla import index_layers
from trtllm_scaffold.verify.expected_moe import sparse_layers
from trtllm_scaffold.verify.parameter import Parameter
from trtllm_scaffold.verify.port_files import PortFiles
from trtllm_scaffold.verify.weight_table import WeightTable

#: The layer's number in a name, and an expert's.
_LAYER = re.compile(r"\.\d+\.")
_EXPERT = re.compile(r"(?<=\.)\d+(?=\.)")

Shapes = dict[str, tuple[int, ...]]


def concrete(
    tables: Sequence[Mapping[str, Parameter]],
    sizes: Mapping[str, int],
    partial: Mapping[str, set[int]],
) -> dict[str, Parameter]:
    """Parameters with layers, experts and heads written out; `partial` for some layers only.

    `tables` has one for each layer, or a single one for all.
    """
    layers = range(sizes["num_hidden_layers"])
    return {
        name.replace("{i}", str(layer)).replace("{e}", str(part)).replace("{j}", str(part)): item
        for name in tables[0]
        for layer in (partial.get(name, layers) if "{i}" in name else (0,))
        for item in (tables[layer if len(tables) > 1 else 0][name],)
        for part in range(_parts(name, item, sizes))
    }


def _parts(name: str, item: Parameter, sizes: Mapping[str, int]) -> int:
    """How many experts or heads have the parameter each; 1 for any other parameter."""
    if "{e}" in name:
        return sizes.get("num_experts", 1)
    return (item.heads or 1) if "{j}" in name else 1


def run_port(
    table: WeightTable, arrays: Mapping[str, Any], port: PortFiles, sizes: Mapping[str, int]
) -> dict[str, Any]:
    """The port's own function, with the attributes that `canonicalize` guarantees."""
    sparse = sparse_layers(port.answers)
    known: dict[str, Any] = {} if sparse is None else {"sparse_layers": sparse}
    known["key_value_heads"] = sizes["num_key_value_heads"]  # its name beside an indexer
    if port.answers.get("indexer_condition"):
        known["index_layers"] = index_layers(port.answers)
    known["dense_intermediate_size"] = sizes["intermediate_size"]  # its name beside experts
    config = SimpleNamespace(**{**port.config, **sizes, **known})
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
    """Say what is wrong with every layer, and with every expert, once."""
    found: dict[str, list[str]] = {}
    for text in problems:
        pattern = _EXPERT.sub("{e}", _LAYER.sub(".{i}.", text, count=1), count=1)
        found.setdefault(pattern, []).append(text)
    return [texts[0] + _more(pattern, len(texts) - 1) for pattern, texts in found.items()]


def _more(pattern: str, count: int) -> str:
    if count == 0:
        return ""
    return f" (and {count} {'experts' if '{e}' in pattern else 'layers'} more)"
