"""Reads the way from the last layer to the logits."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.activation import named, numbers
from trtllm_scaffold.infer.algebra import Linear, linear_at, scaled, strip
from trtllm_scaffold.infer.graph import Graph, ReplayError, Value
from trtllm_scaffold.infer.norm import NormFacts, NormReader

_HINT = (
    "a final norm, a dense layer with a norm of its own, a projection, a factor and a softcap "
    "around one linear head are expressed"
)


@dataclass(frozen=True, eq=False, repr=False)
class DenseFacts:
    """A dense layer before the head: norm(activation(linear(x)))."""

    linear: Linear
    activation: str
    norm: NormFacts


@dataclass(frozen=True, eq=False, repr=False)
class HeadFacts:
    """What was observed after the last layer.

    Attributes:
        linear: The head.
        final_norm: The norm before it, or None.
        projection: The bias-free linear layer before it, or None.
        multiplier, softcap: See `HeadSpec`.
        dense: The dense layer between the final norm and the head, or None.
    """

    linear: Linear
    final_norm: NormFacts | None
    projection: Linear | None
    multiplier: float
    softcap: float | None
    dense: DenseFacts | None = None


def read_head(graph: Graph, norms: NormReader, last_output: Value) -> HeadFacts:
    """Read what the logits are made of.

    Raises:
        Refused: Something on the way has no label.
    """
    value, factor, softcap = graph.result, 1.0, None
    while linear_at(value := strip(value), graph) is None:
        inner = scaled(value, graph)
        if inner is not None:
            value, factor = inner[0], factor * inner[1]
        elif value.node is not None and value.node.name == "tanh" and softcap is None:
            value, factor, softcap = value.node.args[0], 1.0, factor
        else:
            raise _refused(value)
    linear = linear_at(value, graph)
    assert linear is not None
    if softcap is not None:
        factor *= softcap
    norm, projection, dense = None, None, None
    value = linear.input
    while (value := strip(value)) is not strip(last_output):
        inner, before = scaled(value, graph), linear_at(value, graph)
        found = norms.at(value)
        if found is not None and norm is None:
            norm, value = found.facts, found.input
        elif inner is not None and linear.bias is None and norm is None:
            value, factor = inner[0], factor * inner[1]
        elif before is not None and projection is None and before.bias is None and norm is None:
            projection, value = before, before.input
        elif norm is not None and dense is None and projection is None:
            dense, norm = _dense(graph, norm, value), None
            value = dense.linear.input
        else:
            raise _refused(value)
    return HeadFacts(linear, norm, projection, factor, softcap, dense)


def _dense(graph: Graph, norm: NormFacts, value: Value) -> DenseFacts:
    """The dense layer and the activation that make `value`, which `norm` is applied to."""
    source: Value | None = value
    while source is not None and linear_at(source, graph) is None:
        operands = [] if source.node is None else [v for v in source.node.inputs if v.data.dim()]
        source = operands[0] if operands else None
    linear = None if source is None else linear_at(source, graph)
    if linear is None:
        raise _refused(value)
    x = numbers(linear.output.shape, 0)
    path = graph.path([linear.output], value)
    try:
        activation = named(x, graph.replay(path, {linear.output: x}, value).reshape(x.shape))
    except (ReplayError, RuntimeError):
        activation = None
    if activation is None:
        raise _refused(value)
    return DenseFacts(linear, activation, norm)


def _refused(value: Value) -> Refused:
    what = "an input" if value.node is None else (value.node.name or "a hidden change")
    return Refused("head", f"the logits hold an operation without a label: {what}", hint=_HINT)
