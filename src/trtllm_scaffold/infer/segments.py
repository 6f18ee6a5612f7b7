"""Follows queries, keys and values from the score product back to their projections."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear
from trtllm_scaffold.infer.graph import Node, ReplayError, Value
from trtllm_scaffold.infer.head_norms import norm_of_heads
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.matrices import matrices
from trtllm_scaffold.infer.norm import NormCall

_HINT = "q, k and v must each come from one linear layer, through views, a norm, a clip and rope"


@dataclass(frozen=True, eq=False, repr=False)
class Segment:
    """The operations between two values, which only move, rotate and scale numbers."""

    source: Value
    target: Value
    path: list[Node]


@dataclass(eq=False, repr=False)
class Chain:
    """One operand of an attention product, back to its projection.

    Attributes:
        operand: The value at the product.
        linear: The projection.
        norm: The norm on the way, if any.
        clip: Bound of a clip on the way, if any.
        clips_normed: The clip is behind the norm.
        segments: From the operand back to the projection.
        columns: [heads, head_dim]: for each entry of the operand at position 0 the output
            column of the projection that it holds.
        factors: [heads, head_dim]: what that entry was multiplied by at position 0, norms
            left out.
        rotations: [sequence, head_dim, head_dim] for each segment: output from input of the
            first head, in the order of the operand; None where nothing depends on the position.
    """

    operand: Value
    linear: Linear
    norm: NormCall | None
    clip: float | None
    segments: list[Segment]
    columns: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    factors: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    rotations: list[torch.Tensor | None] = field(default_factory=list)
    clips_normed: bool = False


def follow(layer: Layer, operand: Value, heads: int, what: str, transposed: bool) -> Chain:
    """Walk from an operand of a product back to the projection, and probe every step.

    Args:
        layer: The layer.
        operand: [batch * heads, sequence, head_dim], or with the last two swapped.
        heads: Query heads.
        what: ``query``, ``key`` or ``value``, for messages.
        transposed: Whether the operand is [batch * heads, head_dim, sequence].

    Raises:
        Refused: The walk meets something else than views, one norm, a clip and a rotation.
    """
    chain = _boundaries(layer, operand, what)
    batch, sequence = layer.graph.tokens.shape
    if operand.shape[0] != batch * heads:
        raise _refused(layer, what, f"has shape {list(operand.shape)} for {heads} heads")
    picked: torch.Tensor | None = None
    factors: torch.Tensor | None = None
    for segment in chain.segments:
        origin, factor = _origins(layer, segment, what)
        if picked is None or factors is None:
            grid = _grid(origin, batch, heads, transposed)
            picked, factors = grid[0, :, 0], _grid(factor, batch, heads, transposed)[0, :, 0]
            rotation = _rotations(layer, segment, grid, heads, transposed)
        else:
            factors = factors * factor.flatten()[picked]
            places, picked = picked[0], origin.flatten()[picked]
            rotation = _inner_rotations(layer, segment, places, picked[0], sequence)
        chain.rotations.append(rotation)
    assert picked is not None and factors is not None
    rows = chain.linear.rows
    if bool((picked >= rows).any()):
        raise _refused(layer, what, "at position 0 depends on other positions")
    chain.columns, chain.factors = picked, factors
    return chain


def _boundaries(layer: Layer, operand: Value, what: str) -> Chain:
    """Split the way from `operand` to its projection at norms and clips."""
    norm: NormCall | None = None
    clip: float | None = None
    clips_normed = False
    segments: list[Segment] = []
    target = operand
    while True:
        source = _source(layer, target, what)
        segments.append(Segment(source, target, layer.graph.path([source], target)))
        if source in layer.linears:
            chain = Chain(operand, layer.linears[source], norm, clip, segments)
            chain.clips_normed = clips_normed
            return chain
        found = layer.norms.at(source) or norm_of_heads(layer, source)
        if found is not None:
            if norm is not None:
                raise _refused(layer, what, "passes two norms")
            norm, target = found, found.input
            clips_normed = clip is not None
            continue
        assert source.node is not None
        if clip is not None:
            raise _refused(layer, what, "is clipped twice")
        clip, target = _clip_bound(layer, source.node, what), source.node.args[0]


def _source(layer: Layer, target: Value, what: str) -> Value:
    """The one boundary (projection, norm or clip) that `target` is made from."""
    found = sources(layer, target)
    if len(found) != 1 or layer.input in found:
        raise _refused(layer, what, f"is made from {len(found)} projections")
    return found[0]


def sources(layer: Layer, target: Value) -> list[Value]:
    """Every boundary (projection, norm or clip) that `target` is made from, in order."""

    def ends(value: Value) -> bool:
        clipped = value.node is not None and value.node.name in ("clamp", "hardtanh")
        return clipped or norm_of_heads(layer, value) is not None

    found, _ = layer.made_from(target, ends)
    return sorted(found, key=lambda value: value.index)


def _clip_bound(layer: Layer, node: Node, what: str) -> float:
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min")
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max")
    if not isinstance(low, (int, float)) or not isinstance(high, (int, float)) or low != -high:
        raise _refused(layer, what, f"is clipped to [{low}, {high}], not symmetrically")
    return float(high)


def _grid(flat: torch.Tensor, batch: int, heads: int, transposed: bool) -> torch.Tensor:
    """[batch, heads, sequence, head_dim] of an operand's entries."""
    grid = flat.unflatten(0, (batch, heads))
    return grid.transpose(-1, -2) if transposed else grid


def _origins(layer: Layer, segment: Segment, what: str) -> tuple[torch.Tensor, torch.Tensor]:
    """For each entry of the target: the flat source entry it is, and the factor on it.

    Valid where the segment does not rotate: at position 0, or everywhere without rope.
    """
    shape = segment.source.shape
    ones = torch.ones(shape)
    numbers = torch.arange(1, ones.numel() + 1, dtype=torch.float32).reshape(shape)
    try:
        factor = layer.graph.replay(segment.path, {segment.source: ones}, segment.target)
        moved = layer.graph.replay(segment.path, {segment.source: numbers}, segment.target)
    except ReplayError as err:
        raise _refused(layer, what, "passes an in-place change that cannot be followed") from err
    return (moved / factor).round().nan_to_num(0.0).long() - 1, factor


def _rotations(
    layer: Layer, segment: Segment, grid: torch.Tensor, heads: int, transposed: bool
) -> torch.Tensor | None:
    """[sequence, out, in] of the first head, both in the operand's order; None if constant."""
    batch, _, sequence, width = grid.shape
    last = segment.source.shape[-1]

    def outputs(vector: torch.Tensor) -> torch.Tensor:
        given = {segment.source: vector.expand(segment.source.shape)}
        out = layer.graph.replay(segment.path, given, segment.target)
        return _grid(out, batch, heads, transposed)[0, 0]

    return matrices(outputs, grid[0, 0, 0] % last, last, sequence)


def _inner_rotations(
    layer: Layer, segment: Segment, first: torch.Tensor, origin: torch.Tensor, sequence: int
) -> torch.Tensor | None:
    """The same for a segment that ends at a norm, whose layout is only known at position 0.

    Args:
        layer: The layer.
        segment: The segment.
        first: [head_dim] flat places of the first head at position 0 in the target.
        origin: [head_dim] flat places in the source that they are made from.
        sequence: Positions.
    """
    last = segment.source.shape[-1]
    places = _position_places(segment.target, first, sequence)

    def outputs(vector: torch.Tensor) -> torch.Tensor:
        given = {segment.source: vector.expand(segment.source.shape)}
        return layer.graph.replay(segment.path, given, segment.target).flatten()[places]

    return matrices(outputs, origin % last, last, sequence)


def _position_places(target: Value, first: torch.Tensor, sequence: int) -> torch.Tensor:
    """[sequence, head_dim] flat places of the first head at each position.

    The position axis is the one of the sequence's length before the last.
    """
    shape = target.shape
    axis = next((i for i in range(1, len(shape) - 1) if shape[i] == sequence), None)
    if axis is None:  # [batch * sequence, ...]
        axis = 0
    stride = int(torch.tensor(shape[axis + 1 :]).prod())
    return first[None, :] + stride * torch.arange(sequence)[:, None]


def _refused(layer: Layer, what: str, problem: str) -> Refused:
    return Refused("attention", f"the {what} {problem}", where=layer.name, hint=_HINT)
