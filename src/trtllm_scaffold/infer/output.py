"""Reads the way from the heads' outputs to the attention's last projection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch.nn import functional

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear, moved_from, strip
from trtllm_scaffold.infer.graph import ReplayError, Value
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.norm import NormFacts
from trtllm_scaffold.spec import GateSpec

#: Each activation of a gate and its formula.
_GATES: dict[Literal["sigmoid", "softplus"], Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softplus": functional.softplus,
}
_TOLERANCE = 1e-4

#: What a gate may be computed from: the attention's input, or the projection of queries.
_Origins = tuple[Value, Linear | None]


@dataclass(frozen=True, eq=False, repr=False)
class GateFacts:
    """A gate on the heads' outputs.

    Attributes:
        activation, width: See `GateSpec`.
        linear: What it is computed by.
        columns: [heads, head_dim or 1] columns of it.
        head_bias: Name of the parameter [heads] whose entries are added to each head's columns.
        beside_queries: Its linear is that of queries, which reads their latent.
    """

    activation: Literal["sigmoid", "softplus"]
    width: Literal["full", "head"]
    linear: Linear
    columns: torch.Tensor
    head_bias: str | None = None
    beside_queries: bool = False

    @property
    def spec(self) -> GateSpec:
        """What the spec says of it."""
        bias = self.linear.bias is not None
        own = self.head_bias is not None
        return GateSpec(self.activation, self.width, bias, own, self.beside_queries)


@dataclass(frozen=True, eq=False, repr=False)
class OutputFacts:
    """What was observed behind the heads.

    Attributes:
        linear: The last projection.
        norm: The norm over all heads before it, or None.
        gate: The gate before it, or None.
        sinks: Name of the parameter whose sigmoid(logsumexp(scores) - sink) is a factor.
    """

    linear: Linear
    norm: NormFacts | None = None
    gate: GateFacts | None = None
    sinks: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class _Step:
    """A norm, or a product with a factor, between `source` and `target`."""

    source: Value
    target: Value
    norm: NormFacts | None = None
    factor: Value | None = None


def read_output(
    layer: Layer, heads: int, attention_input: Value, query: Linear | None = None
) -> OutputFacts:
    """Read what happens to the heads' outputs.

    Args:
        layer: The layer.
        heads: Query heads.
        attention_input: What q, k and v are projected from.
        query: The projection of queries from a latent, beside which a gate may lie.

    Raises:
        Refused: Something between the heads and one last projection has no label.
    """
    context = layer.context.outputs[0]
    found = [lin for lin in layer.linears.values() if _holds(layer, lin.input, context)]
    if len(found) != 1:
        raise _refused(layer, f"its heads' outputs go into {len(found)} projections")
    steps = _steps(layer, found[0].input, context)
    facts = OutputFacts(found[0])
    batch, sequence = layer.graph.tokens.shape
    places = torch.arange(context.data.numel(), dtype=torch.float32).reshape(context.shape)
    beside = places.unflatten(0, (batch, heads)).transpose(1, 2).reshape(batch, sequence, -1)
    current = context
    for step in steps:
        places = _moved(layer, places, current, step.source)
        current = step.target
        if step.norm is not None:
            if places.shape[-1] != beside.shape[-1] or not _same_order(places, beside):
                raise _refused(layer, "a norm does not span all heads side by side")
            facts = replace(facts, norm=step.norm)
        elif step.factor is not None:
            factor = _by_head(layer, step.factor, places, heads)
            facts = _with_factor(layer, facts, step.factor, factor, (attention_input, query))
    if not _same_order(_moved(layer, places, current, found[0].input), beside):
        raise _refused(layer, "the output projection does not see the heads side by side")
    return facts


def _holds(layer: Layer, value: Value, context: Value) -> bool:
    """Whether `value` is made from the heads' outputs without another linear layer."""
    stop = [layer.input, *layer.linears]
    return value not in layer.linears and context in set(layer.graph.ancestors(value, stop))


def _steps(layer: Layer, value: Value, context: Value) -> list[_Step]:
    """Norms and factors on the way, the first one first."""
    steps: list[_Step] = []
    while value is not context:
        norm, parent = layer.norms.at(value), moved_from(value)
        if norm is not None:
            steps.append(_Step(norm.input, value, norm=norm.facts))
        elif value.node is not None and value.node.name == "mul":
            steps.append(_product(layer, value, context))
        elif parent is None:
            name = "a hidden change" if value.node is None else value.node.name
            raise _refused(layer, f"{name} stands between its heads and its last projection")
        value = parent if norm is None and parent is not None else steps[-1].source
    return steps[::-1]


def _product(layer: Layer, value: Value, context: Value) -> _Step:
    assert value.node is not None
    operands = [v for v in value.node.args if isinstance(v, Value)]
    main = [v for v in operands if _holds(layer, v, context)]
    if len(operands) != 2 or len(main) != 1 or main[0].shape != value.shape:
        raise _refused(layer, "its heads' outputs are multiplied by a constant or by themselves")
    other = operands[1] if operands[0] is main[0] else operands[0]
    return _Step(main[0], value, factor=other)


def _moved(layer: Layer, places: torch.Tensor, source: Value, target: Value) -> torch.Tensor:
    """The entries of `places`, rearranged as the forward does."""
    try:
        return layer.graph.replay(layer.graph.path([source], target), {source: places}, target)
    except ReplayError as err:
        raise _refused(layer, "an in-place change cannot be followed") from err


def _same_order(places: torch.Tensor, beside: torch.Tensor) -> bool:
    return places.numel() == beside.numel() and torch.equal(places.flatten(), beside.flatten())


def _by_head(layer: Layer, factor: Value, places: torch.Tensor, heads: int) -> torch.Tensor:
    """[batch, heads, sequence, head_dim]: the factor on each entry of the heads' outputs."""
    context = layer.context.outputs[0]
    spread = torch.empty(context.data.numel())
    spread[places.flatten().long()] = factor.data.expand(places.shape).flatten()
    return spread.reshape(-1, heads, *context.shape[1:])


def _with_factor(
    layer: Layer, facts: OutputFacts, value: Value, factor: torch.Tensor, origins: _Origins
) -> OutputFacts:
    """Label one factor. Sinks come first: they are part of the softmax."""
    first = facts.norm is None and facts.gate is None and facts.sinks is None
    if first and (sinks := _sinks(layer, value, factor)) is not None:
        return replace(facts, sinks=sinks)
    gate = _gate(layer, value, factor, origins)
    if gate is None or facts.gate is not None or facts.norm is not None:
        raise _refused(layer, "a factor on its heads' outputs is neither sinks nor one gate")
    return replace(facts, gate=gate)


def _sinks(layer: Layer, value: Value, factor: torch.Tensor) -> str | None:
    """The parameter p for which the factor is sigmoid(logsumexp(scores) - p), by head."""
    scores = layer.softmax.args[0].data
    if scores.shape[:3] != factor.shape[:3]:
        return None
    total = torch.logsumexp(scores, -1)
    for parent in layer.graph.ancestors(value, [layer.input, *layer.linears]):
        if parent in layer.graph.parameters and parent.data.numel() == factor.shape[1]:
            guess = torch.sigmoid(total - parent.data.detach().reshape(1, -1, 1))[..., None]
            if torch.allclose(factor, guess.expand_as(factor), atol=_TOLERANCE):
                return layer.graph.names[parent][0]
    return None


def _gate(layer: Layer, value: Value, factor: torch.Tensor, origins: _Origins) -> GateFacts | None:
    """The linear layer and activation that yield the factor, each entry from one column."""
    stop = [layer.input, *layer.linears]
    sources = list(layer.graph.ancestors(value, stop))
    made_from = [v for v in sources if v in layer.linears]
    added = [v for v in sources if v in layer.graph.parameters]
    if len(made_from) != 1 or len(added) > 1:
        return None
    linear = layer.linears[made_from[0]]
    attention_input, query = origins
    if strip(linear.input) is not attention_input and linear is not query:
        return None
    heads = factor.shape[1]
    bias = torch.zeros(heads)
    if added:
        if linear.bias is not None or added[0].data.numel() != heads:
            return None
        bias = added[0].data.detach().flatten()
    for name, formula in _GATES.items():
        columns = _columns(formula, linear, bias, factor)
        if columns is None:
            continue
        width: Literal["full", "head"] = "head" if columns.shape[1] == 1 else "full"
        own = layer.graph.names[added[0]][0] if added else None
        beside = linear is query
        if own and (width == "head" or beside):
            return None
        return GateFacts(name, width, linear, columns, own, beside)
    return None


def _columns(
    formula: Callable[[torch.Tensor], torch.Tensor],
    linear: Linear,
    bias: torch.Tensor,
    factor: torch.Tensor,
) -> torch.Tensor | None:
    """[heads, head_dim or 1]: the column of `linear` that yields each factor, or None.

    Args:
        formula: The activation.
        linear: What it is applied to.
        bias: [heads], added to the columns of each head.
        factor: [batch, heads, sequence, head_dim].
    """
    _, heads, _, width = factor.shape
    outputs = linear.output.data.reshape(-1, linear.rows)
    rows = []
    for head in range(heads):
        wanted = factor[:, head].reshape(-1, width)
        made = formula(outputs + bias[head])
        distance = (made[:, :, None] - wanted[:, None, :]).abs().amax(0)
        if bool((distance.amin(0) > _TOLERANCE).any()):
            return None
        rows.append(distance.argmin(0))
    columns = torch.stack(rows)
    if bool((columns == columns[:, :1]).all()):
        columns = columns[:, :1]
    return columns if len(columns.unique()) == columns.numel() else None


def _refused(layer: Layer, problem: str) -> Refused:
    return Refused(
        "attention",
        f"its output has no label: {problem}",
        where=layer.name,
        hint="sinks, one gate from the attention's input and one norm over all heads are expressed",
    )
