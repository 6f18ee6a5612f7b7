"""Shrinks what a configuration says of experts: how many, how many chosen, groups, widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeGuard

from trtllm_scaffold.infer.keys import SYNONYMS, is_size
from trtllm_scaffold.infer.tiny_sizes import Style

#: Role -> the keys that families use for it.
EXPERT_KEYS: dict[str, tuple[str, ...]] = {
    "num_experts": (
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "moe_num_experts",
        "num_routed_experts",
    ),
    "top_k": (
        "num_experts_per_tok",
        "experts_per_token",
        "num_experts_per_token",
        "moe_topk",
        "moe_top_k",
        "moe_k",
    ),
    "num_groups": ("n_group", "num_expert_group"),
    "top_groups": ("topk_group",),
    "num_shared": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"),
}
#: Widths of feed-forwards beside `intermediate_size`.
WIDTH_KEYS = (
    "moe_intermediate_size",
    "expert_ffn_hidden_size",
    "shared_expert_intermediate_size",
    "shared_intermediate_size",
    "dense_intermediate_size",
    "prefix_dense_intermediate_size",
    "intermediate_size_mlp",
)

#: (experts, chosen, groups, groups kept, shared) without and with groups. Numbers of experts
#: divide by 2 in the configurations that a port ships. Fewer groups are kept than experts chosen:
#: else the best group would always hold the best experts, and no choice of groups would show.
_PLAIN = {
    ("odd", 0): (10, 2, 1, 1, 3),
    ("odd", 1): (13, 3, 1, 1, 2),
    ("published", 0): (8, 2, 1, 1, 1),
    ("published", 1): (12, 3, 1, 1, 2),
}
_GROUPED = {
    ("odd", 0): (12, 3, 3, 2, 3),
    ("odd", 1): (20, 4, 4, 3, 2),
    ("published", 0): (16, 4, 4, 2, 1),
    ("published", 1): (24, 4, 6, 3, 2),
}
#: (first, step) of the widths. Grouped products of bfloat16 need rows of a multiple of 16 bytes.
_WIDTHS = {
    ("odd", 0): (40, 16),
    ("odd", 1): (48, 16),
    ("published", 0): (48, 16),
    ("published", 1): (64, 16),
}
_INTERMEDIATE = (152, 232)
_ROLES = ("num_experts", "top_k", "num_groups", "top_groups", "num_shared")


def tiny_moe(
    full: Mapping[str, Any],
    style: Style,
    variant: int,
    attribute_map: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the tiny value of every key that counts experts or is a width of one.

    Kept: whether experts lie in groups and whether all groups are kept, one chosen expert, no
    shared ones. In a list, one entry a layer, equal entries stay equal; others stay as they are.

    Args:
        full: Every value of the real configuration.
        style: See `shrink`.
        variant: See `shrink`.
        attribute_map: The class's own map from canonical names to its keys.
    """
    every = {
        role: (*keys, *(attribute_map[key] for key in keys if key in attribute_map))
        for role, keys in EXPERT_KEYS.items()
    }
    real = {role: _real(full, keys) for role, keys in every.items()}
    if not any(real.values()):
        return {}
    table = _GROUPED if real["num_groups"] > 1 else _PLAIN
    tiny = dict(zip(_ROLES, table[style, variant], strict=True))
    if real["top_k"] == 1:
        tiny["top_k"] = 1
    if real["top_groups"] == real["num_groups"]:
        tiny["top_groups"] = tiny["num_groups"]
    edits: dict[str, Any] = {}
    for role, keys in every.items():
        for key in keys:
            value = full.get(key)
            if is_size(value):
                edits[key] = tiny[role]
            elif _is_list(value) and len(set(value)) == 1:
                edits[key] = [tiny[role]] * len(value)
    first, step = _WIDTHS[style, variant]
    for index, key in enumerate(key for key in WIDTH_KEYS if is_size(full.get(key))):
        edits[key] = first + step * index
    if style == "odd":
        held = [key for key in SYNONYMS["intermediate_size"] if is_size(full.get(key))]
        edits.update(dict.fromkeys(held, _INTERMEDIATE[variant]))
    return edits


def _real(full: Mapping[str, Any], keys: Sequence[str]) -> int:
    for key in keys:
        value = full.get(key)
        if _is_list(value):
            return max(value)
        if is_size(value):
            return value
    return 0


def _is_list(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and bool(value) and all(is_size(item) for item in value)
