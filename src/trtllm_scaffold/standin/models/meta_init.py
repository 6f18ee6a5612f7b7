"""MetaInitMode: parameters are made on the meta device, and little may touch them there."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any_only

from trtllm_scaffold.standin.generation import active

aten = torch.ops.aten

#: In-place operations on meta tensors that each generation tolerates besides random ones.
DETERMINISTIC: dict[str, frozenset[Any]] = {
    "1.2": frozenset(),
    "1.4": frozenset({aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default, aten.log.default}),
}


class MetaInitException(RuntimeError):
    """A meta tensor met an operation that is more than initialisation."""


class MetaInitMode(TorchDispatchMode):
    """While active, ``empty`` gives meta tensors and only initialisation may touch them.

    1.2 tolerates random initialisers; ``ones_``, ``zeros_`` and ``fill_`` raise, so a plain
    ``nn.LayerNorm`` cannot be made. 1.4 tolerates ``fill_`` and ``zero_`` as well.

    Raises:
        MetaInitException: By any other operation on a meta tensor.
    """

    init_ops = frozenset({aten.empty.memory_format, aten.empty_like.default})
    random_init_ops = frozenset({aten.normal_.default, aten.uniform_.default})

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Redirect allocations to meta, let initialisers pass, refuse the rest on meta."""
        kwargs = kwargs or {}
        if func in self.init_ops:
            return func(*args, **{**kwargs, "device": torch.device("meta")})
        allowed = func in self.random_init_ops or func in DETERMINISTIC[active()]
        if not allowed and _touches_meta(args, kwargs):
            raise MetaInitException(
                f"{func} on a meta tensor: parameters must not be read, nor set other than by "
                "random initialisers, while the model is built"
            )
        return func(*args, **kwargs)


def _touches_meta(args: Any, kwargs: Any) -> bool:
    def is_meta(tensor: torch.Tensor) -> bool:
        return tensor.device.type == "meta"

    return bool(tree_any_only(torch.Tensor, is_meta, (args, kwargs)))


def materialize(model: torch.nn.Module, device: torch.device) -> None:
    """Give every meta parameter and buffer uninitialised memory on ``device``, then move the rest.

    Shared tensors (tied embeddings) stay shared. The memory is filled with NaN where the type
    has one, so that a parameter that no weight fills shows in the first logits.
    """
    made: dict[torch.Tensor, torch.Tensor] = {}

    def replace(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "meta":
            return tensor
        if tensor not in made:
            fresh = torch.empty_like(tensor, device=device)
            if fresh.is_floating_point() and fresh.element_size() > 1:
                fresh.fill_(float("nan"))
            made[tensor] = fresh
        return made[tensor]

    replaced: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None or parameter.device.type != "meta":
                continue
            if id(parameter) not in replaced:
                fresh = torch.nn.Parameter(replace(parameter), requires_grad=False)
                replaced[id(parameter)] = fresh
            module._parameters[name] = replaced[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = replace(buffer)
    model.to(device)
