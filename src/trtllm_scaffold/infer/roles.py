"""Tells which parameter of the module fills which role, and how it lies in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear
from trtllm_scaffold.infer.attention_facts import AttentionFacts
from trtllm_scaffold.infer.block import BlockFacts
from trtllm_scaffold.infer.embedding import EmbeddingFacts
from trtllm_scaffold.infer.graph import Graph
from trtllm_scaffold.infer.head import HeadFacts
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.mlp import MlpFacts
from trtllm_scaffold.infer.norm import NormFacts
from trtllm_scaffold.spec.checkpoint import Layout


@dataclass(frozen=True)
class RoleLayout:
    """What one parameter holds; see `TensorSpec` for the meaning of the first fields.

    Attributes:
        head: The head whose own tensor it is, or None.
        expert: The expert whose own tensor it is, or None.
        dropped: Why no port needs it; it has no roles then.
    """

    roles: tuple[str, ...]
    layout: Layout = "whole"
    transposed: bool = False
    per_layer: bool = True
    blocks: int = 0
    head: int | None = None
    experts: Literal["one", "stacked", "flat"] = "one"
    expert: int | None = None
    dropped: str = ""


#: One part of a linear layer: its role without ``.weight``, and [heads, width] output columns.
_Part = tuple[str, torch.Tensor]


def layer_roles(
    layer: Layer, attention: AttentionFacts, mlp: MlpFacts | None, block: BlockFacts
) -> dict[str, RoleLayout]:
    """Roles of one layer's parameters, by names relative to the layer.

    `mlp` is the dense feed-forward, or the one beside experts, whose roles are of `moe.shared`.

    Raises:
        Refused: A projection mixes its parts in a way without a label.
    """
    table: dict[str, RoleLayout] = {}
    parts = _attention_parts(attention)
    if mlp is not None:
        _add_mlp(parts, mlp, "mlp" if layer.routed is None else "moe.shared")
    for linear, held in parts.items():
        _put_linear(table, layer, linear, held)
    for facts in block.norms.values():
        _put_norm(table, facts, f"norm.{norm_name(layer, facts)}")
    if mlp is not None:
        _put_mlp(table, mlp)
    _put_attention(table, attention)
    prefix = f"{layer.name}."
    foreign = [name for name in table if not name.startswith(prefix)]
    if foreign:
        raise Refused(
            "checkpoint",
            f"{foreign[0]} is used inside a layer but stored outside",
            where=layer.name,
        )
    return {name.removeprefix(prefix): role for name, role in table.items()}


def _attention_parts(attention: AttentionFacts) -> dict[Linear, list[_Part]]:
    """What the rows of attention's projections are."""
    parts: dict[Linear, list[_Part]] = {}
    mla = attention.mla
    names = ("q", "k", "v") if mla is None else ("q" if mla.q_a is None else "q_b", "k_b", "v_b")
    columns = attention.query.columns, attention.key_columns, attention.value_columns
    chains = attention.query, attention.key, attention.value
    for name, chain, column in zip(names, chains, columns, strict=True):
        parts.setdefault(chain.linear, []).append((f"attention.{name}", column.sort(1).values))
    if mla is not None and mla.q_a is not None:
        parts.setdefault(mla.q_a, []).append(("attention.q_a", mla.q_a_columns[None]))
    if mla is not None:
        held = parts.setdefault(mla.kv_a, [])
        held.append(("attention.kv_a", mla.latent_columns[None]))
        held.append(("attention.k_rope", mla.rope_columns[None]))
    if attention.indexer is not None:
        _add(parts, "attention.index_q", attention.indexer.query)
        _add(parts, "attention.index_k", attention.indexer.key)
        _add(parts, "attention.index_weights", attention.indexer.weights)
    if attention.block_indexer is not None:
        _add(parts, "attention.index_q", attention.block_indexer.query)
        _add(parts, "attention.index_k", attention.block_indexer.key)
    _add(parts, "attention.o", attention.output)
    if attention.gate is not None:
        parts.setdefault(attention.gate.linear, []).append(
            ("attention.gate", attention.gate.columns.sort(1).values)
        )
    return parts


def _put_attention(table: dict[str, RoleLayout], attention: AttentionFacts) -> None:
    """What attention stores beside its projections."""
    norms = {"attention.output_norm": attention.output_norm}
    if attention.mla is not None:
        norms["attention.kv_a_norm"] = attention.mla.kv_norm
        norms["attention.q_a_norm"] = attention.mla.q_norm
        norms["attention.k_rope_norm"] = attention.mla.rope_norm
    if attention.indexer is not None:
        norms["attention.index_k_norm"] = attention.indexer.norm.facts
    if attention.block_indexer is not None:
        norms["attention.index_q_norm"] = attention.block_indexer.query_norm.facts
        norms["attention.index_k_norm"] = attention.block_indexer.key_norm.facts
    for which, facts in zip("qk", attention.norms or (), strict=False):
        norms[f"attention.{which}_norm"] = facts
    for role, found in norms.items():
        if found is not None:
            _put_norm(table, found, role)
    if attention.sinks is not None:
        table[attention.sinks] = RoleLayout(("attention.sinks",))
    if attention.gate is not None and attention.gate.head_bias is not None:
        table[attention.gate.head_bias] = RoleLayout(("attention.gate_bias",))


def model_roles(graph: Graph, embedding: EmbeddingFacts, head: HeadFacts) -> dict[str, RoleLayout]:
    """Roles of the parameters outside the layers, by full names.

    A head that shares the embedding's tensor has an entry of its own under its own name.
    """
    table: dict[str, RoleLayout] = {}

    def put(name: str, role: str, transposed: bool = False) -> None:
        table[name] = RoleLayout((role,), transposed=transposed, per_layer=False)

    names = graph.names[embedding.weight]
    put(names[0], "embedding.weight")
    head_names = names[1:] if head.linear.weight is embedding.weight else head.linear.names
    for name in head_names:
        put(name, "head.weight", head.linear.transposed)
    if head.linear.bias is not None:
        put(head.linear.bias, "head.bias")
    for role, linear in (("embedding", embedding.projection), ("head", head.projection)):
        if linear is not None:
            put(linear.names[0], f"{role}.projection.weight", linear.transposed)
    if embedding.position_weight is not None:
        put(graph.names[embedding.position_weight][0], "position.weight")
    if head.dense is not None:
        dense = head.dense.linear
        put(dense.names[0], "head.dense.weight", dense.transposed)
        if dense.bias is not None:
            put(dense.bias, "head.dense.bias")
    norms = {
        "embedding.norm": embedding.norm,
        "head.norm": None if head.dense is None else head.dense.norm,
        "final_norm": head.final_norm,
    }
    for role, facts in norms.items():
        if facts is not None:
            _put_norm(table, facts, role, per_layer=False)
    return table


def norm_name(layer: Layer, facts: NormFacts) -> str:
    """The attribute that holds a norm of the layer, a checked identifier."""
    name = facts.name.removeprefix(f"{layer.name}.").rpartition(".")[2]
    if not name.isidentifier():
        raise Refused("norm", "a norm is no attribute of its layer", where=facts.name)
    return name


def check_all_used(graph: Graph, prefix: str, used: set[str]) -> None:
    """Refuse a model with parameters that no role explains.

    Args:
        graph: The forward.
        prefix: Name of the layer list.
        used: Names that have a role.
    """
    left = [
        names
        for value, names in graph.names.items()
        if value in graph.parameters and not used.intersection(names)
    ]
    if left:
        place = "a layer" if left[0][0].startswith(f"{prefix}.") else "the model"
        raise Refused(
            "checkpoint",
            f"{len(left)} parameters of {place} have no role",
            where=left[0][0],
            hint="decoders whose every parameter belongs to a known axis are expressed",
        )


def _add(parts: dict[Linear, list[_Part]], role: str, linear: Linear) -> None:
    parts.setdefault(linear, []).append((role, torch.arange(linear.rows)[None]))


def _add_mlp(parts: dict[Linear, list[_Part]], mlp: MlpFacts, prefix: str) -> None:
    if mlp.gate is not None and mlp.gate_columns is not None:
        parts.setdefault(mlp.gate, []).append((f"{prefix}.gate", mlp.gate_columns[None]))
    parts.setdefault(mlp.up, []).append((f"{prefix}.up", mlp.up_columns[None]))
    _add(parts, f"{prefix}.down", mlp.down)


def _put_linear(
    table: dict[str, RoleLayout], layer: Layer, linear: Linear, held: list[_Part]
) -> None:
    held = sorted(held, key=lambda part: int(part[1].min()))
    layout, blocks = _layout(held, linear.rows), 0
    if layout is None:
        blocks = _blocks([column for _, column in held], linear.rows)
        layout = "blocks" if blocks else None
    if layout is None:
        raise Refused(
            "checkpoint",
            f"the rows of {linear.names[0]} mix {', '.join(role for role, _ in held)} "
            "in an order without a label",
            where=layer.name,
            hint="parts one after another, in equal blocks, per head and per group are expressed",
        )
    weights = tuple(f"{role}.weight" for role, _ in held)
    table[linear.names[0]] = RoleLayout(weights, layout, linear.transposed, blocks=blocks)
    if linear.bias is not None:
        biases = tuple(f"{role}.bias" for role, _ in held)
        table[linear.bias] = RoleLayout(biases, layout, blocks=blocks)


def _layout(held: list[_Part], rows: int) -> Layout | None:
    columns = [column for _, column in held]
    if torch.equal(torch.cat([c.flatten() for c in columns]), torch.arange(rows)):
        return "whole" if len(held) == 1 else "rows"
    roles = {role for role, _ in held}
    if roles in ({"attention.k_b", "attention.v_b"}, {"attention.q_b", "attention.gate"}):
        by_head = torch.cat(columns, 1)
        return "per_head" if torch.equal(by_head.flatten(), torch.arange(rows)) else None
    if not roles <= {"attention.q", "attention.k", "attention.v"}:
        return None
    groups = min(len(column) for column in columns)  # heads of keys and values
    if any(len(column) % groups for column in columns):
        return None
    grouped = torch.cat([column.reshape(groups, -1) for column in columns], 1)
    if not torch.equal(grouped.flatten(), torch.arange(rows)):
        return None
    return "per_head" if all(len(column) == groups for column in columns) else "per_group"


def _blocks(columns: list[torch.Tensor], rows: int) -> int:
    """The least number of equal blocks that each hold a share of every part, or 0."""
    heads = min(column.shape[0] for column in columns)
    for count in range(2, heads + 1):
        if any(column.shape[0] % count for column in columns):
            continue
        mixed = torch.cat([column.reshape(count, -1) for column in columns], 1)
        if torch.equal(mixed.flatten(), torch.arange(rows)):
            return count
    return 0


def _put_mlp(table: dict[str, RoleLayout], mlp: MlpFacts) -> None:
    """What a feed-forward stores beside its projections."""
    if mlp.down_norm is not None:
        _put_norm(table, mlp.down_norm, "mlp.down_norm")
    for name, parameter in mlp.parameters:
        table[parameter] = RoleLayout((f"mlp.activation.{name}",))
    for buffer in mlp.buffers:
        table[buffer] = RoleLayout((), dropped="a constant of the activation")


def _put_norm(
    table: dict[str, RoleLayout], facts: NormFacts, role: str, *, per_layer: bool = True
) -> None:
    if facts.gate is not None:
        table[facts.gate.down] = RoleLayout((f"{role}.down.weight",), per_layer=per_layer)
        table[facts.gate.up] = RoleLayout((f"{role}.up.weight",), per_layer=per_layer)
        role = f"{role}.norm"
    for name, part in ((facts.weight, "weight"), (facts.bias, "bias")):
        if name is not None:
            table[name] = RoleLayout((f"{role}.{part}",), per_layer=per_layer)
    for head, name in enumerate(facts.by_head):
        table[name] = RoleLayout((f"{role}.weight",), head=head)
