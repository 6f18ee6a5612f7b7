"""Recognises norms that each head has for itself: a module per head, joined again behind them."""

from __future__ import annotations

from dataclasses import replace

import torch

from trtllm_scaffold.infer.algebra import moved_from
from trtllm_scaffold.infer.graph import Value
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.norm import NormCall

_EQUAL = 1e-3


def norm_of_heads(layer: Layer, value: Value) -> NormCall | None:
    """The norms that `value` joins, one per head, as one norm with a weight per head, or None.

    Each must be of the same kind and see the same share, in order, of one value.
    """
    node = value.node
    if node is None or node.name not in ("cat", "stack") or len(node.args[0]) < 2:
        return None
    calls = [_norm(layer, part) for part in node.args[0]]
    norms = [call for call in calls if call is not None]
    if len(norms) != len(calls):
        return None
    first = norms[0].facts
    for norm in norms:
        facts = norm.facts
        same = (facts.kind, facts.plus_one, facts.weight_shape) == (
            first.kind,
            first.plus_one,
            first.weight_shape,
        )
        close = abs(facts.eps - first.eps) <= _EQUAL * first.eps
        if not same or not close or facts.weight is None or facts.bias is not None:
            return None
    source = _shared(norms)
    if source is None or source.shape != value.shape or not _in_order(value, norms, source):
        return None
    names = tuple(norm.facts.weight or "" for norm in norms)
    if len(set(names)) != len(names):
        return None
    shape = (len(norms), *first.weight_shape)
    facts = replace(first, weight_shape=shape, by_head=names)
    return NormCall(facts, source, value)


def _norm(layer: Layer, value: Value) -> NormCall | None:
    current: Value | None = value
    while current is not None:
        found = layer.norms.at(current)
        if found is not None:
            return found
        current = moved_from(current)
    return None


def _shared(norms: list[NormCall]) -> Value | None:
    """The value that every norm sees a share of."""
    sources: dict[Value, None] = {}
    for norm in norms:
        value = norm.input
        while (parent := moved_from(value)) is not None:
            value = parent
        node = value.node
        if node is None or not isinstance(node.args[0], Value):
            return None
        if node.name not in ("split", "split_with_sizes", "unbind", "slice", "select", "chunk"):
            return None
        sources[node.args[0]] = None
    return next(iter(sources)) if len(sources) == 1 else None


def _in_order(value: Value, norms: list[NormCall], source: Value) -> bool:
    """Whether the shares, joined as the results are, make up the source."""
    assert value.node is not None
    parts = [
        norm.input.data.reshape(part.shape)
        for norm, part in zip(norms, value.node.args[0], strict=True)
    ]
    axis = value.node.args[1] if len(value.node.args) > 1 else value.node.kwargs.get("dim", 0)
    joined = torch.stack(parts, axis) if value.node.name == "stack" else torch.cat(parts, axis)
    return torch.equal(joined, source.data)
