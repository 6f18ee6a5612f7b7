"""Traces one tiny model and reads every axis of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.infer.attention import AttentionFacts, read_attention
from trtllm_scaffold.infer.block import BlockFacts, read_block
from trtllm_scaffold.infer.embedding import EmbeddingFacts, read_embedding
from trtllm_scaffold.infer.graph import Graph, record
from trtllm_scaffold.infer.head import HeadFacts, read_head
from trtllm_scaffold.infer.layers import Layer, find_layers
from trtllm_scaffold.infer.mlp import MlpFacts, read_mlp
from trtllm_scaffold.infer.norm import NormReader
from trtllm_scaffold.infer.roles import RoleLayout, check_all_used, layer_roles, model_roles
from trtllm_scaffold.infer.tiny import build, token_ids


@dataclass(frozen=True, eq=False)
class LayerFacts:
    """What was observed of one layer."""

    layer: Layer
    attention: AttentionFacts
    mlp: MlpFacts
    block: BlockFacts
    roles: dict[str, RoleLayout] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
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


def observe(raw: Mapping[str, Any], config_class: type, model_class: type, seed: int) -> Observation:
    """Build, randomise and trace one tiny model, and read it.

    Args:
        raw: A tiny configuration.
        config_class: HF's configuration class.
        model_class: HF's causal language model class.
        seed: Of parameters and tokens.

    Raises:
        Refused: A part of the model has no label; names the axis.
        InputError: The classes do not build or run with this configuration.
    """
    model = build(dict(raw), config_class, model_class, seed=seed)
    try:
        graph = record(model, token_ids(model, seed))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as err:
        lines = str(err).strip().splitlines() or [type(err).__name__]
        raise InputError(
            f"{model_class.__name__} does not run on a tiny instance: {lines[0][:200]}"
        ) from err
    return read(graph)


def read(graph: Graph) -> Observation:
    """Read every axis of a traced forward.

    Raises:
        Refused: A part of the model has no label; names the axis.
    """
    norms = NormReader(graph)
    name, layers = find_layers(graph, norms)
    facts = tuple(_read_layer(layer) for layer in layers)
    embedding = read_embedding(graph, norms, layers[0].input)
    head = read_head(graph, norms, layers[-1].output)
    roles = {f"{name}.{{i}}.{key}": role for key, role in facts[0].roles.items()}
    for other in facts[1:]:
        if other.roles != facts[0].roles:
            raise Refused(
                "checkpoint", "layers store different parameters", where=other.layer.name
            )
    roles.update(model_roles(graph, embedding, head))
    used = {key.replace("{i}", str(i)) for key in roles for i in range(len(layers))}
    check_all_used(graph, name, used)
    return Observation(graph.model.config, graph, name, facts, embedding, head, roles)


def _read_layer(layer: Layer) -> LayerFacts:
    attention = read_attention(layer)
    block = read_block(layer, attention.input, attention.output)
    mlp = read_mlp(layer, block.down)
    return LayerFacts(layer, attention, mlp, block, layer_roles(layer, attention, mlp, block))
