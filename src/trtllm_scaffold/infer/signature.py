"""Tells whether two layers ran the same operations, so that one of them need not be read."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from typing import Any

import torch

from trtllm_scaffold.infer.graph import Value
from trtllm_scaffold.infer.layers import Layer


def signature(layer: Layer) -> Hashable:
    """What a layer computes, but for the numbers that its parameters hold.

    Operations with their constants, and where each operand comes from: an operation of the
    layer, its input, a parameter by its name in the layer, or one certain value from outside.
    Buffers and other tensors that nothing computes count by what they hold, except those that
    were drawn at random. Of a module of experts only names and shapes count.
    """
    places: dict[Value, Hashable] = {layer.input: "input"}
    seen: list[Hashable] = []
    routed = layer.routed
    if routed is not None:  # what it computes goes with the tokens: see `explains`
        names = sorted((name, p.shape) for name, p in routed.module.named_parameters())
        places[routed.output] = places[routed.linear.output] = ("experts", tuple(names))
    for number, node in enumerate(layer.nodes):
        if routed is not None and routed.first_node <= node.index < routed.last_node:
            continue
        operands = _described((node.args, node.kwargs), layer, places)
        seen.append((node.op, operands))
        for index, value in enumerate(node.outputs):
            places[value] = (number, index, value.shape)
    return tuple(seen)


def _described(tree: Any, layer: Layer, places: dict[Value, Hashable]) -> Hashable:
    if isinstance(tree, Value):
        if tree not in places:
            places[tree] = _outside(tree, layer)
        return places[tree]
    if isinstance(tree, (list, tuple)):
        return tuple(_described(item, layer, places) for item in tree)
    if isinstance(tree, dict):
        return tuple((key, _described(item, layer, places)) for key, item in tree.items())
    return repr(tree)


def _outside(value: Value, layer: Layer) -> Hashable:
    """A value that no operation of the layer made."""
    names = layer.graph.names.get(value, ())
    prefix = f"{layer.name}."
    own = tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))
    if own and (value in layer.graph.parameters or layer.graph.constants.keys() & set(names)):
        return (own, value.shape)
    if not own and value.node is not None:
        return value.index
    # a constant, a buffer or an input of the model
    held = value.data.detach().flatten().contiguous().view(torch.uint8).numpy().tobytes()
    return (own, value.shape, hashlib.sha256(held).hexdigest())
