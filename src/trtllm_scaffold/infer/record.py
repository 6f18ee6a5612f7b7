"""Records one eager forward of a model as a value graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from trtllm_scaffold.infer.graph import Call, Graph, Node, Value


def record(
    model: nn.Module, tokens: torch.Tensor, constants: dict[str, torch.Tensor] | None = None
) -> Graph:
    """Run `model` on token ids [batch, sequence] and record the forward.

    Args:
        model: The model.
        tokens: The token ids.
        constants: See `Graph`.
    """

    def run() -> torch.Tensor:
        return model(input_ids=tokens, use_cache=False, return_dict=True).logits  # type: ignore[no-any-return]

    return _recorded(model, tokens, run, constants or {})


def record_module(module: nn.Module, hidden: torch.Tensor) -> Graph:
    """Call one module on hidden states [batch, sequence, hidden_size] and record the call.

    Names in the graph are relative to the module; its result is the first floating tensor that
    the module returns.
    """

    def run() -> torch.Tensor:
        found = first_float(module(hidden))
        if found is None:
            raise TypeError(f"{type(module).__name__} returns no tensor")
        return found

    return _recorded(module, hidden, run, {})


def _recorded(
    model: nn.Module,
    start: torch.Tensor,
    run: Callable[[], torch.Tensor],
    constants: dict[str, torch.Tensor],
) -> Graph:
    recorder = _Recorder(model)
    handles = recorder.watch(model)
    try:
        # fused attention kernels would hide the scores: this one is made of plain operations
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), recorder:
            result = run()
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
        tokens=recorder.value(start),
        result=recorder.value(result),
        calls_by_output=by_output,
        constants=constants,
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
        self._by_storage: dict[int, dict[int, torch.Tensor]] = {}
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
        self._by_storage.setdefault(storage, {})[id(tensor)] = tensor
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
            self._stale(alias, [old, *node.outputs], args[0])
        return out

    def _before_change(self, func: Any, args: Any) -> list[tuple[torch.Tensor, Value]]:
        """Keep what an in-place operation is about to overwrite; return its aliases."""
        if not func._schema.name.endswith("_") or not args:
            return []
        target = args[0]
        storage = target.untyped_storage().data_ptr()
        aliases = []
        for tensor in self._by_storage.get(storage, {}).values():
            value = self._current[id(tensor)]
            if value in self.names:
                continue
            if value.data is tensor:
                with _disable_current_modes():
                    value.data = tensor.clone()
            if tensor is not target:
                aliases.append((tensor, value))
        return aliases

    def _stale(self, alias: torch.Tensor, parents: list[Value], written: torch.Tensor) -> None:
        place = _place(written, alias)
        node = Node(len(self.nodes), None, tuple(parents), place, tuple(self._stack))
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
            tensor = first_float((args, kwargs))
            self._open.append((None if tensor is None else self.value(tensor), len(self.nodes)))

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            del args, kwargs
            self._stack.pop()
            entered, first = self._open.pop()
            tensor = first_float(output)
            result = None if tensor is None else self.value(tensor)
            self.calls.append(Call(name, module, entered, result, first, len(self.nodes)))

        return hook


def _place(part: torch.Tensor, whole: torch.Tensor) -> dict[str, Any]:
    """Where `part` lies in `whole`, as strides of its flat memory; nothing where it sticks out."""
    offset = part.storage_offset() - whole.storage_offset()
    last = offset + sum((n - 1) * s for n, s in zip(part.shape, part.stride(), strict=True))
    if part.dtype != whole.dtype or not whole.is_contiguous() or not part.numel():
        return {}
    if offset < 0 or last >= whole.numel():
        return {}
    return {"size": tuple(part.shape), "stride": part.stride(), "storage_offset": offset}


def first_float(tree: Any) -> torch.Tensor | None:
    """The first floating tensor in nested arguments or results."""
    if isinstance(tree, torch.Tensor):
        return tree if tree.is_floating_point() else None
    items = tree.values() if isinstance(tree, dict) else tree
    if isinstance(items, (str, bytes)) or not isinstance(tree, (dict, list, tuple)):
        return None
    return next((t for t in (first_float(item) for item in items) if t is not None), None)


def _pack(tree: Any, recorder: _Recorder) -> Any:
    if isinstance(tree, torch.Tensor):
        return recorder.value(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(_pack(item, recorder) for item in tree)
    if isinstance(tree, dict):
        return {key: _pack(item, recorder) for key, item in tree.items()}
    return tree
