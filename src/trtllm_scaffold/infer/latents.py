"""Reads what latents and the shared part of keys pass on the way from their projections."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear, scaled, strip
from trtllm_scaffold.infer.graph import ReplayError, Value
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.norm import NormFacts
from trtllm_scaffold.infer.segments import Chain, sources


@dataclass(frozen=True, eq=False, repr=False)
class Latent:
    """A latent: ``factor * norm(columns of projection)``.

    Attributes:
        value: The latent.
        with_raw: What reads it reads the columns before the norm as well, behind it.
    """

    value: Value
    projection: Linear
    columns: torch.Tensor
    norm: NormFacts
    factor: float
    with_raw: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class SharedPart:
    """The part of keys that all heads share, before its rotation.

    Attributes:
        output: The value that is rotated, [..., width].
        projection: What it is projected by.
        columns: [width]: the columns of the projection that it holds.
        norm: The norm that they pass, or None.
    """

    output: Value
    projection: Linear
    columns: torch.Tensor
    norm: NormFacts | None


def normed_latent(layer: Layer, source: Value, what: str) -> Latent:
    """The latent that `source` is.

    Raises:
        Refused: It is not one normed projection, multiplied by a constant at most.
    """
    value, factor = source, 1.0
    while layer.norms.at(value) is None and (inner := scaled(value, layer.graph)) is not None:
        value, factor = strip(inner[0]), factor * inner[1]
    call = layer.norms.at(value)
    if call is None:
        raise refused(layer, f"the {what} does not pass exactly one norm")
    if factor <= 0:
        raise refused(layer, f"the {what} is multiplied by {factor:g}")
    projection, columns = held_columns(layer, call.input, what)
    return Latent(source, projection, columns, call.facts, factor)


def query_latent(layer: Layer, query: Chain) -> Latent | None:
    """The query's latent; None where queries are projected from the attention's input."""
    source = strip(query.linear.input)
    stop = [layer.input, *layer.linears]
    made = any(parent in layer.linears for parent in layer.graph.ancestors(source, stop))
    if source is layer.input or not made:
        return None
    normed = _before_and_behind(layer, source)
    if normed is None:
        return normed_latent(layer, source, "query's latent")
    return replace(normed_latent(layer, normed, "query's latent"), with_raw=True)


def _before_and_behind(layer: Layer, value: Value) -> Value | None:
    """The norm's output, where `value` is that and the norm's input side by side, else None.

    Raises:
        Refused: It joins other values, or these in another order.
    """
    node = value.node
    if node is None or node.name != "cat":
        return None
    parts = [strip(part) for part in node.args[0]]
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    call = layer.norms.at(parts[0])
    same = call is not None and len(parts) == 2 and strip(call.input) is parts[1]
    if not same or axis % len(value.shape) != len(value.shape) - 1:
        raise refused(
            layer,
            "queries are projected from several values that are not the normed latent and then "
            "the raw one",
        )
    return parts[0]


def shared_part(layer: Layer, output: Value) -> SharedPart:
    """The shared part of the keys, from the value before its rotation.

    Raises:
        Refused: It is not a projection, or the norm of columns of one.
    """
    projection, call = layer.linears.get(output), layer.norms.at(output)
    if projection is not None:
        return SharedPart(output, projection, torch.arange(projection.rows), None)
    if call is None:
        raise refused(layer, "the shared key is neither projected nor normed")
    projection, columns = held_columns(layer, call.input, "shared key")
    return SharedPart(output, projection, columns, call.facts)


def held_columns(layer: Layer, value: Value, what: str) -> tuple[Linear, torch.Tensor]:
    """The projection that `value` holds columns of, and which, unchanged and in order.

    Raises:
        Refused: It holds something else.
    """
    made_from = [v for v in sources(layer, value) if v in layer.linears]
    if value in layer.linears:
        made_from = [value]
    if len(made_from) != 1:
        raise refused(layer, f"the {what} is made from {len(made_from)} projections")
    linear = layer.linears[made_from[0]]
    numbers = torch.arange(linear.rows, dtype=torch.float32).expand(linear.output.shape)
    path = layer.graph.path([linear.output], value)
    try:
        moved = layer.graph.replay(path, {linear.output: numbers}, value)
    except ReplayError as err:
        raise refused(layer, f"the {what} passes a change that cannot be followed") from err
    rows = moved.flatten(0, -2)
    columns = rows[0].round().long()
    if bool((rows != columns).any()) or not torch.equal(
        columns, torch.arange(len(columns)) + columns[0]
    ):
        raise refused(layer, f"the {what} does not hold numbers side by side")
    return linear, columns


def refused(layer: Layer, problem: str) -> Refused:
    """The refusal of latents that have no label."""
    return Refused(
        "attention",
        f"its latents have no label: {problem}",
        where=layer.name,
        hint="multi-head latent attention with one norm on each latent is expressed",
    )
