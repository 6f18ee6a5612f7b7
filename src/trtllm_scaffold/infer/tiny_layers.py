"""Chooses the layers of a tiny configuration, and cuts what a configuration says of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.infer.conditions import is_places
from trtllm_scaffold.infer.keys import ROLE_OF, is_size, is_token
from trtllm_scaffold.infer.layer_configs import is_by_layer
from trtllm_scaffold.infer.tiny_own import small_entries

Rows = tuple[tuple[str, ...], ...]


def layer_rows(full: Mapping[str, Any], layers: int) -> Rows:
    """For each layer of a configuration, what every key that speaks of layers says of it."""
    columns = []
    for key, value in full.items():
        if is_per_layer(value, layers):
            columns.append([json.dumps(entry) for entry in value])
        elif _is_places(key, value, layers):
            columns.append([json.dumps(index in value) for index in range(layers)])
        elif is_by_layer(value, layers):
            held = {int(place): entry for place, entry in value.items()}
            columns.append([json.dumps(held.get(index)) for index in range(layers)])
    return tuple(tuple(column[index] for column in columns) for index in range(layers))


def is_per_layer(value: Any, layers: int) -> bool:
    """Whether a value is a list with one entry for each layer.

    Numbers in the order of the layers are their places: one list names all of them.
    """
    if not isinstance(value, list) or len(value) != layers or layers < 2:
        return False
    return layers == 2 or value != list(range(layers))


def own_sizes(full: Mapping[str, Any]) -> str:
    """Say which sizes some layers have to themselves, by number; empty where none has."""
    layers = full.get("num_hidden_layers")
    told: dict[str, None] = {}
    for key, value in full.items():
        if not is_size(layers) or not is_by_layer(value, layers):
            continue
        for entry in value.values():
            for name, own in entry.items() if isinstance(entry, Mapping) else ():
                if is_size(own) and is_size(full.get(name)) and own != full[name]:
                    told[f"{name} ({full[name]} and {own} in {key})"] = None
    return f"layers differ in {', '.join(list(told)[:3])}" if told else ""


def _is_places(key: str, value: Any, layers: int) -> bool:
    return not is_token(key) and not is_per_layer(value, layers) and is_places(value, layers)


def kept_layers(rows: Rows, count: int) -> tuple[int, ...]:
    """Return which of the real layers the tiny model keeps, at least `count` where there are.

    The first of each distinct row, the first and the last layer come first, and where rows
    differ another layer of each end's row: an end may be special by its place alone. The rest
    is spread evenly.
    """
    last = len(rows) - 1
    chosen = {0, last} | {rows.index(row) for row in dict.fromkeys(rows)}
    if len(set(rows)) > 1:
        chosen |= set([i for i, row in enumerate(rows) if row == rows[0]][:2])
        chosen |= set([i for i, row in enumerate(rows) if row == rows[last]][-2:])
    for step in range(1, count):
        if len(chosen) >= min(count, len(rows)):
            break
        chosen.add(round(step * last / count))
    remaining = (index for index in range(len(rows)) if index not in chosen)
    while len(chosen) < min(count, len(rows)):
        chosen.add(next(remaining))
    return tuple(sorted(chosen))


def layer_edits(
    source: Mapping[str, Any],
    full: Mapping[str, Any],
    layers: int,
    kept: tuple[int, ...],
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """Return per-layer lists cut to the kept layers, and counts of layers cut with them.

    Args:
        source: The real config.json.
        full: Every value of the real configuration.
        layers: Its number of layers.
        kept: Which of them the tiny model has.
        sizes: Sizes of the tiny model by role.
    """
    edits: dict[str, Any] = {}
    for key, value in full.items():
        if is_per_layer(value, layers):
            if key in source or len({json.dumps(item) for item in value}) > 1:
                role = ROLE_OF.get(key)
                cut = [value[index] for index in kept]
                size = sizes.get(role) if role else None
                edits[key] = [size if size and v else v for v in cut]
        elif _is_places(key, value, layers):
            edits[key] = [new for new, old in enumerate(kept) if old in value]
        elif is_by_layer(value, layers):
            places = {old: new for new, old in enumerate(kept)}
            small = small_entries(value, full, sizes)
            edits[key] = {str(places[int(k)]): v for k, v in small.items() if int(k) in places}
        elif is_size(value) and key not in ROLE_OF and ("layers" in key or "first_k" in key):
            if key in source:
                edits[key] = sum(index < value for index in kept)
    return edits
