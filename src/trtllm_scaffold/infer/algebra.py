"""Reads the value graph backwards: views, constant factors, linear layers, sums of terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from trtllm_scaffold.infer.graph import Graph, Value

#: Operations that move numbers without changing them (checked to keep their count).
_MOVES = frozenset(
    "view _unsafe_view reshape unsqueeze squeeze transpose permute t expand clone _to_copy "
    "detach alias lift_fresh slice contiguous select flatten unflatten copy to".split()
)
_ADD = frozenset({"add", "sub"})
_SCALE = frozenset({"mul", "div"})


@dataclass(frozen=True, eq=False, repr=False)
class Linear:
    """One product with a stored weight, and the bias added to it.

    Attributes:
        weight: Names of the weight parameter (several when shared).
        bias: Name of the bias parameter, or None.
        input: What it was applied to, before any reshape.
        output: Its result, bias included.
        rows: Output width.
        transposed: Whether the weight is stored [in, out].
    """

    weight: Value
    names: tuple[str, ...]
    bias: str | None
    input: Value
    output: Value
    rows: int
    transposed: bool


def strip(value: Value) -> Value:
    """The value behind reshapes, copies and casts."""
    while (parent := moved_from(value)) is not None:
        value = parent
    return value


def moved_from(value: Value) -> Value | None:
    """The value that `value` is a mere rearrangement or copy of, one step back."""
    node = value.node
    if node is None or node.name not in _MOVES or not node.args:
        return None
    parent = node.args[0]
    if not isinstance(parent, Value) or parent.data.numel() != value.data.numel():
        return None
    return parent


def constant(operand: object, graph: Graph) -> float | None:
    """The number that `operand` is: a Python number, or a derived one-element tensor."""
    if isinstance(operand, bool):
        return None
    if isinstance(operand, (int, float)):
        return float(operand)
    if not isinstance(operand, Value) or operand.data.numel() != 1:
        return None
    if any(parent in graph.parameters for parent in graph.ancestors(operand)):
        return None
    return float(operand.data)


def scaled(value: Value, graph: Graph) -> tuple[Value, float] | None:
    """(inner, factor) where `value` is factor * inner by one multiplication or division."""
    node = value.node
    if node is None:
        return None
    if node.name == "neg":
        return node.args[0], -1.0
    if node.name not in _SCALE or len(node.args) < 2 or node.kwargs.get("rounding_mode"):
        return None
    left, right = node.args[0], node.args[1]
    factor = constant(right, graph)
    if factor is not None and isinstance(left, Value):
        return (left, factor) if node.name == "mul" else (left, 1.0 / factor) if factor else None
    factor = constant(left, graph)
    if factor is not None and isinstance(right, Value) and node.name == "mul":
        return right, factor
    return None


def linear_at(value: Value, graph: Graph) -> Linear | None:
    """The linear layer whose result `value` is, up to rearrangement."""
    output = strip(value)
    node = output.node
    if node is None:
        return None
    if node.name == "mm":
        return _product(graph, node.args[0], node.args[1], None, output)
    if node.name == "addmm" and not node.kwargs:
        bias = _vector(node.args[0], graph)
        return None if bias is None else _product(graph, node.args[1], node.args[2], bias, output)
    if node.name == "add" and len(node.args) == 2 and not node.kwargs:
        for product, vector in (node.args, node.args[::-1]):
            bias = _vector(vector, graph)
            if bias is None or not isinstance(product, Value):
                continue
            found = linear_at(product, graph)
            if found is not None and found.bias is None and bias.shape == (found.rows,):
                return Linear(
                    found.weight,
                    found.names,
                    graph.names[bias][0],
                    found.input,
                    output,
                    found.rows,
                    found.transposed,
                )
    return None


def _product(
    graph: Graph, left: Value, right: Value, bias: Value | None, output: Value
) -> Linear | None:
    parameter = strip(right)
    if parameter not in graph.parameters or parameter.data.dim() != 2:
        return None
    if torch.equal(right.data, parameter.data) if right.shape == parameter.shape else False:
        transposed = True
    elif right.shape == parameter.shape[::-1] and torch.equal(right.data, parameter.data.t()):
        transposed = False
    else:
        return None
    bias_name = None if bias is None else graph.names[bias][0]
    return Linear(
        parameter,
        graph.names[parameter],
        bias_name,
        strip_views(left),
        output,
        right.shape[1],
        transposed,
    )


def strip_views(value: Value) -> Value:
    """The value behind the flattening of leading dimensions, keeping copies and transposes."""
    while value.node is not None and value.node.name in ("view", "_unsafe_view", "reshape"):
        parent = value.node.args[0]
        if parent.shape[-1:] != value.shape[-1:] or parent.data.numel() != value.data.numel():
            break
        value = parent
    return value


def _vector(operand: object, graph: Graph) -> Value | None:
    """The one-dimensional parameter that `operand` is."""
    if not isinstance(operand, Value):
        return None
    found = strip(operand)
    return found if found in graph.parameters and found.data.dim() == 1 else None


def terms(
    value: Value, graph: Graph, is_atom: Callable[[Value], bool]
) -> list[tuple[Value, float]]:
    """`value` as a sum of atoms with constant factors.

    A value that `is_atom` accepts, or that no rule takes apart, ends the walk.
    """
    found: dict[Value, float] = {}
    stack = [(value, 1.0)]
    while stack:
        current, factor = stack.pop()
        parts = None if is_atom(current) else _parts(current, graph)
        if parts is None:
            found[current] = found.get(current, 0.0) + factor
        else:
            stack.extend((part, factor * weight) for part, weight in parts)
    return sorted(found.items(), key=lambda item: item[0].index)


def _parts(value: Value, graph: Graph) -> list[tuple[Value, float]] | None:
    parent = moved_from(value)
    if parent is not None:
        return [(parent, 1.0)]
    inner = scaled(value, graph)
    if inner is not None:
        return [inner]
    node = value.node
    if node is None or node.name not in _ADD or len(node.args) < 2:
        return None
    left, right = node.args[0], node.args[1]
    if isinstance(left, Value) and right == 0:
        return [(left, 1.0)]
    if not isinstance(left, Value) or not isinstance(right, Value):
        return None
    weight = float(node.kwargs.get("alpha", 1.0)) * (-1.0 if node.name == "sub" else 1.0)
    if left.shape != value.shape:  # broadcast: only a leading dimension, as of positions
        return [(left, 1.0), (right, weight)] if left.shape[-1] == value.shape[-1] else None
    return [(left, 1.0), (right, weight)] if right.shape[-1] == value.shape[-1] else None
