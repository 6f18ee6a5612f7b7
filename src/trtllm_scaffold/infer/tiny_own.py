"""Makes the sizes small that some layers of a configuration have to themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from trtllm_scaffold.infer.keys import ROLE_OF, is_size
from trtllm_scaffold.infer.layer_configs import is_by_layer

_HEADS = ("num_attention_heads", "num_key_value_heads")
_STEP = 4  # rotated widths stay even
_MOST = 99_999  # layers; any place is below it


def small_entries(
    held: Mapping[str, Any], full: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, Any]:
    """Return what each layer has to itself, with small sizes: equal where the real ones are.

    No small size is that of the whole tiny model, or of another of its roles. What real sizes
    keep, small ones keep: as many key-value heads as heads, and a head as wide as its two parts.

    Args:
        held: By layer, its own values by name.
        full: Every value of the real configuration.
        sizes: Sizes of the tiny model by role.
    """
    small: dict[tuple[str, int], int] = {}
    used = set(sizes.values())
    for entry in held.values():
        for name, value in entry.items() if isinstance(entry, Mapping) else ():
            role = ROLE_OF.get(name, "")
            if role in sizes and is_size(value) and (role, value) not in small:
                small[role, value] = _unused(role, sizes[role], used, sizes.get(_HEADS[0]))
    return {
        place: _small_entry(entry, full, sizes, small) if isinstance(entry, Mapping) else entry
        for place, entry in held.items()
    }


def small_unnamed(tiny: Mapping[str, Any], full: Mapping[str, Any]) -> dict[str, Any]:
    """Return what layers have to themselves, small where the model's own number was made small.

    Args:
        tiny: The tiny configuration so far, with small sizes of unknown names.
        full: Every value of the real configuration.
    """
    used = {value for value in tiny.values() if is_size(value)}
    found: dict[str, Any] = {}
    for key, held in tiny.items():
        if not is_by_layer(held, _MOST):
            continue
        small: dict[tuple[str, int], int] = {}
        for entry in held.values():
            for name, value in entry.items() if isinstance(entry, Mapping) else ():
                changed = name not in ROLE_OF and is_size(tiny.get(name)) and is_size(value)
                if changed and tiny[name] != full.get(name) and (name, value) not in small:
                    small[name, value] = _unused(name, tiny[name], used)
        if small:
            found[key] = {
                place: {k: small.get((k, v), v) if is_size(v) else v for k, v in entry.items()}
                for place, entry in held.items()
            }
    return found


def _unused(role: str, size: int, used: set[int], heads: int | None = None) -> int:
    """A small size of its own: of heads an even number, so that two ranks can share them.

    Key-value heads are no more than `heads`: where no even number is left, there is one.
    """
    wider: Iterable[int] = range(size + _STEP, 512, _STEP)
    if role in _HEADS:
        most = heads if heads and role == _HEADS[1] else 511
        even = (n for n in (size // 2, *range(2 * size, most + 1, size)) if n > 1 and n % 2 == 0)
        wider = (*even, 1)
    found = next((number for number in wider if number not in used), size)
    used.add(found)
    return found


def _small_entry(
    entry: Mapping[str, Any],
    full: Mapping[str, Any],
    sizes: Mapping[str, int],
    small: Mapping[tuple[str, int], int],
) -> dict[str, Any]:
    """One layer's own values with small sizes."""
    found = {
        k: small.get((ROLE_OF.get(k, ""), v) if is_size(v) else ("", 0), v)
        for k, v in entry.items()
    }
    real = {**full, **entry}
    tiny = {
        **{name: sizes.get(ROLE_OF.get(name, ""), value) for name, value in full.items()},
        **found,
    }
    heads, shared = _HEADS
    if shared in found and real.get(heads) == real[shared]:
        found[shared] = tiny[heads]
    nope, rope, width = "qk_nope_head_dim", "qk_rope_head_dim", "head_dim"
    parts = [size for size in (real.get(nope), real.get(rope)) if is_size(size)]
    if len(parts) == 2 and real.get(width) == sum(parts):
        if width in found:
            found[width] = tiny[nope] + tiny[rope]
        elif nope in found:
            found[nope] = tiny[width] - tiny[rope]
    return found
