"""Reads the way from token ids to the first layer: embedding, multiplier, learned positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear, linear_at, strip, terms
from trtllm_scaffold.infer.graph import Graph, Value
from trtllm_scaffold.infer.norm import NormFacts, NormReader

_HINT = "token embeddings with a factor, a projection, positions and a norm are expressed"


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddingFacts:
    """What was observed before the first layer.

    Attributes:
        weight: The table's value.
        dim, rows: Its width and height.
        multiplier: Factor on the rows.
        projection: The linear layer after it, or None.
        position_weight: The table of learned positions, or None.
        position_offset: Row of position 0 in it.
        position_rows: Its height.
        norm: The norm on all of it, or None.
        sinusoidal: [batch, sequence, hidden_size] of a fixed table that is added, or None.
    """

    weight: Value
    dim: int
    rows: int
    multiplier: float
    projection: Linear | None
    position_weight: Value | None = None
    position_offset: int = 0
    position_rows: int = 0
    norm: NormFacts | None = None
    sinusoidal: torch.Tensor | None = None


def read_embedding(graph: Graph, norms: NormReader, first_input: Value) -> EmbeddingFacts:
    """Read what the first layer's input is made of.

    Raises:
        Refused: It is more than a token embedding and positions.
    """

    def is_atom(value: Value) -> bool:
        linear = linear_at(value, graph)
        return norms.at(value) is not None or (linear is not None and linear.output is value)

    token: tuple[Value, float, Linear | None] | None = None
    position: Value | None = None
    sinusoidal: Value | None = None
    whole, norm = first_input, None
    total = terms(whole, graph, is_atom)
    if len(total) == 1 and total[0][1] == 1.0 and (found := norms.at(total[0][0])) is not None:
        whole, norm = found.input, found.facts
        total = terms(whole, graph, is_atom)
    for value, factor in total:
        linear = linear_at(value, graph)
        source, inner = (value, 1.0)
        if linear is not None:
            parts = terms(linear.input, graph, is_atom)
            if len(parts) != 1 or linear.bias is not None:
                raise _refused("the embedding's projection has more than one input, or a bias")
            source, inner = parts[0]
        if _looks_up(source, graph) and token is None:
            token = (source, factor * inner, linear)
        elif graph.tokens in set(graph.ancestors(source)) or factor * inner != 1.0:
            raise _refused(f"an operation without a label: {_op(source)}")
        elif _table(source) in graph.parameters and position is None:
            position = source
        elif any(v in graph.parameters for v in graph.ancestors(source)):
            raise _refused(f"a second table is added by {_op(source)}")
        elif sinusoidal is not None:
            raise _refused("two fixed tables are added")
        else:
            sinusoidal = value
    if token is None:
        raise _refused("no table is looked up by the token ids")
    table = _table(token[0])
    assert table is not None
    facts = EmbeddingFacts(
        weight=table,
        dim=table.shape[1],
        rows=table.shape[0],
        multiplier=token[1],
        projection=token[2],
        sinusoidal=None if sinusoidal is None else _rest(whole, total, sinusoidal),
        norm=norm,
    )
    return facts if position is None else _with_positions(facts, position)


def _rest(whole: Value, total: list[tuple[Value, float]], part: Value) -> torch.Tensor:
    """What `part` adds to a sum, in the shape of the sum."""
    rest = whole.data.double()
    for value, factor in total:
        if value is not part:
            rest = rest - factor * value.data.double()
    return rest


def _looks_up(value: Value, graph: Graph) -> bool:
    """Whether `value` is rows of a parameter at the token ids themselves."""
    node = value.node
    if node is None or node.name != "embedding" or strip(node.args[0]) not in graph.parameters:
        return False
    return strip(node.args[1]) is graph.tokens


def _table(value: Value) -> Value | None:
    """The table that `value` holds rows of."""
    node = value.node
    if node is None or node.name not in ("embedding", "index_select", "index"):
        return None
    return strip(node.args[0])


def _with_positions(facts: EmbeddingFacts, position: Value) -> EmbeddingFacts:
    table = _table(position)
    assert table is not None
    sequence = position.shape[-2]
    rows = position.data.reshape(-1, sequence, position.shape[-1])
    distance = (table.data[:, None] - rows[0, 0]).abs().amax((1, 2))
    offset = int(distance.argmin())
    expected = table.data[offset : offset + sequence]
    if expected.shape != rows[0].shape or not bool(torch.equal(rows, expected.expand_as(rows))):
        raise _refused("positions are not looked up in order")
    return EmbeddingFacts(
        **{
            **vars(facts),
            "position_weight": table,
            "position_offset": offset,
            "position_rows": table.shape[0],
        }
    )


def _op(value: Value) -> str:
    return "an input" if value.node is None else (value.node.name or "a hidden change")


def _refused(problem: str) -> Refused:
    return Refused("embedding", f"the first layer's input has no label: {problem}", hint=_HINT)
