"""Layers with heads or latents of their own sizes: what each layer's own parameters are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.json_file import shown
from trtllm_scaffold.verify.expected import expected_parameters
from trtllm_scaffold.verify.parameter import Parameter

#: For each layer its sizes by name, those that differ between layers and their like.
LayerSizes = tuple[tuple[tuple[str, int], ...], ...]

_ANSWERS = {
    "layer_heads": "num_attention_heads",
    "layer_kv_heads": "num_key_value_heads",
    "layer_q_lora_rank": "q_lora_rank",
    "layer_kv_lora_rank": "kv_lora_rank",
    "layer_qk_nope_head_dim": "qk_nope_head_dim",
    "layer_qk_rope_head_dim": "qk_rope_head_dim",
    "layer_v_head_dim": "v_head_dim",
}


def read_layer_sizes(answers: Mapping[str, Any], sizes: Mapping[str, int]) -> LayerSizes:
    """The sizes of each layer among recorded answers; empty where all layers have the same.

    Raises:
        InputError: If they are not one number for each layer.
    """
    layers, columns = sizes["num_hidden_layers"], []
    for name, size in _ANSWERS.items():
        found = answers.get(name)
        if not found:
            continue
        good = isinstance(found, list) and all(type(n) is int and n > 0 for n in found)
        if not good or len(found) != layers or size not in sizes:
            raise InputError(
                f"the answer {name} is {shown(found)}, not sizes of {layers} layers",
                where=".copier-answers.yml",
            )
        columns.append([(size, number) for number in found])
    return tuple(zip(*columns, strict=True))


def small_layer_sizes(layers: LayerSizes, small: Mapping[str, int]) -> LayerSizes:
    """Small sizes for each layer: equal where the real ones are, and only there."""
    columns = []
    for column in zip(*layers, strict=True):
        ranks = sorted(set(column))
        columns.append([(size, small[size] + ranks.index((size, n))) for size, n in column])
    return tuple(zip(*columns, strict=True))


def parameters_of_layers(
    answers: Mapping[str, Any], sizes: Mapping[str, int], layers: LayerSizes
) -> tuple[Mapping[str, Parameter], ...]:
    """Each layer's `expected_parameters`; a single table, for all, where `layers` is empty."""
    if not layers:
        return (expected_parameters(answers, sizes),)
    tables = {
        own: expected_parameters(answers, {**sizes, **dict(own)}) for own in dict.fromkeys(layers)
    }
    return tuple(tables[own] for own in layers)
