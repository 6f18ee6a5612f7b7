"""Shrinks the rope settings of a configuration, in the spelling that the file uses."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.infer.keys import FRACTIONS, is_number
from trtllm_scaffold.infer.normalize import (
    ORIGINAL,
    SPELLINGS,
    is_per_layer_type,
    rope_parameters,
)
from trtllm_scaffold.infer.tiny_scalars import odd_theta
from trtllm_scaffold.infer.tiny_sizes import Real, Style

_THETAS = (*SPELLINGS["rope_theta"], "rope_local_base_freq")
_FRACTION_CHOICES = (0.5, 0.25, 0.75, 0.4)


def tiny_rope(
    source: Mapping[str, Any],
    config: Any,
    real: Real,
    sizes: Mapping[str, int],
    style: Style,
    variant: int,
) -> dict[str, Any]:
    """Return the edits of rope keys.

    Lengths and per-dimension factors shrink in both styles; theta, and the rotated share in the
    second variant, change in the odd style only; the share stays where lists depend on it.
    Everything else of a scaling is kept: no trace at short lengths shows it, so it is read from
    the file and then tested.

    Args:
        source: The real config.json.
        config: The real configuration object; tells whether the class has a default theta.
        real: Sizes of the real model.
        sizes: Sizes of the tiny one.
        style: See `shrink`.
        variant: See `shrink`.
    """
    edits: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(source.get(key), Mapping):
            edits[key] = _shrunk(source[key], real, sizes)
    if style == "odd":
        _odd_thetas(edits, source, config, variant)
        if variant and not any(isinstance(v, list) for d in _places(edits) for v in d.values()):
            _odd_fractions(edits, source, sizes)
    return edits


def _shrunk(scaling: Mapping[str, Any], real: Real, sizes: Mapping[str, int]) -> dict[str, Any]:
    result: dict[str, Any] = copy.deepcopy(dict(scaling))
    half = int(sizes["effective_head_dim"] * real.fraction) // 2
    real_half = int(real.head_dim * real.fraction) // 2
    for key, value in result.items():
        if isinstance(value, Mapping):
            result[key] = _shrunk(value, real, sizes)
        elif key == ORIGINAL and is_number(value):
            result[key] = sizes[ORIGINAL]
        elif isinstance(value, list) and len(value) == real_half:
            result[key] = [value[i] for i in spread(real_half, half)]
        elif isinstance(value, list) and value and all(isinstance(v, int) for v in value):
            if sum(value) == real_half:
                result[key] = _sections(value, half)
    return result


def spread(length: int, count: int) -> list[int]:
    """Return `count` indices below `length`, evenly spread, both ends included."""
    if count < 2:
        return [0] * count
    return [round(i * (length - 1) / (count - 1)) for i in range(count)]


def _sections(sections: list[int], total: int) -> list[int]:
    """Return sections in the same proportion that sum to `total`."""
    cut = [max(1, section * total // sum(sections)) for section in sections]
    cut[-1] += total - sum(cut)
    return cut


def _odd_thetas(
    edits: dict[str, Any], source: Mapping[str, Any], config: Any, variant: int
) -> None:
    """Set every theta that the file holds; where it holds none, the class's default."""
    index = 0
    said: dict[tuple[str, float], float] = {}  # what the file says twice stays the same twice
    for place in _places(edits):
        once = place is edits or place in (edits.get("rope_scaling"), edits.get("rope_parameters"))
        for key in _THETAS:
            held = place.get(key, source.get(key) if place is edits else None)
            if is_number(held):
                known = said.get((key, held)) if once else None
                place[key] = odd_theta(index, variant) if known is None else known
                said.setdefault((key, held), place[key])
                index += known is None
    settings = rope_parameters(config)
    if not index and settings and not is_per_layer_type(settings):
        if is_number(settings.get("rope_theta")):
            edits["rope_theta"] = odd_theta(0, variant)


def _odd_fractions(
    edits: dict[str, Any], source: Mapping[str, Any], sizes: Mapping[str, int]
) -> None:
    width = sizes["effective_head_dim"]
    for place in _places(edits):
        for key in FRACTIONS:
            held = place.get(key, source.get(key) if place is edits else None)
            if not is_number(held) or held == 1.0:
                continue
            fits = (f for f in _FRACTION_CHOICES if f != held and int(width * f) % 2 == 0)
            place[key] = next(fits, held)


def _places(edits: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the dicts that may hold a rope setting: the top level and its rope dicts."""
    dicts = [edits[key] for key in ("rope_scaling", "rope_parameters") if key in edits]
    nested = [value for d in dicts for value in d.values() if isinstance(value, dict)]
    return [edits, *dicts, *nested]
