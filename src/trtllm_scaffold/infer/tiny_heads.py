"""Makes lists small that give each layer a number of attention heads of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.infer.keys import ROLE_OF, is_size, is_token
from trtllm_scaffold.sources.hf_class import HFClasses

#: Query heads for each key-value head: the fewest first. An odd number of key-value heads takes
#: the even ones, so that two ranks can share the heads.
_GROUPS = range(2, 24)


def head_lists(
    tiny: Mapping[str, Any],
    full: Mapping[str, Any],
    real: Mapping[str, int],
    sizes: Mapping[str, int],
    classes: HFClasses,
) -> dict[str, list[int]]:
    """Return lists of layers' heads with small numbers, in the order of the real ones.

    Nothing but a parameter's shape tells that a list counts heads: its real numbers divide by
    the key-value heads, and other multiples of the tiny ones give other shapes. No small number
    is that of the tiny model's heads, so that a trace tells which of the two a layer has.

    Args:
        tiny: The tiny configuration so far, lists cut to its layers.
        full: Every value of the real configuration.
        real: The real sizes by role.
        sizes: The tiny ones.
        classes: The model's HF classes.
    """
    heads = sizes["num_attention_heads"]
    shared = real.get("num_key_value_heads", real["num_attention_heads"])
    few = sizes.get("num_key_value_heads", heads)
    counts = [group * few for group in _GROUPS if group * few % 2 == 0 and group * few != heads]
    found: dict[str, list[int]] = {}
    for key, value in full.items():
        cut = tiny.get(key)
        if key in ROLE_OF or is_token(key) or not _holds_heads(value, shared):
            continue
        ranks = sorted(set(value))
        if isinstance(cut, list) and set(cut) <= set(ranks) and len(ranks) <= len(counts):
            found[key] = [counts[ranks.index(entry)] for entry in cut]
    if not found:
        return {}
    from trtllm_scaffold.infer.probe import changes_shapes  # imports torch

    return {k: small for k, small in found.items() if changes_shapes(tiny, {k: small}, classes)}


def _holds_heads(value: Any, shared: int) -> bool:
    """Whether a value can be a list of heads that share so many key-value heads."""
    listed = isinstance(value, list) and len(value) > 1 and all(map(is_size, value))
    return listed and max(value) > 1 and all(entry % shared == 0 for entry in value)
