"""A layer of experts in the terms that dense layers are told in: facts and roles."""

from __future__ import annotations

from collections.abc import Iterator

from trtllm_scaffold.infer.algebra import Linear
from trtllm_scaffold.infer.experts import FeedForward, Matrix
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.mlp import MlpFacts
from trtllm_scaffold.infer.moe import MoeFacts
from trtllm_scaffold.infer.products import Place
from trtllm_scaffold.infer.roles import RoleLayout
from trtllm_scaffold.infer.routed import Routed
from trtllm_scaffold.spec.checkpoint import Layout


def feed_forward_facts(layer: Layer, feed: FeedForward) -> MlpFacts:
    """What one expert, or the shared feed-forward, computes."""
    assert layer.routed is not None
    gating = feed.gating
    return MlpFacts(
        kind="plain" if gating.gate is None else "gated",
        activation=gating.activation,
        intermediate_size=feed.width,
        gate=None if feed.gate is None else _linear(layer.routed, feed.gate),
        up=_linear(layer.routed, feed.up),
        down=_linear(layer.routed, feed.down),
        gate_columns=None if gating.gate is None else gating.gate[1],
        up_columns=gating.up[1],
        clamp=gating.clamp,
        swish_beta=gating.beta,
        up_offset=gating.offset,
    )


def moe_roles(layer: Layer, moe: MoeFacts) -> dict[str, RoleLayout]:
    """Roles of the parameters and buffers of a module of experts, by names in the layer."""
    assert layer.routed is not None
    parts = moe.parts
    table = dict(_plain(parts.router, ("moe.router",)))
    if parts.selection_bias is not None:
        table[parts.selection_bias] = RoleLayout(("moe.router.selection_bias",))
    table.update(_feed_forward(parts.expert, "moe"))
    if parts.shared is not None:
        table.update(_feed_forward(parts.shared, "moe.shared"))
    if parts.shared_gate is not None:
        table.update(_plain(parts.shared_gate, ("moe.shared_gate",)))
    prefix = layer.routed.name.removeprefix(f"{layer.name}.")
    return {f"{prefix}.{name}": role for name, role in table.items()}


def _linear(routed: Routed, matrix: Matrix) -> Linear:
    """A projection in the form of a linear layer; its weight is not to be looked at."""
    bias = f"{routed.name}.{matrix.bias[0].name}" if matrix.bias else None
    return Linear(
        weight=routed.output,
        names=tuple(f"{routed.name}.{place.name}" for place in matrix.weight),
        bias=bias,
        input=routed.input,
        output=routed.output,
        rows=matrix.rows,
        transposed=matrix.transposed,
    )


def _feed_forward(feed: FeedForward, prefix: str) -> Iterator[tuple[str, RoleLayout]]:
    gating = feed.gating
    held: dict[Matrix, list[tuple[int, str]]] = {}
    for part, place in (("gate", gating.gate), ("up", gating.up)):
        if place is not None:
            first = int(place[1].min())
            held.setdefault(feed.first[place[0]], []).append((first, f"{prefix}.{part}"))
    for matrix, parts in held.items():
        layout: Layout = "whole" if len(parts) == 1 else "rows"
        if gating.alternating:
            layout = "alternating"
        yield from _plain(matrix, tuple(name for _, name in sorted(parts)), layout)
    yield from _plain(feed.down, (f"{prefix}.down",))


def _plain(
    matrix: Matrix, parts: tuple[str, ...], layout: Layout = "whole"
) -> Iterator[tuple[str, RoleLayout]]:
    for places, kind in ((matrix.weight, "weight"), (matrix.bias, "bias")):
        roles = tuple(f"{part}.{kind}" for part in parts)
        transposed = matrix.transposed and kind == "weight"
        for index, place in enumerate(places):
            yield place.name, _role(place, roles, layout, transposed, index, len(places))


def _role(
    place: Place, roles: tuple[str, ...], layout: Layout, transposed: bool, index: int, count: int
) -> RoleLayout:
    if place.holding == "whole":
        expert = index if count > 1 else None
        return RoleLayout(roles, layout, transposed, expert=expert)
    return RoleLayout(roles, layout, transposed, experts=place.holding)
