"""Layers that differ in their heads, or whose values are narrower than their keys."""

from __future__ import annotations

from collections.abc import Callable

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers, code
from trtllm_scaffold.plan.kinds import choice, condition_of
from trtllm_scaffold.plan.latents import has_own_latents
from trtllm_scaffold.spec import AttentionSpec, LayerKind, ModelSpec, Quantity

_HEADS = "config.num_attention_heads"
_KV_HEADS = "config.num_key_value_heads"


def query_heads(spec: ModelSpec) -> tuple[int, ...]:
    """Query heads of each layer where layers differ in them; empty where they do not."""
    found = spec.heads_by_layer or _by_kind(spec, lambda a: a.num_attention_heads)
    return found if len(set(found)) > 1 or spec.heads_by_layer else ()


def key_value_heads(spec: ModelSpec) -> tuple[int, ...]:
    """Key-value heads of each layer where layers differ in them; empty where they do not."""
    found = _by_kind(spec, lambda a: a.num_key_value_heads)
    return found if len(set(found)) > 1 else ()


def _by_kind(spec: ModelSpec, read: Callable[[AttentionSpec], Quantity]) -> tuple[int, ...]:
    return tuple(int(read(spec.layer_kinds[kind].attention).value) for kind in spec.layer_pattern)


def head_sizes(spec: ModelSpec) -> dict[str, Quantity]:
    """What the configuration says of heads by the names that the runtime reads.

    Where layers differ these are the largest numbers: the cache has one of them for all layers.
    """
    if has_own_latents(spec) and query_heads(spec):  # a port with layers' sizes sets them last
        most = Quantity(max(query_heads(spec)), _HEADS)
        return {"num_attention_heads": most, "num_key_value_heads": Quantity(most.value, _KV_HEADS)}
    shared = spec.layer.attention.num_key_value_heads
    if found := key_value_heads(spec):  # canonicalizing lists them, and sets this last
        shared = Quantity(max(found), _KV_HEADS)
    sizes = {"num_attention_heads": _most_heads(spec), "num_key_value_heads": shared}
    for name, quantity in sizes.items():
        if "layer_idx" in quantity.expr:
            raise Refused(
                "attention.heads",
                f"layers have {name} of their own, by {quantity.expr}",
                where=spec.source,
                hint="lists by layer, and keys for kinds of layers, are expressed",
            )
    return sizes


def _most_heads(spec: ModelSpec) -> Quantity:
    """The most query heads of a layer, by the expression that canonicalizing may assign."""
    found = [kind.attention.num_attention_heads for kind in spec.layer_kinds]
    most = max(found, key=lambda quantity: quantity.value)
    if most.expr.endswith("[layer_idx]"):
        return Quantity(most.value, f"max({most.expr.removesuffix('[layer_idx]')})")
    exprs = {quantity.expr for quantity in found}
    if len(exprs) > 1 and _HEADS not in exprs:
        raise Refused(
            "attention.heads",
            f"layers have {' or '.join(sorted(exprs))} heads, none of them {_HEADS}, which the "
            "runtime reads",
            where=spec.source,
        )
    return most if len(exprs) == 1 else Quantity(most.value, _HEADS)


def is_narrow(spec: ModelSpec) -> bool:
    """Whether values are narrower than keys."""
    return spec.layer.attention.value_dim is not None


def _check(spec: ModelSpec) -> None:
    """Refuses what is not written out for such layers."""
    if has_own_latents(spec):  # its cache holds latents, and every head reads them
        return
    attention, uneven = spec.layer.attention, query_heads(spec)
    shared = key_value_heads(spec) or (int(attention.num_key_value_heads.value),)
    heads = uneven or (int(attention.num_attention_heads.value),)
    problem = ""
    if any(max(shared) % few for few in shared) or any(many % max(shared) for many in heads):
        problem = f"{sorted(set(shared))} key-value heads for {sorted(set(heads))} heads"
    tensors = spec.checkpoint.tensors
    fused = any(len(t.roles) > 1 and t.roles[0].startswith("attention.") for t in tensors)
    special = uneven or key_value_heads(spec) or is_narrow(spec)
    norm = attention.qk_norm
    if special and (fused or any(tensor.per_head for tensor in tensors)):
        problem = "q, k and v are stored in one, or each head's norm apart"
    if special and (attention.mla or spec.position.kind == "alibi"):
        problem = "with latents or ALiBi"
    if special and any(kind.attention.block_indexer for kind in spec.layer_kinds):
        problem = "blocks of keys are chosen, whose index keys lie beside every layer's heads"
    if key_value_heads(spec) and norm is not None and norm.scope != "head":
        problem = "keys have a norm over all heads, or a weight for each"
    gate = attention.output_gate
    if is_narrow(spec) and (attention.output_norm or (gate and gate.width == "full")):
        problem = "their outputs pass a norm or a gate of their own width"
    if problem:
        raise Refused(
            "attention.heads",
            f"layers differ in heads or have narrow values, and {problem}",
            where=spec.source,
        )


def _sinks(spec: ModelSpec) -> Answers:
    have = [kind.attention.sinks for kind in spec.layer_kinds]
    condition = condition_of(spec, "attention.sinks", _has_sinks, True) if any(have) else ""
    gate = spec.layer.attention.output_gate
    if condition and gate and gate.head_bias:
        raise Refused(
            "attention.sinks",
            "some layers have sinks, and the gate has a bias for each head",
            where=spec.source,
            hint="sinks in all layers or in none are expressed beside such a gate",
        )
    stored = [t.name for t in spec.checkpoint.tensors if t.roles == ("attention.sinks",)]
    name = stored[0] if stored and condition else ""
    return {
        "attention_sinks": any(have),
        "attention_sinks_condition": condition,
        "attention_sinks_name": name,
    }


def _has_sinks(kind: LayerKind) -> bool:
    return kind.attention.sinks


_EVEN: Answers = {
    "attention_heads": "",
    "attention_kv_heads": "",
    "layer_kv_heads": [],
    "attention_narrow": False,
    "attention_value_scale": "",
}


def plan_heads(spec: ModelSpec) -> Answers:
    """Answers on heads that differ from layer to layer, narrow values and sinks."""
    _check(spec)
    uneven, shared = query_heads(spec), key_value_heads(spec)
    if has_own_latents(spec):
        return {**_EVEN, "layer_heads": list(uneven), **_sinks(spec)}
    attention: AttentionSpec = spec.layer.attention
    return {
        "attention_heads": choice(spec, "attention.heads", _heads_code) if uneven else "",
        "attention_kv_heads": choice(spec, "attention.heads", _shared_code) if shared else "",
        "layer_heads": list(uneven),
        "layer_kv_heads": list(shared),
        "attention_narrow": is_narrow(spec),
        "attention_value_scale": code(attention.value_scale),
        **_sinks(spec),
    }


def _heads_code(kind: LayerKind) -> str:
    return code(kind.attention.num_attention_heads)


def _shared_code(kind: LayerKind) -> str:
    return code(kind.attention.num_key_value_heads)
