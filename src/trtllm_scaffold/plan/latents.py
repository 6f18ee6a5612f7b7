"""The widths of latents, which layers have their own, and whose attention reads them."""

from __future__ import annotations

from trtllm_scaffold.spec import AttentionSpec, LayerKind, MlaSpec, ModelSpec, Quantity

_WIDTHS = (
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)

#: Sizes that layers with latents may have to themselves, by the names that a port has for them.
LAYER_SIZES = ("num_attention_heads", *_WIDTHS)


def latent_sizes(mla: MlaSpec | None) -> dict[str, Quantity]:
    """The widths by the names that the port and the runtime's cache read; none without latents."""
    if mla is None:
        return {}
    found = {name: getattr(mla, name) for name in _WIDTHS}
    return {name: width for name, width in found.items() if width is not None}


def layer_sizes(attention: AttentionSpec) -> dict[str, Quantity]:
    """The sizes of one layer kind by the names of `LAYER_SIZES`."""
    return {
        "num_attention_heads": attention.num_attention_heads,
        **latent_sizes(attention.mla),
    }


def uneven_sizes(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the sizes that layers have to themselves; none without latents."""
    if spec.layer.attention.mla is None:
        return ()
    return tuple(name for name in LAYER_SIZES if _differs(spec, name))


def _differs(spec: ModelSpec, name: str) -> bool:
    sizes = (layer_sizes(kind.attention) for kind in spec.layer_kinds)
    found = [held[name] for held in sizes if name in held]
    by_layer = any("layer_idx" in quantity.expr for quantity in found)
    return by_layer or len({(quantity.value, quantity.expr) for quantity in found}) > 1


def rotates_unevenly(spec: ModelSpec) -> bool:
    """Whether layers with latents rotate differently."""
    return spec.layer.attention.mla is not None and len({k.rope for k in spec.layer_kinds}) > 1


def has_own_latents(spec: ModelSpec) -> bool:
    """Whether the port's own attention reads the latents, and not the library's module.

    That one has latents of one width, which are normed and nothing else, and no gate, window or
    choice of keys.
    """
    if spec.layer.attention.mla is None:
        return False
    special = any(map(_is_special, spec.layer_kinds))
    return special or bool(uneven_sizes(spec)) or rotates_unevenly(spec)


def _is_special(kind: LayerKind) -> bool:
    attention, mla = kind.attention, kind.attention.mla
    if mla is None:
        return False
    gated = attention.output_gate is not None or attention.window is not None
    return gated or mla.indexer is not None or not mla.is_plain


def rows_are_set(spec: ModelSpec) -> bool:
    """Whether ``config.kv_lora_rank`` is made from the cache's row, and is no latent's width."""
    own = {"kv_lora_rank", "qk_rope_head_dim"} & set(uneven_sizes(spec))
    indexed = any(k.attention.mla and k.attention.mla.indexer for k in spec.layer_kinds)
    return bool(own) or indexed
