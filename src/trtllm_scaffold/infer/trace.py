"""Traces one tiny model and reads every axis of it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.attention import read_attention
from trtllm_scaffold.infer.attention_facts import AttentionFacts
from trtllm_scaffold.infer.block import BlockFacts, read_block
from trtllm_scaffold.infer.effective import one_line
from trtllm_scaffold.infer.embedding import EmbeddingFacts, read_embedding
from trtllm_scaffold.infer.graph import Graph
from trtllm_scaffold.infer.head import HeadFacts, read_head
from trtllm_scaffold.infer.layers import Layer, find_layers
from trtllm_scaffold.infer.mlp import MlpFacts, read_mlp
from trtllm_scaffold.infer.moe import MoeFacts, explains, read_moe
from trtllm_scaffold.infer.moe_roles import feed_forward_facts, moe_roles
from trtllm_scaffold.infer.norm import NormReader
from trtllm_scaffold.infer.record import record
from trtllm_scaffold.infer.roles import RoleLayout, check_all_used, layer_roles, model_roles
from trtllm_scaffold.infer.routed import Routed
from trtllm_scaffold.infer.signature import signature
from trtllm_scaffold.infer.tiny import build, token_ids
from trtllm_scaffold.threads import one_thread


@dataclass(frozen=True, eq=False, repr=False)
class LayerFacts:
    """What was observed of one layer.

    Attributes:
        layer: The layer.
        origin: The layer that was read: an earlier one where both ran the same operations.
        attention, mlp, block: Its axes, with the names of the origin. `mlp` is that of one expert
            in a layer of experts.
        moe: Its choice among experts, or None.
        shared: The feed-forward that every token of a layer of experts goes to, or None.
        roles: See `layer_roles`.
    """

    layer: Layer
    origin: Layer
    attention: AttentionFacts
    mlp: MlpFacts
    block: BlockFacts
    moe: MoeFacts | None = None
    shared: MlpFacts | None = None
    roles: dict[str, RoleLayout] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Observation:
    """What was observed of one tiny model.

    Attributes:
        config: Its configuration object.
        layers_name: Module name of the layer list.
        layers: In order.
        embedding, head: The model-wide axes.
        roles: What each parameter fills; ``{i}`` in a name stands for the layer.
    """

    config: Any
    graph: Graph
    layers_name: str
    layers: tuple[LayerFacts, ...]
    embedding: EmbeddingFacts
    head: HeadFacts
    roles: dict[str, RoleLayout]


def observe(
    raw: Mapping[str, Any], config_class: type, model_class: type, seed: int
) -> Observation:
    """Build, randomise and trace one tiny model, and read it.

    The written-out attention is read first. Where it has no label, the class's default one is
    tried: classes exist whose two ways differ (a bias added twice), and users run the default.

    Args:
        raw: A tiny configuration.
        config_class: HF's configuration class.
        model_class: HF's causal language model class.
        seed: Of parameters and tokens.

    Raises:
        Refused: A part of the model has no label; names the axis. Or the classes do not build
            or run at this size.
    """
    try:
        return _observe(raw, config_class, model_class, seed, eager=True)
    except Refused as refusal:
        if refusal.axis not in ("attention", "position"):
            raise
        try:
            return _observe(raw, config_class, model_class, seed, eager=False)
        except Refused:
            raise refusal from None


def _observe(
    raw: Mapping[str, Any], config_class: type, model_class: type, seed: int, *, eager: bool
) -> Observation:
    with one_thread():
        return _traced(raw, config_class, model_class, seed, eager=eager)


def _traced(
    raw: Mapping[str, Any], config_class: type, model_class: type, seed: int, *, eager: bool
) -> Observation:
    model, constants = build(dict(raw), config_class, model_class, seed=seed, eager=eager)
    try:
        graph = record(model, token_ids(model, seed), constants)
    except Exception as err:  # the model's own code raises whatever it likes
        raise Refused(
            "model",
            f"{model_class.__name__} does not run at a tiny size, so nothing can be observed: "
            f"{one_line(err)}",
        ) from err
    return read(graph)


def read(graph: Graph) -> Observation:
    """Read every axis of a traced forward.

    Raises:
        Refused: A part of the model has no label; names the axis.
    """
    norms = NormReader(graph)
    name, layers = find_layers(graph, norms)
    facts = _read_layers(layers)
    with _labelled("embedding", "the first layer's input"):
        embedding = read_embedding(graph, norms, layers[0].input)
    with _labelled("head", "the logits"):
        head = read_head(graph, norms, layers[-1].output)
    roles: dict[str, RoleLayout] = {}
    for layer in facts:
        for key, role in layer.roles.items():
            if roles.setdefault(f"{name}.{{i}}.{key}", role) != role:
                raise Refused("checkpoint", f"layers use {key} differently", where=layer.layer.name)
    used = {f"{f.layer.name}.{key}" for f in facts for key in f.roles}
    outside = model_roles(graph, embedding, head)
    check_all_used(graph, name, used | set(outside))
    roles.update(outside)
    return Observation(graph.model.config, graph, name, facts, embedding, head, roles)


def _read_layers(layers: list[Layer]) -> tuple[LayerFacts, ...]:
    """Read every layer, those that ran the same operations once."""
    known: dict[Hashable, LayerFacts] = {}
    chooser: Layer | None = None
    experts: list[MoeFacts] = []
    facts = []
    for layer in layers:
        moe = None
        if layer.routed is not None:
            with _labelled("moe", layer.routed.name):
                moe = _experts(layer.routed, experts)
        key = (signature(layer), None if moe is None else experts.index(moe))
        if key not in known:
            known[key] = _read_layer(layer, moe)
        found = known[key].attention
        if found.indexer is not None or found.block_indexer is not None:
            chooser = layer
        elif found.choice is not None and (
            chooser is None or found.choice.node not in chooser.nodes
        ):
            raise Refused(
                "attention",
                "keys are seen that neither the layer nor the last one to choose has chosen",
                where=layer.name,
            )
        facts.append(replace(known[key], layer=layer))
    return tuple(facts)


def _experts(routed: Routed, known: list[MoeFacts]) -> MoeFacts:
    """The formula of a layer's experts: a known one where that explains them, else a new one."""
    moe = next((facts for facts in known if explains(facts, routed)), None)
    if moe is None:
        moe = read_moe(routed)
        known.append(moe)
    return moe


def _read_layer(layer: Layer, moe: MoeFacts | None) -> LayerFacts:
    with _labelled("attention", layer.name):
        attention = read_attention(layer)
    with _labelled("block", layer.name):
        block = read_block(layer, attention.input, attention.output)
    if layer.routed is not None and moe is not None:
        with _labelled("moe", layer.routed.name):
            return _read_experts(layer, moe, attention, block)
    with _labelled("mlp", layer.name):
        mlp = read_mlp(layer, block.down)
    roles = layer_roles(layer, attention, mlp, block)
    return LayerFacts(layer, layer, attention, mlp, block, roles=roles)


def _read_experts(
    layer: Layer, moe: MoeFacts, attention: AttentionFacts, block: BlockFacts
) -> LayerFacts:
    if layer.routed is None or block.down is not layer.routed.linear:
        raise Refused("moe", "its experts are not the layer's feed-forward", where=layer.name)
    mlp = feed_forward_facts(layer, moe.parts.expert)
    shared = moe.parts.shared
    inside = None if shared is None else feed_forward_facts(layer, shared)
    beside = None if block.beside is None else read_mlp(layer, block.beside)
    if inside is not None and beside is not None:
        raise Refused("moe", "two feed-forwards stand beside the experts", where=layer.name)
    roles = {**layer_roles(layer, attention, beside, block), **moe_roles(layer, moe)}
    return LayerFacts(
        layer, layer, attention, mlp, block, moe=moe, shared=inside or beside, roles=roles
    )


@contextmanager
def _labelled(axis: str, where: str) -> Iterator[None]:
    """Turn what goes wrong on shapes that no rule foresaw into a refusal of the axis."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as err:
        raise Refused(axis, f"its structure has no label ({one_line(err)})", where=where) from err
