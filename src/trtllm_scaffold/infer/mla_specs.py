"""Turns what was observed of latents into the spec of the attention axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.attention_facts import AttentionFacts
from trtllm_scaffold.infer.builder import Builder
from trtllm_scaffold.infer.indexer import IndexerFacts
from trtllm_scaffold.infer.keys import SYNONYMS
from trtllm_scaffold.infer.labels import is_one
from trtllm_scaffold.infer.mla import MlaFacts
from trtllm_scaffold.infer.norm import NormFacts
from trtllm_scaffold.infer.rope import yarn_magnitude
from trtllm_scaffold.infer.rotation import entries, explaining, score_scale
from trtllm_scaffold.infer.trace import Observation
from trtllm_scaffold.spec import IndexerSpec, MlaSpec, Quantity

_MEASURED = 1e-3


def build_mla(builder: Builder, scale_form: str) -> MlaSpec:
    """The spec of the latents.

    Args:
        builder: Of the kind.
        scale_form: How the softmax scale goes with the layer; nothing may.

    Raises:
        Refused: No key explains a width, or the softmax scale is another.
    """

    def read(observation: Observation) -> MlaFacts:
        found = builder.at(observation).attention.mla
        assert found is not None
        return found

    def width(name: str, which: str) -> Quantity:
        return builder.fit(
            f"attention.{name}", lambda o: _widths(read(o))[which], hints=SYNONYMS[name]
        )

    def q_norm(observation: Observation) -> NormFacts:
        found = read(observation).q_norm
        assert found is not None
        return found

    if scale_form:
        raise Refused("attention.scale", f"latent attention whose scale is {scale_form}")
    first = builder.first.attention
    has_query = read(builder.observations[0]).q_a is not None
    q_rank = width("q_lora_rank", "q_rank") if has_query else None
    kv_rank = width("kv_lora_rank", "kv_rank")
    return MlaSpec(
        q_lora_rank=q_rank,
        kv_lora_rank=kv_rank,
        qk_nope_head_dim=width("qk_nope_head_dim", "nope"),
        qk_rope_head_dim=width("qk_rope_head_dim", "rope"),
        v_head_dim=width("v_head_dim", "value"),
        q_norm=builder.norm("attention.q_norm.eps", q_norm) if has_query else None,
        kv_norm=builder.norm("attention.kv_norm.eps", lambda o: read(o).kv_norm),
        biases=_biases(first),
        magnitude=_magnitude(builder),
        indexer=None if first.choice is None else _indexer(builder),
        q_scale=_factor(builder, "q", q_rank, lambda o: read(o).q_factor),
        kv_scale=_factor(builder, "kv", kv_rank, lambda o: read(o).kv_factor),
        rope_norm=builder.optional_norm("attention.k_rope_norm.eps", lambda o: read(o).rope_norm),
        raw_latent=read(builder.observations[0]).raw_latent,
    )


def _factor(
    builder: Builder, which: str, rank: Quantity | None, read: Callable[[Observation], float]
) -> Quantity | None:
    """The factor on a normed latent, None for 1."""
    if rank is None or all(is_one(read(observation)) for observation in builder.observations):
        return None
    root = f"(config.hidden_size / {rank.expr}) ** 0.5"
    return builder.fit(f"attention.{which}_scale", read, hints=(root,))


def _indexer(builder: Builder) -> IndexerSpec:
    """The spec of the choice of keys, the same for layers that share another's.

    Raises:
        Refused: No key explains a number.
    """

    def read(observation: Observation) -> IndexerFacts:
        own = builder.at(observation), *observation.layers
        return next(f.attention.indexer for f in own if f.attention.indexer is not None)

    fit, style = builder.fit, read(builder.observations[0]).style
    hints = SYNONYMS["index_n_heads"], SYNONYMS["index_head_dim"]
    return IndexerSpec(
        num_heads=fit("attention.index_n_heads", lambda o: read(o).heads, hints=hints[0]),
        head_dim=fit("attention.index_head_dim", lambda o: read(o).width, hints=hints[1]),
        top_k=fit("attention.index_topk", lambda o: read(o).top_k, hints=("index_topk",)),
        key_norm=builder.norm("attention.index_k_norm.eps", lambda o: read(o).norm.facts),
        style=style,
    )


def latent_scale(mla: MlaSpec) -> Quantity:
    """The softmax scale: TensorRT-LLM's module computes it from the same numbers."""
    nope, rope = mla.qk_nope_head_dim, mla.qk_rope_head_dim
    root = f"({nope.expr} + {rope.expr}) ** -0.5"
    expr = root if mla.magnitude == 1.0 else f"{mla.magnitude!r} ** 2 * {root}"
    return Quantity(mla.magnitude**2 * (nope.value + rope.value) ** -0.5, expr)


def head_width(mla: MlaSpec) -> Quantity:
    """Both parts of a head."""
    nope, rope = mla.qk_nope_head_dim, mla.qk_rope_head_dim
    return Quantity(nope.value + rope.value, f"{nope.expr} + {rope.expr}")


def _widths(mla: MlaFacts) -> dict[str, int]:
    q_rank, kv_rank = mla.ranks
    parts = {"nope": mla.nope, "rope": mla.rope, "value": mla.value}
    return {"q_rank": q_rank, "kv_rank": kv_rank, **parts}


def _biases(facts: AttentionFacts) -> tuple[str, ...]:
    """Names of the projections that add a bias."""
    mla = facts.mla
    assert mla is not None
    linears = {
        "q_a": mla.q_a,
        "q" if mla.q_a is None else "q_b": facts.query.linear,
        "kv_a": mla.kv_a,
        "kv_b": facts.value.linear,
        "o": facts.output,
    }
    return tuple(name for name, linear in linears.items() if linear and linear.bias is not None)


def _settings(config: Any, facts: AttentionFacts) -> Mapping[str, Any]:
    assert facts.rope is not None
    name = next(explaining(config, facts.rope), None)
    return entries(config)[name] if name is not None else {}


def _said(settings: Mapping[str, Any]) -> float:
    """YaRN's magnitude for ``mscale_all_dim``, whatever the type of the scaling is called."""
    weight = settings.get("mscale_all_dim")
    if settings.get("rope_type", "default") == "default" or not weight:
        return 1.0
    return yarn_magnitude(float(settings.get("factor") or 1.0), float(weight))


def _magnitude(builder: Builder) -> float:
    """The magnitude in the softmax scale, which the rope settings must explain.

    Raises:
        Refused: The scale is neither plain nor that of the settings.
    """
    for observation in builder.observations:
        facts = builder.at(observation).attention
        seen = score_scale(observation.config, facts)
        wanted = _said(_settings(observation.config, facts)) ** 2 * facts.head_dim**-0.5
        if abs(seen - wanted) > _MEASURED * wanted:
            raise Refused(
                "attention.scale",
                f"scores are scaled by {seen:g} where the widths and the rope settings make "
                f"{wanted:g}",
                where=builder.first.layer.name,
                hint="TensorRT-LLM's module for latent attention computes the scale by itself",
            )
    rope = builder.first.attention.rope
    assert rope is not None
    name = next(explaining(builder.observations[0].config, rope), "")
    return _said(entries(builder.fitter.real_config).get(name, {}))
