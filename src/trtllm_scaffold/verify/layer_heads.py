"""Layers with different numbers of heads: what each layer's own parameters are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.json_file import shown
from trtllm_scaffold.verify.expected import expected_parameters
from trtllm_scaffold.verify.parameter import Parameter

#: For each layer its query heads and its key-value heads.
LayerHeads = tuple[tuple[int, int], ...]

_ANSWERS = {"layer_heads": "num_attention_heads", "layer_kv_heads": "num_key_value_heads"}


def read_layer_heads(answers: Mapping[str, Any], sizes: Mapping[str, int]) -> LayerHeads:
    """The heads of each layer among recorded answers; empty where all layers have the same.

    Raises:
        InputError: If they are not one number for each layer.
    """
    layers, columns = sizes["num_hidden_layers"], []
    if not any(answers.get(name) for name in _ANSWERS):
        return ()
    for name, size in _ANSWERS.items():
        found = answers.get(name) or [sizes[size]] * layers
        good = isinstance(found, list) and all(type(n) is int and n > 0 for n in found)
        if not good or len(found) != layers:
            raise InputError(
                f"the answer {name} is {shown(found)}, not heads of {layers} layers",
                where=".copier-answers.yml",
            )
        columns.append(found)
    return tuple(zip(*columns, strict=True))


def small_layer_heads(heads: LayerHeads, small: Mapping[str, int]) -> LayerHeads:
    """Few heads for each layer: equal where the real ones are, and only there."""
    columns = []
    for real, size in zip(zip(*heads, strict=True), _ANSWERS.values(), strict=True):
        ranks = sorted(set(real))
        columns.append([small[size] + ranks.index(number) for number in real])
    return tuple(zip(*columns, strict=True))


def parameters_of_layers(
    answers: Mapping[str, Any], sizes: Mapping[str, int], heads: LayerHeads
) -> tuple[Mapping[str, Parameter], ...]:
    """Each layer's `expected_parameters`; a single table, for all, where `heads` is empty."""
    if not heads:
        return (expected_parameters(answers, sizes),)
    tables = {
        pair: expected_parameters(
            answers, {**sizes, **dict(zip(_ANSWERS.values(), pair, strict=True))}
        )
        for pair in dict.fromkeys(heads)
    }
    return tuple(tables[pair] for pair in heads)
