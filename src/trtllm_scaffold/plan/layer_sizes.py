"""Sizes of latents and heads that differ from layer to layer, for the port's own attention."""

from __future__ import annotations

import re
from collections.abc import Callable

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.kinds import choice
from trtllm_scaffold.plan.latents import (
    LAYER_SIZES,
    has_own_latents,
    layer_sizes,
    rows_are_set,
    uneven_sizes,
)
from trtllm_scaffold.spec import LayerKind, MlaSpec, ModelSpec, Quantity

#: What a configuration says of other things once it is canonical, where layers differ.
_CHANGED = re.compile(r"config\.(?:kv_lora_rank|qk_rope_head_dim|num_attention_heads)\b")


def plan_layer_sizes(spec: ModelSpec) -> Answers:
    """Answers with each layer's own sizes: their code, and the numbers for the load proof."""
    own = has_own_latents(spec)
    names, mla = uneven_sizes(spec) if own else (), spec.layer.attention.mla
    kinds = [spec.layer_kinds[kind].attention for kind in spec.layer_pattern]
    listed: Answers = {
        f"layer_{name}": [int(layer_sizes(kind)[name].value) for kind in kinds]
        if name in names
        else []
        for name in LAYER_SIZES[1:]
    }
    gate = spec.layer.attention.output_gate
    exprs = [choice(spec, "attention.latent_widths", _reader(name)) for name in names]
    return {
        **listed,
        "layer_size_names": list(names),
        "layer_size_exprs": exprs,
        "latent_dim": code(mla.kv_lora_rank) if mla and rows_are_set(spec) else "",
        "layer_sizes_ambiguous": any(".per_layer_config[" in expr for expr in exprs),
        "latent_raw": bool(own and mla and mla.raw_latent),
        "latent_gate": bool(gate and gate.beside_queries),
        "latent_rope_norm": bool(own and mla and mla.rope_norm),
        "latent_q_scale": _scale(spec, lambda mla: mla.q_scale) if own else "",
        "latent_kv_scale": _scale(spec, lambda mla: mla.kv_scale) if own else "",
    }


def _reader(name: str) -> Callable[[LayerKind], str]:
    return lambda kind: code(layer_sizes(kind.attention)[name])


def _scale(spec: ModelSpec, read: Callable[[MlaSpec], Quantity | None]) -> str:
    """The factor on a latent, by the names that the port's attention has for its widths.

    Raises:
        Refused: It reads a number that canonicalizing changes.
    """
    query = "q_rank" if "q_lora_rank" in uneven_sizes(spec) else "config.q_lora_rank"

    def text(kind: LayerKind) -> str:
        mla = kind.attention.mla
        assert mla is not None
        found = code(read(mla))
        for rank, name in ((mla.kv_lora_rank, "self.latent_dim"), (mla.q_lora_rank, query)):
            if rank is not None and not rank.is_constant:
                found = re.sub(rf"{re.escape(code(rank))}(?![\w.\[])", name, found)
        if "layer_idx" in found or set(_CHANGED.findall(found)):
            raise Refused("attention.latent_scale", f"a factor on latents is {found}")
        return found

    return choice(spec, "attention.latent_scale", text)
