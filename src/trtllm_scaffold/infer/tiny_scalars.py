"""Chooses scalars that leave a fingerprint: distinctive, mild, different in each variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.infer.keys import is_inert, is_number, is_scalar, is_token
from trtllm_scaffold.infer.normalize import ROPE_KEYS

#: (start, step) by variant. Values stay mild so that logits keep a sensible size.
_EPS = ((0.0013, 0.0004), (0.0021, 0.0007))
_TINY = ((1.3e-9, 0.4e-9), (2.1e-9, 0.7e-9))  # guards of a divisor must not be seen elsewhere
_FACTOR = ((0.37, 0.12), (0.53, 0.17))
_LARGE = ((3.3, 0.9), (4.7, 1.3))
_INTEGER = ((17, 6), (29, 10))
_THETA = ((731, 212), (1193, 346))


def odd_scalars(
    full: Mapping[str, Any], variant: int, counts: dict[int, int]
) -> dict[str, int | float]:
    """Return an odd value for each scalar outside rope.

    Args:
        full: Every value of the real configuration. A scalar that is 0 is off, and stays off.
        variant: 0 or 1; no value occurs in both.
        counts: How many values each table has given already. One for a whole file, so that keys
            of nested configurations never share a value with those around them.
    """
    odd: dict[str, int | float] = {}
    for key, value in full.items():
        if key in ROPE_KEYS or not is_scalar(key, value) or value == 0:
            continue
        table = _table(key, value)
        start, step = table[variant]
        index = counts.get(id(table), 0)
        counts[id(table)] = index + 1
        odd[key] = round(start + index * step, 6 if start > 1e-6 else 12)
    return odd


def _table(key: str, value: float) -> tuple[tuple[float, float], ...]:
    if "eps" not in key and abs(value) < 1e-9:
        return _TINY
    if "eps" in key or abs(value) < 1e-3:
        return _EPS
    if isinstance(value, int):
        return _INTEGER
    return _LARGE if abs(value) > 4 else _FACTOR


def odd_theta(index: int, variant: int) -> float:
    """Return a distinctive rope base, the `index`-th of a configuration."""
    start, step = _THETA[variant]
    return float(start + index * step)


def without_dropout(source: Mapping[str, Any]) -> dict[str, float]:
    """Return 0.0 for every dropout rate of the file that is not 0 already."""
    return {k: 0.0 for k, v in source.items() if "drop" in k and isinstance(v, float) and v}


def tokens_inside(full: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """Return token ids below `vocab_size` for those that are not; equal ids stay equal.

    An absent id stays absent.
    """
    ids = {k: v for k, v in full.items() if is_token(k) and v is not None and not is_inert(k)}
    listed = {k: v if isinstance(v, list) else [v] for k, v in ids.items()}
    outside = sorted(
        {v for values in listed.values() for v in values if is_number(v) and v >= vocab_size}
    )
    moved = {old: max(0, vocab_size - 1 - index) for index, old in enumerate(outside)}
    changed = {k: v for k, v in listed.items() if any(item in moved for item in v)}
    return {
        key: [moved.get(item, item) for item in values]
        if isinstance(ids[key], list)
        else moved.get(values[0], values[0])
        for key, values in changed.items()
    }
