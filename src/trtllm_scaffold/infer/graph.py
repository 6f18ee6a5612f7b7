"""Records one eager forward as a graph of aten operations, values and module calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(eq=False)
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


@dataclass(eq=False)
class Node:
    """One aten operation.

    Attributes:
        index: Position in the order of execution.
        op: The overload, or None for the unseen change of an alias by an in-place operation.
        args, kwargs: Its arguments, tensors as `Value`.
        outputs: Its tensors.
        modules: Names of the modules it ran in, outermost first.
    """

    index: int
    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    modules: tuple[str, ...]
    outputs: list[Value] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name without namespace, overload and in-place mark: ``add``, ``_softmax``."""
        return "" if self.op is None else str(self.op._schema.name).split("::")[1].rstrip("_")

    @property
    def inputs(self) -> list[Value]:
        """Every tensor argument."""
        return list(_values((self.args, self.kwargs)))


@dataclass(eq=False)
class Call:
    """One call of a module: its first tensor argument and its first tensor result."""

    name: str
    module: nn.Module
    input: Value | None
    output: Value | None
    first_node: int
    last_node: int


@dataclass(eq=False)
class Graph:
    """The forward as a graph.

    Attributes:
        values, nodes, calls: In order.
        names: For the value of each parameter or buffer, its names (several when shared).
        parameters: Values of the parameters.
        result: The logits.
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
        forward: list[Node] = []
        for node in self.nodes[: last + 1]:
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
                if node.op is None:
                    raise ReplayError
                args = _map((node.args, node.kwargs), known)
                if node.op._schema.name.endswith("_"):
                    args = ((args[0][0].clone(), *args[0][1:]), args[1])
                out = node.op(*args[0], **args[1])
                results = [out] if isinstance(out, torch.Tensor) else list(out)
                tensors = [r for r in results if isinstance(r, torch.Tensor)]
                known.update(zip(node.outputs, tensors, strict=True))
        return known[target]


class ReplayError(Exception):
    """A recorded path cannot be run again."""


def record(model: nn.Module, tokens: torch.Tensor) -> Graph:
    """Run `model` on token ids [batch, sequence] and record the forward."""
    recorder = _Recorder(model)
    handles = recorder.watch(model)
    try:
        with torch.no_grad(), recorder:
            logits = model(input_ids=tokens, use_cache=False, return_dict=True).logits
    finally:
        for handle in handles:
            handle.remove()
    by_output: dict[Value, list[Call]] = {}
    for call in recorder.calls:
        if call.output is not None and call.output is not call.input:
            by_output.setdefault(call.output, []).append(call)
    return Graph(
        model=model,
        values=recorder.values,
        nodes=recorder.nodes,
        calls=recorder.calls,
        names=recorder.names,
        parameters=recorder.parameters,
        tokens=recorder.value(tokens),
        result=recorder.value(logits),
        calls_by_output=by_output,
    )


class _Recorder(TorchDispatchMode):
    """The dispatch mode: every operation becomes a node."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.calls: list[Call] = []
        self.names: dict[Value, tuple[str, ...]] = {}
        self.parameters: set[Value] = set()
        self._current: dict[int, Value] = {}
        self._alive: list[torch.Tensor] = []  # identity is id(): nothing may be freed
        self._by_storage: dict[int, list[torch.Tensor]] = {}
        self._stack: list[str] = []
        self._open: list[tuple[Value | None, int]] = []
        for name, tensor in model.named_parameters(remove_duplicate=False):
            self.parameters.add(self._name(name, tensor))
        for name, tensor in model.named_buffers(remove_duplicate=False):
            self._name(name, tensor)

    def _name(self, name: str, tensor: torch.Tensor) -> Value:
        value = self.value(tensor)
        self.names[value] = (*self.names.get(value, ()), name)
        return value

    def value(self, tensor: torch.Tensor) -> Value:
        """The value that `tensor` holds now."""
        known = self._current.get(id(tensor))
        return known if known is not None else self._new(tensor, None)

    def _new(self, tensor: torch.Tensor, node: Node | None) -> Value:
        value = Value(len(self.values), tensor, node)
        self.values.append(value)
        self._current[id(tensor)] = value
        self._alive.append(tensor)
        storage = tensor.untyped_storage().data_ptr()
        self._by_storage.setdefault(storage, []).append(tensor)
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: D105
        del types
        kwargs = kwargs or {}
        changed = self._before_change(func, args)
        packed = _pack((args, kwargs), self)
        out = func(*args, **kwargs)
        node = Node(len(self.nodes), func, packed[0], packed[1], tuple(self._stack))
        self.nodes.append(node)
        results = [out] if isinstance(out, torch.Tensor) else out
        if isinstance(results, (list, tuple)):
            for tensor in results:
                if isinstance(tensor, torch.Tensor):
                    node.outputs.append(self._new(tensor, node))
        for alias, old in changed:
            self._stale(alias, [old, *node.outputs])
        return out

    def _before_change(self, func: Any, args: Any) -> list[tuple[torch.Tensor, Value]]:
        """Keep what an in-place operation is about to overwrite; return its aliases."""
        if not func._schema.name.endswith("_") or not args:
            return []
        target = args[0]
        storage = target.untyped_storage().data_ptr()
        aliases = []
        for tensor in self._by_storage.get(storage, []):
            value = self._current[id(tensor)]
            if value in self.names:
                continue
            if value.data is tensor:
                with torch.utils._python_dispatch._disable_current_modes():
                    value.data = tensor.clone()
            if tensor is not target:
                aliases.append((tensor, value))
        return aliases

    def _stale(self, alias: torch.Tensor, parents: list[Value]) -> None:
        node = Node(len(self.nodes), None, tuple(parents), {}, tuple(self._stack))
        self.nodes.append(node)
        node.outputs.append(self._new(alias, node))

    def watch(self, model: nn.Module) -> list[Any]:
        """Hook every module, so that nodes know where they ran."""
        handles = []
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave(name), with_kwargs=True))
        return handles

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            del module
            self._stack.append(name)
            tensor = _first_float((args, kwargs))
            self._open.append((None if tensor is None else self.value(tensor), len(self.nodes)))

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            del args, kwargs
            self._stack.pop()
            entered, first = self._open.pop()
            tensor = _first_float(output)
            result = None if tensor is None else self.value(tensor)
            self.calls.append(Call(name, module, entered, result, first, len(self.nodes)))

        return hook


def _first_float(tree: Any) -> torch.Tensor | None:
    """The first floating tensor in nested arguments or results."""
    if isinstance(tree, torch.Tensor):
        return tree if tree.is_floating_point() else None
    items = tree.values() if isinstance(tree, dict) else tree
    if isinstance(items, (str, bytes)) or not isinstance(tree, (dict, list, tuple)):
        return None
    return next((t for t in (_first_float(item) for item in items) if t is not None), None)


def _values(tree: Any) -> Iterator[Value]:
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _values(item)
    elif isinstance(tree, dict):
        yield from _values(list(tree.values()))


def _pack(tree: Any, recorder: _Recorder) -> Any:
    if isinstance(tree, torch.Tensor):
        return recorder.value(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(_pack(item, recorder) for item in tree)
    if isinstance(tree, dict):
        return {key: _pack(item, recorder) for key, item in tree.items()}
    return tree


def _map(tree: Any, known: dict[Value, torch.Tensor]) -> Any:
    if isinstance(tree, Value):
        return known.get(tree, tree.data)
    if isinstance(tree, (list, tuple)):
        return type(tree)(_map(item, known) for item in tree)
    if isinstance(tree, dict):
        return {key: _map(item, known) for key, item in tree.items()}
    return tree
