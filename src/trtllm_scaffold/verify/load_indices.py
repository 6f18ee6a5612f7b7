"""The second half of the load proof: follow each single element from the checkpoint on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trtllm_scaffold.errors import CheckFailed
from trtllm_scaffold.verify.expected import small_sizes
from trtllm_scaffold.verify.expected_moe import small_stored_shape
from trtllm_scaffold.verify.layer_sizes import (
    parameters_of_layers,
    read_layer_sizes,
    small_layer_sizes,
)
from trtllm_scaffold.verify.load_run import Shapes, compare, concrete, run_port
from trtllm_scaffold.verify.parameter import Parameter
from trtllm_scaffold.verify.port_files import PortFiles
from trtllm_scaffold.verify.weight_table import WeightTable

#: Indices are this far apart, so that a norm's "+ 1" at load still shows which one it was.
_SPACING = 4

_Tables = Sequence[Mapping[str, Parameter]]


def index_problems(
    table: WeightTable,
    port: PortFiles,
    stored: Shapes,
    real: Mapping[str, int],
    partial: Mapping[str, set[int]],
) -> list[str]:
    """Run at small sizes on arrays whose every element is its own number."""
    small = small_sizes(real)
    layers = read_layer_sizes(port.answers, real)
    if partial or layers:  # which layers differ is said of the real number of layers
        small["num_hidden_layers"] = real["num_hidden_layers"]
    few = small_layer_sizes(layers, small) if layers else ()
    after = parameters_of_layers(port.answers, small, few)
    wanted = concrete(after, small, partial)
    arrays: dict[str, Any] = {}
    first = 0
    starts: list[tuple[int, str]] = []
    before = parameters_of_layers(port.answers, real, layers)
    shapes, dropped = _small_shapes(table, port, stored, (before, after), (real, small))
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        values = np.arange(first, first + count, dtype=np.float64) * _SPACING
        arrays[name] = values.reshape(shape)
        starts.append((first, name))
        first += count
    kept = {name for name in arrays if name not in dropped}
    found = run_port(table, arrays, port, small)
    problems = list(compare(found, wanted))
    if problems:
        return [f"at small sizes {text}" for text in problems]
    return _use_problems(found, arrays, kept, starts, first)


def _use_problems(
    found: Mapping[str, Any],
    arrays: Mapping[str, Any],
    kept: set[str],
    starts: list[tuple[int, str]],
    total: int,
) -> list[str]:
    """Elements that no parameter holds, or more than one."""
    used = np.zeros(total, dtype=np.int64)
    for value in found.values():
        indices = np.rint(np.asarray(value, dtype=np.float64).ravel() / _SPACING).astype(np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= total):
            return ["canonical_weights computes new values: the load proof cannot follow them"]
        np.add.at(used, indices, 1)
    problems = []
    for start, name in starts:
        if name not in kept:
            continue
        part = used[start : start + arrays[name].size]
        lost, twice = int((part == 0).sum()), int((part > 1).sum())
        if lost:
            problems.append(f"{lost} of {part.size} elements of {name} reach no parameter")
        if twice:
            problems.append(f"{twice} of {part.size} elements of {name} are used twice")
    return problems


def _small_shapes(
    table: WeightTable,
    port: PortFiles,
    stored: Shapes,
    tables: tuple[_Tables, _Tables],
    sizes: tuple[Mapping[str, int], Mapping[str, int]],
) -> tuple[Shapes, set[str]]:
    """What the small model stores, laid out as the real shapes show, and what of it is dropped.

    `tables` and `sizes` are those of the real and of the small model.
    """
    real, small = sizes
    counts = real.get("num_experts", 1), small.get("num_experts", 1)
    shapes: Shapes = {}
    dropped: set[str] = set()
    for item in port.tensors:
        everywhere = item.only_layers or range(small["num_hidden_layers"] if item.layers else 1)
        count = counts[1] if item.heads is None else _small_heads(item.heads, real, small)
        for layers in [(layer,) for layer in everywhere] if item.shapes else [everywhere]:
            shape: tuple[int, ...] = (3,)
            if item.name in table.weights:
                first = item.names(layers)[0] if item.shapes else item.names()[0]
                held = stored.get(first, item.shape)
                before, after = (
                    [
                        of_layers[layers[0] if len(of_layers) > 1 else 0][name].shape
                        for name in targets
                    ]
                    for of_layers in tables
                    for targets in (table.weights[item.name],)
                )
                shape = _small_shape(item.name, held, before, after, counts)
            names = item.names(layers, count)
            shapes.update(dict.fromkeys(names, shape))
            dropped.update(names if item.name in table.dropped else ())
    return shapes, dropped


def _small_heads(heads: int, real: Mapping[str, int], small: Mapping[str, int]) -> int:
    """Heads of the small model where the real one has so many: of queries, or of keys."""
    of_queries = heads == real["num_attention_heads"]
    return small["num_attention_heads" if of_queries else "num_key_value_heads"]


def _small_shape(
    name: str,
    held: tuple[int, ...],
    real: list[tuple[int, ...]],
    small: list[tuple[int, ...]],
    counts: tuple[int, int],
) -> tuple[int, ...]:
    """The small shape of a tensor that holds parts one after another, transposed or not.

    It may hold those of every expert: `counts` has how many experts both models have.
    """
    rows = (sum(shape[0] for shape in small), *small[0][1:])
    joined = (sum(shape[0] for shape in real), *real[0][1:])
    if held == joined:
        return rows
    if held == joined[::-1]:
        return rows[::-1]
    if (found := small_stored_shape(held, real, small, counts)) is not None:
        return found
    raise CheckFailed(f"{name} stores {list(held)}, its parameters need {list(joined)}")
