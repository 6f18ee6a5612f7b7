"""Names the structural facts of an observation, without numbers that a configuration sets."""

from __future__ import annotations

import re
from dataclasses import replace

from trtllm_scaffold.infer.attention_facts import AttentionFacts
from trtllm_scaffold.infer.head import DenseFacts
from trtllm_scaffold.infer.layer_names import fold_number
from trtllm_scaffold.infer.mla import MlaFacts
from trtllm_scaffold.infer.mlp import MlpFacts
from trtllm_scaffold.infer.norm import NormFacts
from trtllm_scaffold.infer.output import GateFacts
from trtllm_scaffold.infer.roles import norm_name
from trtllm_scaffold.infer.trace import LayerFacts, Observation

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")

Label = str | int | float | bool | None


def structure(observation: Observation) -> dict[str, tuple[str, Label]]:
    """Dotted fact -> (module, label) of everything that is no number of the configuration."""
    first = observation.layers[0]
    layer = first.layer.name
    labels = {fact: (layer, label) for fact, label in _layer_structure(first).items()}
    routed = next((facts for facts in observation.layers if facts.moe is not None), None)
    if routed is not None:
        every = {**_mlp_structure(routed.mlp, "moe.expert"), **_moe_structure(routed)}
        labels.update({fact: (routed.layer.name, label) for fact, label in every.items()})
    embedding, head = observation.embedding, observation.head
    model: dict[str, Label] = {
        "position.kind": position_kind(observation),
        "position.offset": embedding.position_offset,
        "embedding.projection": _presence(embedding.projection is not None),
        "embedding.norm": _norm_label(embedding.norm),
        "embedding.rows": "vocabulary" if embedding.rows == head.linear.rows else "others",
        "embedding.multiplier": _presence(not is_one(embedding.multiplier)),
        "head.final_norm": _norm_label(head.final_norm),
        "head.bias": head.linear.bias is not None,
        "head.tied": head.linear.weight is embedding.weight,
        "head.projection": _presence(head.projection is not None),
        "head.multiplier": _presence(not is_one(head.multiplier)),
        "head.softcap": _presence(head.softcap is not None),
        "head.dense": None if head.dense is None else _dense_label(head.dense),
        "checkpoint.roles": str(sorted(_roles(observation))),
    }
    return {**labels, **{fact: ("the model", label) for fact, label in model.items()}}


def is_one(factor: float) -> bool:
    """Whether a factor is 1, but for rounding."""
    return abs(factor - 1.0) < 1e-6


def position_kind(observation: Observation) -> str:
    """A value of `PositionSpec.kind`, or several joined by ``+`` where positions enter twice."""
    attention = observation.layers[0].attention
    rotates = any(layer.attention.rope is not None for layer in observation.layers)
    kinds = ["rope"] if rotates else []
    kinds += [attention.score_bias] if attention.score_bias else []
    kinds += ["learned"] if observation.embedding.position_weight is not None else []
    kinds += ["sinusoidal"] if observation.embedding.sinusoidal is not None else []
    return "+".join(kinds) or "none"


def norm_label(norm: NormFacts) -> str:
    """Kind, weight, bias and 1+w in words."""
    parts: list[str] = [norm.kind]
    parts += ["1+w"] if norm.plus_one else []
    parts += ["without weight"] if norm.weight is None else []
    parts += ["with bias"] if norm.bias is not None else []
    parts += ["gated"] if norm.gate is not None else []
    return " ".join(parts)


def _norm_label(norm: NormFacts | None) -> str | None:
    return None if norm is None else norm_label(norm)


def _roles(observation: Observation) -> set[tuple[str, str]]:
    """What each parameter holds, those of several heads or experts once."""
    found = set()
    for name, role in observation.roles.items():
        if role.head is not None:
            name, role = fold_number(name, role.head, "{j}"), replace(role, head=0)
        if role.expert is not None:
            name, role = _NUMBER.sub("#", name), replace(role, expert=0)
        found.add((name, str(role)))
    return found


def _dense_label(dense: DenseFacts) -> str:
    bias = " with bias" if dense.linear.bias is not None else ""
    return f"dense{bias}, {dense.activation}, {norm_label(dense.norm)}"


def _gate_label(gate: GateFacts | None) -> str | None:
    if gate is None:
        return None
    bias = " with bias" if gate.spec.bias else ""
    bias += " and a bias per head" if gate.spec.head_bias else ""
    bias += ", beside queries" if gate.beside_queries else ""
    return f"{gate.activation}, {gate.width}{bias}"


def layer_facts(facts: LayerFacts) -> dict[str, Label]:
    """Structure and numbers of one layer, the window left out."""
    attention, block = facts.attention, facts.block
    numbers = {
        "attention.num_attention_heads": attention.heads,
        "attention.num_key_value_heads": attention.kv_heads,
        "attention.head_dim": attention.head_dim,
        "attention.value_dim": attention.value_dim,
        "attention.value_factor": _short(attention.value_scale),
        "attention.latent_widths": None if attention.mla is None else latent_widths(attention.mla),
        "attention.latent_factors": _latent_factors(attention.mla),
        **_index_numbers(attention),
        "attention.scale": _short(attention.scale),
        "attention.softcap": _short(attention.softcap),
        "attention.qkv_clip": _short(attention.clip),
        "block.attention_coefficient": _short(block.attention_coefficient),
        "block.mlp_coefficient": _short(block.mlp_coefficient),
        "block.attention_residual": _short(block.attention_residual),
        "block.mlp_residual": _short(block.mlp_residual),
        "norm.eps": str([_short(n.eps) for n in block.norms.values()]),
        "position.rope": _rope_numbers(attention),
    }
    if facts.moe is None:
        feed = _mlp_numbers(facts.mlp, "mlp")
    else:
        feed = {
            **_mlp_structure(facts.mlp, "moe.expert"),
            **_moe_structure(facts),
            **_moe_numbers(facts),
        }
    return {**_layer_structure(facts), **numbers, **feed}


def _layer_structure(facts: LayerFacts) -> dict[str, Label]:
    attention, mlp, block = facts.attention, facts.mlp, facts.block
    norms = {
        place.removesuffix("_norm"): norm_name(facts.layer, norm)
        for place, norm in block.norms.items()
    }
    gates = {
        place.removesuffix("_norm"): "" if norm.gate is None else " gated"
        for place, norm in block.norms.items()
    }
    qk_norm = None
    if attention.norms is not None:
        qk_norm = f"{norm_label(attention.norms[0])}, {attention.scope}, {attention.when}"
    return {
        "attention.q_bias": attention.query.linear.bias is not None,
        "attention.k_bias": attention.key.linear.bias is not None,
        "attention.v_bias": attention.value.linear.bias is not None,
        "attention.o_bias": attention.output.bias is not None,
        "attention.qk_norm": qk_norm,
        "attention.latents": None if attention.mla is None else latent_label(attention.mla),
        "attention.indexer": _indexer_label(attention),
        "attention.softcap": _presence(attention.softcap is not None),
        "attention.sinks": _presence(attention.sinks is not None),
        "attention.qkv_clip": _presence(attention.clip is not None),
        "attention.value_width": _presence(attention.value_dim is not None),
        "attention.value_scale": _presence(attention.value_scale is not None),
        "attention.chunked": attention.chunked,
        "attention.query_factor": None
        if attention.query_factor is None
        else attention.query_factor.form,
        "attention.clips_normed": attention.query.clips_normed,
        "attention.output_gate": _gate_label(attention.gate),
        "attention.output_norm": _norm_label(attention.output_norm),
        "position.style": None if attention.rope is None else attention.rope.style,
        "position.direction": _direction(attention),
        "position.score_bias": attention.score_bias,
        "position.alibi": None if attention.alibi is None else str(attention.alibi.scaled),
        "norm.kind": ", ".join(dict.fromkeys(norm_label(n) for n in block.norms.values())),
        "block.norms": ", ".join(f"{place} {name}{gates[place]}" for place, name in norms.items()),
        "block.parallel": block.parallel,
        "block.residual": "normed" if block.residual_after_norm else "plain",
        "block.attention_coefficient": _presence(not is_one(block.attention_coefficient)),
        "block.mlp_coefficient": _presence(not is_one(block.mlp_coefficient)),
        "block.attention_residual": _presence(not is_one(block.attention_residual)),
        "block.mlp_residual": _presence(not is_one(block.mlp_residual)),
        "mlp.form": "experts" if facts.moe is not None else "dense",
        **(_mlp_structure(mlp, "mlp") if facts.moe is None else {}),
    }


def _mlp_structure(mlp: MlpFacts, prefix: str) -> dict[str, Label]:
    return {
        f"{prefix}.kind": mlp.kind,
        f"{prefix}.activation": mlp.activation,
        f"{prefix}.down_norm": _norm_label(mlp.down_norm),
        f"{prefix}.constants": ", ".join(f"{n} {value:g}" for n, value in mlp.constants) or None,
        f"{prefix}.gate_bias": mlp.gate is not None and mlp.gate.bias is not None,
        f"{prefix}.up_bias": mlp.up.bias is not None,
        f"{prefix}.down_bias": mlp.down.bias is not None,
        f"{prefix}.clamp": _presence(mlp.clamp is not None),
        f"{prefix}.swish_beta": _presence(mlp.swish_beta != 1.0),
        f"{prefix}.up_offset": _presence(mlp.up_offset != 0.0),
    }


def _mlp_numbers(mlp: MlpFacts, prefix: str) -> dict[str, Label]:
    return {
        f"{prefix}.intermediate_size": mlp.intermediate_size,
        f"{prefix}.bound": _short(mlp.clamp),
        f"{prefix}.beta": _short(mlp.swish_beta),
        f"{prefix}.offset": _short(mlp.up_offset),
    }


def _moe_structure(facts: LayerFacts) -> dict[str, Label]:
    """How tokens go to experts, without numbers."""
    moe = facts.moe
    assert moe is not None
    routing = moe.routing
    shared = {} if facts.shared is None else _mlp_structure(facts.shared, "moe.shared")
    return {
        "moe.scores": routing.scores,
        "moe.renormalised": routing.renormalised,
        "moe.logit_bias": bool(moe.parts.router.bias),
        "moe.selection_bias": routing.biased,
        "moe.groups": routing.group_score if routing.num_groups > 1 else None,
        "moe.group_fill": routing.group_fill if routing.num_groups > 1 else None,
        "moe.epsilon": _presence(routing.epsilon != 0.0),
        "moe.floor": _presence(routing.floor != 0.0),
        "moe.scaling": _presence(not is_one(routing.scaling)),
        "moe.softcap": _presence(routing.softcap is not None),
        "moe.weight_on": moe.weight_on,
        "moe.shared": None if facts.shared is None else moe.join,
        **shared,
    }


def _moe_numbers(facts: LayerFacts) -> dict[str, Label]:
    moe = facts.moe
    assert moe is not None
    routing = moe.routing
    shared: dict[str, Label] = {"moe.shared.intermediate_size": None}
    if facts.shared is not None:
        shared = _mlp_numbers(facts.shared, "moe.shared")
    return {
        "moe.num_experts": moe.experts,
        "moe.top_k": routing.top_k,
        "moe.num_groups": f"{routing.top_groups} of {routing.num_groups}",
        "moe.scale": _short(routing.scaling),
        "moe.least_sum": _short(routing.floor),
        "moe.cap": _short(routing.softcap),
        "moe.added": _short(routing.epsilon),
        **_mlp_numbers(facts.mlp, "moe.expert"),
        **shared,
    }


def latent_label(mla: MlaFacts) -> str:
    """The latents, their norms and biases in words."""
    linears = {"q_a": mla.q_a, "kv_a": mla.kv_a}
    biased = [name for name, linear in linears.items() if linear is not None and linear.bias]
    query = "" if mla.q_norm is None else f"of queries ({norm_label(mla.q_norm)}) and "
    query += "before that norm too, " if mla.raw_latent else ""
    factors = {"queries": mla.q_factor, "keys and values": mla.kv_factor}
    scaled = [name for name, factor in factors.items() if not is_one(factor)]
    parts = [f"{query}of keys and values ({norm_label(mla.kv_norm)})"]
    parts += [f"scaled: {', '.join(scaled)}"] if scaled else []
    parts += [] if mla.rope_norm is None else [f"shared key normed ({norm_label(mla.rope_norm)})"]
    return ", ".join([*parts, f"biases: {biased or 'none'}"])


def _indexer_label(attention: AttentionFacts) -> str | None:
    """How keys are chosen by the tokens, if they are."""
    blocks = attention.block_indexer
    if blocks is not None:
        return f"blocks, {blocks.style}, {norm_label(blocks.key_norm.facts)}"
    if attention.indexer is None:
        return None if attention.choice is None else "an earlier layer's choice"
    return f"{attention.indexer.style}, {norm_label(attention.indexer.norm.facts)}"


def _index_numbers(attention: AttentionFacts) -> dict[str, Label]:
    """Those of a layer that chooses keys; the others have none to compare."""
    indexer, blocks = attention.indexer, attention.block_indexer
    if blocks is not None:
        chosen = f"{blocks.top_k} blocks of {blocks.block_size}, {blocks.local_blocks} the own"
        label = f"{blocks.heads} heads of {blocks.width}, {chosen}"
    elif indexer is not None:
        label = f"{indexer.heads} heads of {indexer.width}, {indexer.top_k} keys"
    else:
        return {}
    return {"attention.index_widths": label}


def _latent_factors(mla: MlaFacts | None) -> str | None:
    return None if mla is None else f"{_short(mla.q_factor)} and {_short(mla.kv_factor)}"


def latent_widths(mla: MlaFacts) -> str:
    """Every width that latents have."""
    return f"{mla.ranks}, {mla.nope} + {mla.rope}, {mla.value}"


def _rope_numbers(attention: AttentionFacts) -> str | None:
    rope = attention.rope
    if rope is None:
        return None
    return f"{rope.dim} dimensions, slowest {rope.frequencies[-1]:.3g}"


def _direction(attention: AttentionFacts) -> str | None:
    if attention.rope is None:
        return None
    return "inverse" if attention.rope.inverse else "usual"


def _presence(seen: bool) -> str:
    return "present" if seen else "none"


def _short(value: float | None) -> str | None:
    return None if value is None else f"{value:.4g}"
