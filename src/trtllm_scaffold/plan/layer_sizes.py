"""Sizes of latents and heads that differ from layer to layer, for the port's own attention."""

from __future__ import annotations

import re
from collections.abc import Callable

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.indexer import indexer_of
from trtllm_scaffold.plan.kinds import choice
from trtllm_scaffold.plan.mla import latent_sizes
from trtllm_scaffold.spec import AttentionSpec, LayerKind, MlaSpec, ModelSpec, Quantity

#: Sizes by the names under which a port has those of one layer.
_NAMES = (
    "num_attention_heads",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)


def _sizes(attention: AttentionSpec) -> dict[str, Quantity]:
    heads = attention.num_attention_heads
    return {"num_attention_heads": heads, **latent_sizes(attention.mla)}


def uneven_sizes(spec: ModelSpec) -> tuple[str, ...]:
    """Names of the sizes that layers have to themselves; none without an attention of its own."""
    if indexer_of(spec) is None:
        return ()
    return tuple(name for name in _NAMES if _differs(spec, name))


def _differs(spec: ModelSpec, name: str) -> bool:
    sizes = (_sizes(kind.attention) for kind in spec.layer_kinds)
    found = [held[name] for held in sizes if name in held]
    by_layer = any("layer_idx" in quantity.expr for quantity in found)
    return by_layer or len({(quantity.value, quantity.expr) for quantity in found}) > 1


def plan_layer_sizes(spec: ModelSpec) -> Answers:
    """Answers with each layer's own sizes: their code, and the numbers for the load proof."""
    names, own = uneven_sizes(spec), indexer_of(spec) is not None
    kinds = [spec.layer_kinds[kind].attention for kind in spec.layer_pattern]
    listed: Answers = {
        f"layer_{name}": [int(_sizes(kind)[name].value) for kind in kinds] if name in names else []
        for name in _NAMES[1:]
    }
    exprs = [choice(spec, "attention.latent_widths", _reader(name)) for name in names]
    return {
        **listed,
        "layer_size_names": list(names),
        "layer_size_exprs": exprs,
        "layer_sizes_ambiguous": any(".per_layer_config[" in expr for expr in exprs),
        "latent_q_scale": _scale(spec, lambda mla: mla.q_scale) if own else "",
        "latent_kv_scale": _scale(spec, lambda mla: mla.kv_scale) if own else "",
    }


def _reader(name: str) -> Callable[[LayerKind], str]:
    return lambda kind: code(_sizes(kind.attention)[name])


def _scale(spec: ModelSpec, read: Callable[[MlaSpec], Quantity | None]) -> str:
    """The factor on a latent, by the names that the port's attention has for its widths.

    Raises:
        Refused: It is not one expression for all layers.
    """
    found = set()
    query = "q_rank" if "q_lora_rank" in uneven_sizes(spec) else "config.q_lora_rank"
    for mla in (kind.attention.mla for kind in spec.layer_kinds):
        assert mla is not None
        text = code(read(mla))
        for rank, name in ((mla.kv_lora_rank, "self.latent_dim"), (mla.q_lora_rank, query)):
            if rank is not None:
                text = re.sub(rf"{re.escape(code(rank))}(?![\w.\[])", name, text)
        found.add(text)
    if len(found) > 1 or any("layer_idx" in text for text in found):
        raise Refused("attention.latent_scale", f"layers differ: {' and '.join(sorted(found))}")
    return found.pop()
