"""Turns what was observed of two tiny models into the spec of each axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.attention_facts import AttentionFacts
from trtllm_scaffold.infer.block_indexer import BlockIndexerFacts
from trtllm_scaffold.infer.builder import MEASURED, Builder
from trtllm_scaffold.infer.expressions import WITH_INTEGER
from trtllm_scaffold.infer.keys import SYNONYMS
from trtllm_scaffold.infer.kinds import Kind, Pattern
from trtllm_scaffold.infer.labels import is_one
from trtllm_scaffold.infer.layer_numbers import COEFFICIENTS, layer_factor
from trtllm_scaffold.infer.mla_specs import build_mla, head_width, latent_scale
from trtllm_scaffold.infer.moe_specs import FeedForwardBuilder
from trtllm_scaffold.infer.norm import NormFacts
from trtllm_scaffold.infer.query_factor import QueryFactorFacts
from trtllm_scaffold.infer.roles import norm_name
from trtllm_scaffold.infer.rotation import score_scale
from trtllm_scaffold.infer.trace import Observation
from trtllm_scaffold.spec import (
    AttentionSpec,
    BlockIndexerSpec,
    BlockSpec,
    DenseHead,
    EmbeddingSpec,
    HeadSpec,
    LayerKind,
    NormSpec,
    QKNormSpec,
    Quantity,
    QueryFactorSpec,
    RopeSpec,
)


@dataclass(frozen=True, repr=False)
class SpecBuilder(Builder):
    """Builds the spec of each axis."""

    def layer(
        self,
        kind: Kind,
        rope: RopeSpec | None,
        pattern: Pattern,
        window: Quantity | None,
        heads: Quantity | None = None,
    ) -> LayerKind:
        """The spec of the layers of one kind.

        Args:
            kind: The kind.
            rope: Its rotation.
            pattern: How numbers go with the layer.
            window: The window of the layers that have one, where a list holds each layer's.
            heads: The query heads, where a list holds each layer's.
        """
        own = self.of(kind)
        found = replace(self, picks=kind.window_picks)._window(window)
        block = replace(self, picks=kind.block_picks)._block(pattern.coefficients)
        windowed = replace(self, picks=kind.window_picks).first.attention
        spec = own._attention(pattern.scale_form, found, heads)
        attention = replace(spec, chunked=windowed.chunked)
        feed = FeedForwardBuilder(replace(self, picks=kind.mlp_picks))
        return LayerKind(attention, feed.mlp(), block, rope, kind.condition, feed.moe())

    def _window(self, listed: Quantity | None) -> Quantity | None:
        windows = tuple(self.at(o).attention.window for o in self.observations)
        seen = "none" if None in windows else f"{' and '.join(map(str, windows))} keys seen"
        self.witnesses.trace("attention.window", self.first.layer.name, seen)
        if all(w is None for w in windows):
            return None
        if any(w is None for w in windows):
            raise Refused("attention", f"a window was seen in one tiny model alone: {windows}")
        if listed is not None:
            self.witnesses.quantity("attention.window", self.first.layer.name, windows, listed)
            return listed
        return self.fit(
            "attention.window",
            lambda o: self.at(o).attention.window or 0,
            hints=("sliding_window", "attention_chunk_size"),
        )

    def _attention(
        self, scale_form: str, window: Quantity | None, heads: Quantity | None
    ) -> AttentionSpec:
        facts = self.first.attention
        fit, gate = self._layer_fit, facts.gate
        mla = None if facts.mla is None else build_mla(self, scale_form)
        spec = AttentionSpec(
            num_attention_heads=heads
            or fit("attention.num_attention_heads", lambda f: f.attention.heads),
            num_key_value_heads=self._key_value_heads(),
            head_dim=head_width(mla)
            if mla
            else fit("attention.head_dim", lambda f: f.attention.head_dim),
            q_bias=facts.query.linear.bias is not None,
            k_bias=facts.key.linear.bias is not None,
            v_bias=facts.value.linear.bias is not None,
            o_bias=facts.output.bias is not None,
            scale=latent_scale(mla) if mla else self._scale(scale_form),
            window=window,
            qk_norm=self._qk_norm(),
            softcap=self._optional("attention.softcap", lambda f: f.attention.softcap),
            sinks=facts.sinks is not None,
            qkv_clip=self._optional("attention.qkv_clip", lambda f: f.attention.clip),
            clips_normed=facts.query.clips_normed,
            query_factor=self._query_factor(),
            block_indexer=self._block_indexer(),
            output_gate=None if gate is None else gate.spec,
            output_norm=self.optional_norm(
                "attention.output_norm.eps", lambda o: self.at(o).attention.output_norm
            ),
            mla=mla,
            shares_choice=_shares_choice(facts),
            value_dim=self._value_dim(),
            value_scale=self._optional("attention.value_scale", lambda f: f.attention.value_scale),
        )
        self.witnesses.trace("attention.kind", self.first.layer.name, spec.kind)
        return spec

    def _key_value_heads(self) -> Quantity:
        """A number of its own, or a small multiple or share of the usual one."""
        usual = SYNONYMS["num_key_value_heads"]
        forms = [form.text.format(name) for form in WITH_INTEGER for name in usual]
        return self.fit(
            "attention.num_key_value_heads",
            lambda o: self.at(o).attention.kv_heads,
            hints=(*usual, *(form for form in forms if "+" not in form)),
        )

    def _scale(self, form: str) -> Quantity:
        """The softmax scale; `form` says how it goes with the layer, if it does."""

        def read(observation: Observation) -> float:
            layer = self.at(observation)
            seen = score_scale(observation.config, layer.attention)
            return seen / layer_factor(form, layer.layer.index)

        found = self.fit("attention.scale", read)
        expr = form.format(found.expr) if form else found.expr
        return Quantity(found.value, expr)

    def _value_dim(self) -> Quantity | None:
        if self.first.attention.value_dim is None:
            return None
        return self._layer_fit("attention.v_head_dim", lambda f: f.attention.value_dim or 0)

    def _query_factor(self) -> QueryFactorSpec | None:
        if self.first.attention.query_factor is None:
            return None

        def read(observation: Observation) -> QueryFactorFacts:
            found = self.at(observation).attention.query_factor
            assert found is not None
            return found

        scale = self.fit("attention.query_factor.scale", lambda o: read(o).scale, rtol=MEASURED)
        period = self.fit(
            "attention.query_factor.period", lambda o: read(o).period, hints=("floor_scale",)
        )
        return QueryFactorSpec(scale, period, self.first.attention.query_factor.form)

    def _block_indexer(self) -> BlockIndexerSpec | None:
        if self.first.attention.block_indexer is None:
            return None

        def read(observation: Observation) -> BlockIndexerFacts:
            found = self.at(observation).attention.block_indexer
            assert found is not None
            return found

        def fit(name: str, number: Callable[[BlockIndexerFacts], int]) -> Quantity:
            return self.fit(f"attention.{name}", lambda o: number(read(o)), hints=(name,))

        return BlockIndexerSpec(
            num_heads=fit("index_n_heads", lambda facts: facts.heads),
            head_dim=fit("index_head_dim", lambda facts: facts.width),
            block_size=fit("index_block_size", lambda facts: facts.block_size),
            top_k=fit("index_topk_blocks", lambda facts: facts.top_k),
            local_blocks=fit("index_local_blocks", lambda facts: facts.local_blocks),
            query_norm=self.norm("attention.index_q_norm.eps", lambda o: read(o).query_norm.facts),
            key_norm=self.norm("attention.index_k_norm.eps", lambda o: read(o).key_norm.facts),
            style=read(self.observations[0]).style,
        )

    def _qk_norm(self) -> QKNormSpec | None:
        facts = self.first.attention
        if facts.norms is None:
            return None

        def read(observation: Observation) -> NormFacts:
            norms = self.at(observation).attention.norms
            assert norms is not None
            return norms[0]

        return QKNormSpec(self.norm("attention.qk_norm.eps", read), facts.scope, facts.when)

    def _block(self, forms: Mapping[str, str]) -> BlockSpec:
        layer, block = self.first.layer, self.first.block
        places = {place: norm_name(layer, norm) for place, norm in block.norms.items()}
        named: dict[str, NormSpec] = {}
        for name in self._norm_order():
            place = next(place for place, held in places.items() if held == name)

            def read(observation: Observation, place: str = place) -> NormFacts:
                return self.at(observation).block.norms[place]

            named[name] = self.norm("norm.eps", read)
        spec = BlockSpec(
            parallel=block.parallel,
            norms=tuple(named.items()),
            residual_after_norm=block.residual_after_norm,
            **{name: self._coefficient(name, forms) for name in COEFFICIENTS},  # type: ignore[arg-type]
            **places,  # type: ignore[arg-type]
        )
        self.witnesses.trace("norm.placement", layer.name, spec.placement)
        return spec

    def _norm_order(self) -> list[str]:
        """Names of the layer's norms in the order of the HF module."""
        layer, block = self.first.origin, self.first.block
        names = {norm.name: norm_name(layer, norm) for norm in block.norms.values()}
        if len(set(names.values())) != len(names):
            raise Refused("norm", f"two norms share a name: {sorted(names)}", where=layer.name)
        modules = layer.graph.model.get_submodule(layer.name).named_modules(prefix=layer.name)
        return [names[name] for name, _ in modules if name in names]

    def _coefficient(self, which: str, forms: Mapping[str, str]) -> Quantity | None:
        fact = f"block.{which}"
        if fact in forms:
            first = tuple(getattr(o.layers[0].block, which) for o in self.observations)
            found = Quantity(first[0], forms[fact])
            self.witnesses.quantity(fact, self.observations[0].layers[0].layer.name, first, found)
            return found
        seen = [getattr(self.at(o).block, which) for o in self.observations]
        if all(is_one(value) for value in seen):
            return None
        return self._layer_fit(fact, lambda f: getattr(f.block, which))

    def embedding(self) -> EmbeddingSpec:
        """The spec of the token embedding."""
        facts = self.observations[0].embedding
        multiplier = None
        if not is_one(facts.multiplier):
            multiplier = self.fit("embedding.multiplier", lambda o: o.embedding.multiplier)
        hints = () if facts.projection is not None else ("hidden_size",)
        rows = None
        if facts.rows != self.observations[0].head.linear.rows:
            rows = self.fit("embedding.rows", lambda o: o.embedding.rows, hints=("vocab_size",))
        return EmbeddingSpec(
            dim=self.fit("embedding.dim", lambda o: o.embedding.dim, hints=hints),
            multiplier=multiplier,
            projection=facts.projection is not None,
            norm=self.optional_norm("embedding.norm.eps", lambda o: o.embedding.norm),
            rows=rows,
        )

    def head(self) -> HeadSpec:
        """The spec of the head."""
        facts, embedding = self.observations[0].head, self.observations[0].embedding
        final = None
        if facts.final_norm is not None:
            final = self.norm("head.final_norm.eps", _final_norm)
        multiplier = softcap = None
        if not is_one(facts.multiplier):
            multiplier = self.fit("head.multiplier", lambda o: o.head.multiplier)
        if facts.softcap is not None:
            softcap = self.fit("head.softcap", lambda o: o.head.softcap or 0.0)
        return HeadSpec(
            final_norm=final,
            tied=facts.linear.weight is embedding.weight,
            bias=facts.linear.bias is not None,
            multiplier=multiplier,
            softcap=softcap,
            projection=facts.projection is not None,
            dense=self._dense_head(),
        )

    def _dense_head(self) -> DenseHead | None:
        facts = self.observations[0].head.dense
        if facts is None:
            return None

        def read(observation: Observation) -> NormFacts:
            dense = observation.head.dense
            assert dense is not None
            return dense.norm

        norm = self.norm("head.dense.norm.eps", read)
        return DenseHead(facts.activation, norm, facts.linear.bias is not None)


def _shares_choice(facts: AttentionFacts) -> bool:
    """Whether a layer sees keys that an earlier one has chosen."""
    return facts.choice is not None and facts.indexer is None and facts.block_indexer is None


def _final_norm(observation: Observation) -> NormFacts:
    norm = observation.head.final_norm
    assert norm is not None
    return norm
