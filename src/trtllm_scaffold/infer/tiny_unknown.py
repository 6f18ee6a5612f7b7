"""Finds integers of unknown names that a forward depends on, and makes them small."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from trtllm_scaffold.infer.keys import (
    ROLE_OF,
    is_inert,
    is_number,
    is_scalar,
    is_size,
    is_token,
)
from trtllm_scaffold.infer.normalize import ROPE_KEYS
from trtllm_scaffold.infer.tiny_sizes import BASES, Style
from trtllm_scaffold.sources.hf_class import HFClasses

#: A small number, or a list of them by layer.
Small = int | list[int | None]

_LONGEST = 11  # a window must be shorter than the traced input


def unknown_edits(
    tiny: Mapping[str, Any],
    full: Mapping[str, Any],
    layers: int,
    edited: Mapping[str, Any],
    classes: HFClasses,
    style: Style,
    variant: int,
    *,
    counts: bool,
) -> dict[str, Small]:
    """Return small values for integers that no name explains and that set no shape.

    Such a number may count layers (a period, a first number of them) or tokens (a window): at
    its real value neither shows in a tiny model. It is changed where that changes the logits.
    One up to the number of layers becomes 2 or 3, so that three or four layers show what it
    does; a larger one becomes shorter than the traced input.

    Args:
        tiny: The tiny configuration so far.
        full: Every value of the real configuration.
        layers: Its number of layers.
        edited: Keys that are settled.
        classes: The model's HF classes.
        style: See `shrink`.
        variant: See `shrink`.
        counts: Change also what may count layers; else only what is greater.
    """
    window = BASES[style, variant].window
    found: dict[str, Small] = {}
    for key, value in full.items():
        if _is_known(key) or is_scalar(key, value):
            continue
        held = tiny.get(key, value)
        if _is_list(held, tiny):
            large = [entry for entry in dict.fromkeys(held) if entry and entry > _LONGEST]
            short = {entry: min(window + i, _LONGEST) for i, entry in enumerate(large, 1)}
            if short:
                found[key] = [short.get(entry, entry) if entry else entry for entry in held]
        elif is_size(value) and value > 1 and key not in edited:
            is_count = value <= layers
            small = 2 + variant if is_count else _short(key, window, {**tiny, **found})
            if small < value and (counts or not is_count):
                found[key] = small
    if not found:
        return {}
    from trtllm_scaffold.infer.probe import live_edits  # imports torch

    before = {key: tiny.get(key, full[key]) for key in found}
    return live_edits({**tiny, **before}, found, classes)


def _short(key: str, least: int, tiny: Mapping[str, Any]) -> int:
    """Return a short length that no other key has: a number seen later must tell which set it."""
    taken = {value for name, value in tiny.items() if name != key and is_size(value)}
    free = [length for length in range(least, _LONGEST + 1) if length not in taken]
    return free[0] if free else _LONGEST


def _is_list(value: Any, tiny: Mapping[str, Any]) -> TypeGuard[list[int | None]]:
    """Whether a value of a tiny configuration is a list of integers or nothing by layer."""
    depths = [tiny.get(key) for key, role in ROLE_OF.items() if role == "num_hidden_layers"]
    if not isinstance(value, list) or len(value) < 2:
        return False
    known = [depth for depth in depths if is_size(depth)]
    integers = all(
        entry is None or (is_number(entry) and isinstance(entry, int)) for entry in value
    )
    return integers and (not known or len(value) in known)


def _is_known(key: str) -> bool:
    return key in ROLE_OF or key in ROPE_KEYS or is_token(key) or is_inert(key)
