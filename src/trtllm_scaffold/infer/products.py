"""Finds the products with stored matrices in a recorded call of a layer of experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from trtllm_scaffold.infer.algebra import strip, strip_views
from trtllm_scaffold.infer.graph import Graph, Value

Holding = Literal["whole", "stacked", "flat"]

#: Operations that take a part of a tensor, or another view of it.
_PARTS = frozenset(
    "view _unsafe_view reshape unsqueeze squeeze transpose permute t expand clone _to_copy "
    "detach alias slice contiguous select index index_select unbind split chunk "
    "split_with_sizes".split()
)


@dataclass(frozen=True)
class Place:
    """Where one expert's tensor lies in a parameter.

    Attributes:
        name: The parameter, by its name in the module.
        holding: ``whole``: the parameter itself; ``stacked``: one entry of dimension 0;
            ``flat``: one of equal blocks along dimension 0.
        index: Which entry or block; None where one product takes all.
    """

    name: str
    holding: Holding
    index: int | None = 0

    def take(self, parameter: torch.Tensor, expert: int, experts: int) -> torch.Tensor:
        """The tensor of an expert."""
        if self.holding == "whole":
            return parameter
        if self.holding == "stacked":
            return parameter[expert]
        return parameter.reshape(experts, -1, *parameter.shape[1:])[expert]


@dataclass(frozen=True, eq=False, repr=False)
class Product:
    """One product of activations with a stored matrix, and the bias added to it.

    Attributes:
        weight: Where the matrix lies.
        transposed: It is stored [in, out].
        bias: Where the bias lies, or None.
        input: What it was applied to, before reshapes.
        output: The result, bias included.
        rows: Output width.
    """

    weight: Place
    transposed: bool
    bias: Place | None
    input: Value
    output: Value
    rows: int


def find_products(graph: Graph) -> dict[Value, Product]:
    """Every product with a stored matrix, by its result."""
    found: dict[Value, Product] = {}
    for node in graph.nodes:
        if node.name in ("mm", "bmm"):
            product = _product(graph, node.args[0], node.args[1], None, node.outputs[0])
        elif node.name in ("addmm", "baddbmm") and not node.kwargs:
            bias = _vector(graph, node.args[0])
            product = _product(graph, node.args[1], node.args[2], bias, node.outputs[0])
        elif node.name == "add" and len(node.args) == 2 and not node.kwargs:
            product = _biased(graph, found, node.args, node.outputs[0])
        else:
            continue
        if product is not None:
            found[product.output] = product
    return found


def _biased(
    graph: Graph, found: dict[Value, Product], operands: tuple[object, ...], output: Value
) -> Product | None:
    """A product with a bias added by an operation of its own; takes the product out of `found`."""
    for left, right in (operands, operands[::-1]):
        if not isinstance(left, Value) or not isinstance(right, Value):
            return None
        known = found.get(strip(left))
        bias = _vector(graph, right)
        if known is None or known.bias is not None or bias is None:
            continue
        if right.shape[-1] == known.rows and right.data.numel() in (
            known.rows,
            known.rows * known.output.shape[0],
        ):
            del found[known.output]
            return replace(known, bias=bias, output=strip(output))
    return None


def _product(
    graph: Graph, left: object, right: object, bias: Place | None, output: Value
) -> Product | None:
    if not isinstance(left, Value) or not isinstance(right, Value):
        return None
    parameter = _stored(graph, right)
    if parameter is None:
        return None
    placed = _matrix(graph.names[parameter][0], parameter.data, right.data)
    if placed is None:
        return None
    place, transposed = placed
    return Product(place, transposed, bias, strip_views(left), strip(output), right.shape[-1])


def _stored(graph: Graph, value: Value) -> Value | None:
    """The parameter that `value` is a part of, or None."""
    while value not in graph.parameters:
        node = value.node
        if node is None or node.name not in _PARTS or not isinstance(node.args[0], Value):
            return None
        value = node.args[0]
    return value


def _matrix(name: str, stored: torch.Tensor, used: torch.Tensor) -> tuple[Place, bool] | None:
    """Which part of a parameter an operand [in, out] is, and whether it is stored so."""
    if used.dim() == 3:  # all experts at once
        if stored.shape == used.shape and torch.equal(stored, used):
            return Place(name, "stacked", None), True
        turned = used.transpose(1, 2)
        if stored.shape == turned.shape and torch.equal(stored, turned):
            return Place(name, "stacked", None), False
        return None
    for matrix, transposed in ((used.t(), False), (used, True)):
        if stored.shape == matrix.shape and torch.equal(stored, matrix):
            return Place(name, "whole"), transposed
        if stored.dim() == 3 and stored.shape[1:] == matrix.shape:
            for index, entry in enumerate(stored):
                if torch.equal(entry, matrix):
                    return Place(name, "stacked", index), transposed
        if stored.dim() == 2 and stored.shape[1] == matrix.shape[1]:
            rows = matrix.shape[0]
            for index in range(stored.shape[0] // rows if stored.shape[0] % rows == 0 else 0):
                if torch.equal(stored[index * rows : (index + 1) * rows], matrix):
                    return Place(name, "flat", index), transposed
    return None


def _vector(graph: Graph, value: object) -> Place | None:
    """The bias that a value is."""
    if not isinstance(value, Value):
        return None
    parameter = _stored(graph, value)
    if parameter is None:
        return None
    name, stored, used = graph.names[parameter][0], parameter.data, value.data
    if stored.dim() == 1 and used.numel() == stored.numel():
        return Place(name, "whole") if torch.equal(used.flatten(), stored) else None
    if stored.dim() != 2:
        return None
    if used.numel() == stored.numel():
        same = torch.equal(used.reshape(stored.shape), stored)
        return Place(name, "stacked", None) if same else None
    for index, entry in enumerate(stored):
        if entry.numel() == used.numel() and torch.equal(used.flatten(), entry):
            return Place(name, "stacked", index)
    return None
