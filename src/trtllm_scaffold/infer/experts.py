"""Reads a recorded call of a layer of experts: router, experts and shared experts in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import scaled, strip
from trtllm_scaffold.infer.gating import Gating, fit_gating
from trtllm_scaffold.infer.graph import Graph, Node, ReplayError, Value
from trtllm_scaffold.infer.products import Place, Product, find_products
from trtllm_scaffold.infer.routed import is_choice

Tensors = Mapping[str, torch.Tensor]

HINT = "a linear router, gated or plain experts and one shared feed-forward are expressed"

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


@dataclass(frozen=True, eq=False, repr=False)
class Matrix:
    """One projection of every expert (or of a feed-forward that is no expert's).

    Attributes:
        weight, bias: The place in one parameter; for experts with parameters of their own one
            place for each, in order.
        transposed: Stored [in, out].
        rows: Output width.
    """

    weight: tuple[Place, ...]
    bias: tuple[Place, ...]
    transposed: bool
    rows: int

    def apply(self, x: torch.Tensor, held: Tensors, expert: int, experts: int) -> torch.Tensor:
        """Project [tokens, in] with the matrix of an expert."""
        weight = _taken(self.weight, held, expert, experts)
        bias = _taken(self.bias, held, expert, experts) if self.bias else None
        return functional.linear(x, weight.t() if self.transposed else weight, bias)


@dataclass(frozen=True, eq=False, repr=False)
class FeedForward:
    """What one expert, or the shared one, computes.

    Attributes:
        first: Its first projections.
        down: Its last one.
        gating: Between them.
        width: Input width of `down`.
    """

    first: tuple[Matrix, ...]
    down: Matrix
    gating: Gating
    width: int

    def apply(
        self, x: torch.Tensor, held: Tensors, expert: int = 0, experts: int = 1
    ) -> torch.Tensor:
        """The output [tokens, hidden_size] of an expert for every token."""
        first = [matrix.apply(x, held, expert, experts) for matrix in self.first]
        return self.down.apply(self.gating(first), held, expert, experts)

    @property
    def gate(self) -> Matrix | None:
        """The projection that holds the gate."""
        return None if self.gating.gate is None else self.first[self.gating.gate[0]]

    @property
    def up(self) -> Matrix:
        """The projection that holds up."""
        return self.first[self.gating.up[0]]


@dataclass(frozen=True, eq=False, repr=False)
class Parts:
    """The parts of a layer of experts.

    Attributes:
        router: Its projection.
        selection_bias: Name of a stored vector that the choice sees, or None.
        softcap: c of c * tanh(logits / c) in front of the choice, or None.
        softmax_first: A softmax stands in front of the choice.
        expert: What one expert computes.
        shared: The shared feed-forward, or None.
        shared_gate: The projection to one factor on it, or None.
    """

    router: Matrix
    selection_bias: str | None
    softcap: float | None
    softmax_first: bool
    expert: FeedForward
    shared: FeedForward | None
    shared_gate: Matrix | None


def read_parts(graph: Graph, where: str) -> Parts:
    """Find the parts in a recorded call (see `record_module`).

    Raises:
        Refused: There is a part without a label.
    """
    products = find_products(graph)
    choice, router = _choice(graph, products, where)
    chains = _chains(products, router)
    routed = _routed(graph, chains, router)
    shared = [chain for chain in chains if chain not in routed]
    used = {router, *(product for chain in chains for product in (chain.down, *chain.first))}
    others = [product for product in products.values() if product not in used]
    gates = [p for p in others if p.rows == 1 and strip(p.input) is graph.tokens]
    if not routed or len(shared) > 1 or len(gates) != len(others) or len(gates) > len(shared):
        raise refused(
            where,
            f"{len(routed)} routed and {len(shared)} shared feed-forwards, "
            f"and {len(others)} other products with stored matrices",
        )
    return Parts(
        router=_matrix([router]),
        selection_bias=_selection_bias(graph, choice, router, where),
        softcap=_softcap(graph, choice, router),
        softmax_first=any(
            v.node is not None and v.node.name == "_softmax"
            for v in graph.ancestors(choice.args[0], [router.output])
        ),
        expert=_experts(graph, routed, router.rows, where),
        shared=_feed_forward(graph, shared[0], shared, where) if shared else None,
        shared_gate=_matrix(gates) if gates else None,
    )


def read_choice(graph: Graph, where: str) -> tuple[Matrix, str | None]:
    """The router's projection, and the name of the selection bias.

    Raises:
        Refused: There is no choice by a linear router.
    """
    choice, router = _choice(graph, find_products(graph), where)
    return _matrix([router]), _selection_bias(graph, choice, router, where)


def refused(where: str, problem: str) -> Refused:
    """The refusal of this axis."""
    return Refused("moe", f"the layer of experts has no label: {problem}", where=where, hint=HINT)


@dataclass(frozen=True, eq=False, repr=False)
class _Chain:
    """First projections, and the last one that is computed from them."""

    first: tuple[Product, ...]
    down: Product


def _taken(places: Sequence[Place], held: Tensors, expert: int, experts: int) -> torch.Tensor:
    place = places[expert] if len(places) > 1 else places[0]
    return place.take(held[place.name], expert, experts)


def _choice(graph: Graph, products: Mapping[Value, Product], where: str) -> tuple[Node, Product]:
    """The first choice for each token, and the product that it is made by."""
    choice = next((node for node in graph.nodes if is_choice(node)), None)
    if choice is None:
        raise refused(where, "no choice among experts was seen")
    found = _sources(products, choice.args[0])
    if len(found) != 1 or found[0].weight.holding != "whole":
        raise refused(where, f"the choice is made by {len(found)} products with stored matrices")
    if strip(found[0].input) is not graph.tokens:
        raise refused(where, "the router sees something else than the layer's input")
    return choice, found[0]


def _sources(products: Mapping[Value, Product], value: Value) -> list[Product]:
    """The products that floating numbers of `value` are computed from, the nearest ones."""
    found: dict[Product, None] = {}
    stack, seen = [value], set()
    while stack:
        current = stack.pop()
        if current in seen or not current.data.is_floating_point():
            continue
        seen.add(current)
        if current in products:
            found[products[current]] = None
        elif current.node is not None:
            stack.extend(current.node.inputs)
    return sorted(found, key=lambda product: product.output.index)


def _chains(products: Mapping[Value, Product], router: Product) -> list[_Chain]:
    chains = []
    for product in products.values():
        if product is router:
            continue
        first = [s for s in _sources(products, product.input) if s is not router]
        if first:
            chains.append(_Chain(tuple(first), product))
    return chains


def _routed(graph: Graph, chains: Sequence[_Chain], router: Product) -> list[_Chain]:
    """The experts' chains: those of chosen tokens, or as many numbered ones as can be chosen."""
    found = [chain for chain in chains if _is_routed(graph, chain, router)]
    own = [chain for chain in chains if _NUMBER.search(_names(chain)[-1])]
    return found or (own if len(own) == len(_numbered(own)) == router.rows else [])


def _is_routed(graph: Graph, chain: _Chain, router: Product) -> bool:
    """Whether it is an expert's: of a part of a parameter, or applied to chosen tokens."""
    if any(product.weight.holding != "whole" for product in (*chain.first, chain.down)):
        return True
    return any(router.output in set(graph.ancestors(p.input)) for p in chain.first)


def _experts(graph: Graph, routed: list[_Chain], experts: int, where: str) -> FeedForward:
    """What one expert computes, every chain being of the same form."""
    largest = max(routed, key=lambda chain: chain.down.input.data.numel())
    if largest.down.weight.holding != "whole":
        same = [chain for chain in routed if _names(chain) == _names(largest)]
        if len(same) != len(routed):
            raise refused(where, "experts lie in several parameters")
        place = largest.down.weight
        held = graph.model.get_parameter(place.name).shape[0]
        if held % experts or (place.holding == "stacked" and held != experts):
            raise refused(where, f"the router has {experts} outputs, {place.name} {held} entries")
        return _feed_forward(graph, largest, [largest], where)
    numbered = _numbered(routed)
    if sorted(numbered) != list(range(experts)):
        raise refused(where, f"the router has {experts} outputs, but {len(numbered)} experts ran")
    return _feed_forward(graph, largest, [numbered[e] for e in range(experts)], where)


def _numbered(chains: Sequence[_Chain]) -> dict[int, _Chain]:
    """Chains by the number in their names that no two share; none where there is no such."""
    names = [tuple(_NUMBER.findall(_names(chain)[-1])) for chain in chains]
    for numbers in zip(*names, strict=True) if len({len(found) for found in names}) == 1 else ():
        if len(set(numbers)) == len(chains):
            return {int(n): chain for n, chain in zip(numbers, chains, strict=True)}
    return {}


def _names(chain: _Chain) -> list[str]:
    return [product.weight.name for product in (*chain.first, chain.down)]


def _feed_forward(graph: Graph, chain: _Chain, every: Sequence[_Chain], where: str) -> FeedForward:
    """Fit one chain; `every` gives the places of each expert's parameters."""
    target, outputs = chain.down.input, [product.output for product in chain.first]
    path = graph.path(outputs, target)

    def between(given: Sequence[torch.Tensor]) -> torch.Tensor:
        return graph.replay(path, dict(zip(outputs, given, strict=True)), target)

    width = target.shape[-1]
    try:
        gating = fit_gating(between, [output.shape for output in outputs], width)
    except ReplayError as err:
        raise refused(where, "an in-place change cannot be followed") from err
    if gating is None:
        raise refused(where, "what an expert computes is none of the known formulas")
    first = [_matrix([c.first[i] for c in every]) for i in range(len(chain.first))]
    return FeedForward(tuple(first), _matrix([c.down for c in every]), gating, width)


def _matrix(products: Sequence[Product]) -> Matrix:
    one = products[0]
    bias = tuple(product.bias for product in products if product.bias is not None)
    return Matrix(tuple(p.weight for p in products), bias, one.transposed, one.rows)


def _selection_bias(graph: Graph, choice: Node, router: Product, where: str) -> str | None:
    """The stored vector beside the router that the choice depends on."""
    seen = [
        value for value in graph.ancestors(choice.args[0], [router.output]) if value in graph.names
    ]
    if not seen:
        return None
    if len(seen) > 1 or seen[0].data.numel() != router.rows:
        names = ", ".join(graph.names[value][0] for value in seen)
        raise refused(where, f"the choice depends on {names} besides the router")
    return graph.names[seen[0]][0]


def _softcap(graph: Graph, choice: Node, router: Product) -> float | None:
    for value in graph.ancestors(choice.args[0], [router.output]):
        if value.node is not None and value.node.name == "tanh":
            inner = scaled(value.node.args[0], graph)
            return 1.0 / inner[1] if inner is not None and inner[1] else None
    return None
