"""One eager forward as a graph of aten operations, values and module calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import nn


@dataclass(eq=False, repr=False)
class Value:
    """One tensor of the forward.

    Attributes:
        index: Position in the order of appearance.
        data: What it held when it was made.
        node: The operation that made it; None for parameters, buffers and inputs.
    """

    index: int
    data: torch.Tensor
    node: Node | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.data.shape)


@dataclass(eq=False, repr=False)
class Node:
    """One aten operation.

    Attributes:
        index: Position in the order of execution.
        op: The overload, or None for the unseen change of an alias by an in-place operation.
        args, kwargs: Its arguments, tensors as `Value`. Of an unseen change the old value, the
            part that was written, and where that part lies; no place where that is not known.
        outputs: Its tensors.
        modules: Names of the modules it ran in, outermost first.
    """

    index: int
    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    modules: tuple[str, ...]
    outputs: list[Value] = field(default_factory=list)

    @cached_property
    def name(self) -> str:
        """Name without namespace, overload and in-place mark: ``add``, ``_softmax``."""
        return "" if self.op is None else str(self.op._schema.name).split("::")[1].rstrip("_")

    @property
    def inputs(self) -> list[Value]:
        """Every tensor argument."""
        return list(_values((self.args, self.kwargs)))


@dataclass(eq=False, repr=False)
class Call:
    """One call of a module: its first tensor argument and its first tensor result."""

    name: str
    module: nn.Module
    input: Value | None
    output: Value | None
    first_node: int
    last_node: int


@dataclass(eq=False, repr=False)
class Graph:
    """The forward as a graph.

    Attributes:
        values, nodes, calls: In order.
        names: For the value of each parameter or buffer, its names (several when shared).
        parameters: Values of the parameters.
        result: The logits.
        constants: What the class put into each stored buffer of one element, by name, before it
            was drawn at random.
    """

    model: nn.Module
    values: list[Value]
    nodes: list[Node]
    calls: list[Call]
    names: dict[Value, tuple[str, ...]]
    parameters: set[Value]
    tokens: Value
    result: Value
    calls_by_output: dict[Value, list[Call]]
    constants: dict[str, torch.Tensor] = field(default_factory=dict)

    def ancestors(self, value: Value, stop: Iterable[Value] = ()) -> Iterator[Value]:
        """`value` and everything it is computed from, not looking behind `stop`."""
        ends = set(stop)
        seen: set[Value] = set()
        stack = [value]
        while stack:
            current = stack.pop()
            if current in seen:
                continue
            seen.add(current)
            yield current
            if current.node is not None and current not in ends:
                stack.extend(current.node.inputs)

    def path(self, sources: Iterable[Value], target: Value) -> list[Node]:
        """The operations that carry `sources` to `target`, in order."""
        reached = set(sources)
        last = -1 if target.node is None else target.node.index
        start = min((-1 if v.node is None else v.node.index for v in reached), default=-1) + 1
        forward: list[Node] = []
        for node in self.nodes[start : last + 1]:
            if any(out in reached for out in node.outputs):
                continue
            if any(value in reached for value in node.inputs):
                reached.update(node.outputs)
                forward.append(node)
        needed = {target}
        kept: list[Node] = []
        for node in reversed(forward):
            if any(out in needed for out in node.outputs):
                kept.append(node)
                needed.update(node.inputs)
        return kept[::-1]

    def replay(
        self, path: list[Node], given: dict[Value, torch.Tensor], target: Value
    ) -> torch.Tensor:
        """Run `path` again with other tensors in place of the recorded ones.

        Raises:
            ReplayError: An operation of the path changes memory that another value shares.
        """
        known = {value: tensor.clone() for value, tensor in given.items()}
        with torch.no_grad():
            for node in path:
                args = _map((node.args, node.kwargs), known)
                if node.op is None:
                    known[node.outputs[0]] = _written(*args)
                    continue
                if node.op._schema.name.endswith("_"):
                    args = ((args[0][0].clone(), *args[0][1:]), args[1])
                out = node.op(*args[0], **args[1])
                results = [out] if isinstance(out, torch.Tensor) else list(out)
                tensors = [r for r in results if isinstance(r, torch.Tensor)]
                known.update(zip(node.outputs, tensors, strict=True))
        return known[target]


def _written(args: tuple[torch.Tensor, ...], place: dict[str, Any]) -> torch.Tensor:
    """The old value with the part that an in-place operation wrote to it."""
    if not place or len(args) != 2:
        raise ReplayError
    return torch.as_strided_scatter(args[0].contiguous(), args[1], **place)


class ReplayError(Exception):
    """A recorded path cannot be run again."""


def _values(tree: Any) -> Iterator[Value]:
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _values(item)
    elif isinstance(tree, dict):
        yield from _values(list(tree.values()))


def _map(tree: Any, known: dict[Value, torch.Tensor]) -> Any:
    if isinstance(tree, Value):
        return known.get(tree, tree.data)
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(item, known) for item in tree)
    if isinstance(tree, dict):
        return {key: _map(item, known) for key, item in tree.items()}
    return tree
