"""Turns a real configuration into a tiny one of the same shape of thinking."""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from functools import partial
from typing import Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.effective import build_config, effective, spelled
from trtllm_scaffold.infer.keys import (
    ROLE_OF,
    is_number,
    is_scalar,
    is_size,
    is_token,
    keys_of,
)
from trtllm_scaffold.infer.nested import nested_edits
from trtllm_scaffold.infer.normalize import (
    ORIGINAL,
    is_per_layer_type,
    rope_parameters,
)
from trtllm_scaffold.infer.tiny_heads import head_lists
from trtllm_scaffold.infer.tiny_layers import (
    Rows,
    kept_layers,
    layer_edits,
    layer_rows,
)
from trtllm_scaffold.infer.tiny_moe import tiny_moe
from trtllm_scaffold.infer.tiny_own import small_unnamed
from trtllm_scaffold.infer.tiny_rope import tiny_rope
from trtllm_scaffold.infer.tiny_scalars import odd_scalars, tokens_inside, without_dropout
from trtllm_scaffold.infer.tiny_sizes import (
    BASES,
    REQUIRED,
    Real,
    Style,
    real_sizes,
    tiny_sizes,
)
from trtllm_scaffold.infer.tiny_unknown import unknown_edits
from trtllm_scaffold.sources.hf_class import HFClasses

#: Keys that belong to the published files, not to the model.
_NOT_OF_THE_MODEL = ("quantization_config", "compression_config", "_name_or_path", "auto_map")

#: Integers above this are sizes of something, whatever they are called.
_LARGE = 128

#: A tiny model with more parameters than this has a size that no known name sets.
_MAX_PARAMETERS = 16_000_000

#: One with more than this is not built: its sizes hide where nothing can make them small.
_MOST_PARAMETERS = 150_000_000


def shrink(
    raw: Mapping[str, Any],
    classes: HFClasses,
    *,
    style: Style,
    variant: int = 0,
    whole_depth: bool = False,
) -> dict[str, Any]:
    """Return a tiny configuration that builds and runs with the classes of the real one.

    Args:
        raw: The parsed config.json of the real model.
        classes: Its HF classes; the configuration class gives defaults of omitted keys and the
            names of canonical ones (`attribute_map`). Where neither those nor the usual names
            tell a size, the model class is probed.
        style: ``odd``: sizes and scalars are distinctive, so that a number seen in a trace
            tells which key set it. ``published``: tiny sizes, every published scalar kept.
        variant: 0 or 1. The two odd ones differ in every size and scalar.
        whole_depth: Keep every layer; by default one of each kind.

    Returns:
        JSON-plain keys in the spelling of `raw`, and in the older one beside it. The
        quantization is left out, unknown keys are kept.

    Raises:
        InputError: The class rejects the configuration.
        Refused: A size is missing, or some cannot be made small.
    """
    source = _of_the_model(raw, classes)
    config = build_config(source, classes)
    full = {**source, **effective(config)}
    attribute_map = _attribute_map(source, full, config, classes)
    real = _real(full, attribute_map, rope_parameters(config))
    layers = real.sizes["num_hidden_layers"]
    kept = tuple(range(layers))
    if not whole_depth:
        kept = _kept(layer_rows(full, layers), style, variant)
    sizes = tiny_sizes(real, style, variant, len(kept))

    edits = _size_edits(source, full, real, sizes, attribute_map)
    named = set(edits)
    edits.update(_equal_edits(full, real, sizes, named))
    experts = tiny_moe(full, style, variant, attribute_map)
    by_chance = set(edits) - named - set(experts)
    edits.update(experts)
    given: dict[int, int] = {}
    scalars = odd_scalars(full, variant, given) if style == "odd" else {}
    inner = partial(_inner_edits, sizes=sizes, style=style, variant=variant, given=given)
    edits.update(nested_edits(source, full, inner))
    edits.update(layer_edits(source, full, layers, kept, sizes))
    edits.update({k: v[: len(kept)] for k, v in experts.items() if isinstance(v, list)})
    edits.update(without_dropout(source))
    edits.update(tokens_inside(full, sizes["vocab_size"]))
    edits.update(scalars)
    edits.update(tiny_rope(source, config, real, sizes, style, variant))
    tiny = json.loads(json.dumps({**source, **edits}))
    tiny.update(head_lists(tiny, full, real.sizes, sizes, classes))
    tiny.update(_unnamed_sizes(tiny, full, edits, classes, variant))
    tiny.update(small_unnamed(tiny, full))
    # A window may equal a size by chance: what sets no shape is looked at once more.
    settled = {key: value for key, value in edits.items() if key not in by_chance}
    tiny.update(
        unknown_edits(tiny, full, layers, settled, classes, style, variant, counts=not whole_depth)
    )
    return spelled(tiny, classes)


def _of_the_model(raw: Mapping[str, Any], classes: HFClasses) -> dict[str, Any]:
    """A copy without the keys that do not tell of the model; its own classes stay named."""
    named = {"auto_map"} if classes.remote else set()
    dropped = set(_NOT_OF_THE_MODEL) - named
    return {k: v for k, v in json.loads(json.dumps(dict(raw))).items() if k not in dropped}


def _kept(rows: Rows, style: Style, variant: int) -> tuple[int, ...]:
    """Return the layers that a variant keeps; the second keeps more than the first."""
    kept = kept_layers(rows, BASES[style, 0].layers)
    return kept if not variant else kept_layers(rows, max(len(kept) + 1, BASES[style, 1].layers))


def _attribute_map(
    source: Mapping[str, Any], full: Mapping[str, Any], config: Any, classes: HFClasses
) -> dict[str, str]:
    """Return the class's map of canonical names, with keys found by probing where names fail."""
    known = dict(getattr(config, "attribute_map", None) or {})
    if all(any(is_size(full.get(k)) for k in keys_of(role, known)) for role in REQUIRED):
        return known
    from trtllm_scaffold.infer.probe import find_keys  # imports torch

    return {**find_keys(source, full, classes), **known}


def _unnamed_sizes(
    tiny: Mapping[str, Any],
    full: Mapping[str, Any],
    edits: Mapping[str, Any],
    classes: HFClasses,
    variant: int,
) -> dict[str, Any]:
    """Return small values for large sizes of unknown names, where the model is still large."""
    from trtllm_scaffold.infer.probe import parameter_count, sets_a_size  # imports torch

    if parameter_count(tiny, classes) <= _MAX_PARAMETERS:
        return {}
    left = [
        key
        for key, value in full.items()
        if key not in edits and is_size(value) and value > _LARGE and not is_token(key)
    ]
    small: dict[str, Any] = {}
    for key in left:
        if sets_a_size({**tiny, key: full[key]}, key, classes):
            small[key] = 44 + 12 * len(small) + 8 * variant
    left_over = parameter_count({**tiny, **small}, classes)
    if left_over > _MOST_PARAMETERS:
        raise Refused(
            "model",
            f"the smallest {classes.model_class.__name__} still has {left_over:,} parameters: "
            "sizes of unknown names, or in nested configurations",
            where="config.json",
            hint="models whose sizes are numbers at the top of the configuration are observed",
        )
    return small


def _real(
    full: Mapping[str, Any],
    attribute_map: Mapping[str, str],
    rope: Mapping[str, Any],
) -> Real:
    sizes = real_sizes(full, attribute_map)
    head_dim = sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    entry: Mapping[str, Any] = rope
    if is_per_layer_type(rope):
        entry = next((r for r in rope.values() if r["rope_type"] != "default"), {})
    original = entry.get(ORIGINAL) or full.get(ORIGINAL)
    held = rope.values() if is_per_layer_type(rope) else (entry,)
    shares = [r.get("partial_rotary_factor") or 1.0 for r in held]
    fraction = min(filter(is_number, shares), default=1.0)
    return Real(
        sizes=sizes,
        head_dim=max(1, head_dim),
        fraction=float(fraction),
        rope_type=str(entry.get("rope_type", "default")),
        original=original if is_size(original) else None,
    )


def _size_edits(
    source: Mapping[str, Any],
    full: Mapping[str, Any],
    real: Real,
    sizes: Mapping[str, int],
    attribute_map: Mapping[str, str],
) -> dict[str, Any]:
    """Return the tiny value of every key that holds a size."""
    edits: dict[str, Any] = {}
    for role, size in sizes.items():
        if role not in real.sizes:
            continue
        for key in keys_of(role, attribute_map):
            value = full.get(key)
            derived = role == "head_dim" and key not in source and _derives_head_dim(real)
            if is_size(value) and not derived:
                edits[key] = size
    if is_size(full.get(ORIGINAL)):
        edits[ORIGINAL] = sizes[ORIGINAL]
    return edits


def _equal_edits(
    full: Mapping[str, Any], real: Real, sizes: Mapping[str, int], named: Set[str]
) -> dict[str, Any]:
    """Return the tiny value of every other key whose value is that of a size."""
    edits: dict[str, Any] = {}
    known = {real.sizes[role]: sizes[role] for role in reversed([*sizes]) if role in real.sizes}
    for key, value in full.items():
        if key in ROLE_OF or key in named or is_token(key) or not is_size(value):
            continue
        if is_scalar(key, value):  # equal to a size by chance: gemma-2's query_pre_attn_scalar
            continue
        if (value > _LARGE or "vocab" in key) and value in known:
            edits[key] = known[value]
    return edits


def _inner_edits(
    values: Mapping[str, Any],
    *,
    sizes: Mapping[str, int],
    style: Style,
    variant: int,
    given: dict[int, int],
) -> dict[str, Any]:
    """Return the edits of a nested configuration: sizes, counts of experts and scalars."""
    known = {
        key: sizes[role]
        for key, value in values.items()
        if (role := ROLE_OF.get(key)) in sizes and role is not None and is_size(value)
    }
    edits = {**known, **tiny_moe(values, style, variant)}
    return {**(odd_scalars(values, variant, given) if style == "odd" else {}), **edits}


def _derives_head_dim(real: Real) -> bool:
    heads = real.sizes["num_attention_heads"]
    return real.sizes["hidden_size"] == real.head_dim * heads
