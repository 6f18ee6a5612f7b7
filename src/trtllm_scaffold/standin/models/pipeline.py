"""Pipeline parallelism: which modules a stage skips, and the hand-over between stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import EllipsisType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from trtllm_scaffold.standin.logger import logger
from trtllm_scaffold.standin.mapping import Mapping

_MARK = "__standin_handover__"


def iter_modules(
    module: nn.Module, ignore_modules: list[nn.Module] | None = None
) -> Iterator[nn.Module]:
    """Every module below and including ``module``, except ``ignore_modules`` and theirs."""
    ignored = ignore_modules or []
    hidden: list[str] = []
    for name, found in module.named_modules():
        if any(found is other for other in ignored):
            hidden.append(name)
        elif not any(name.startswith(prefix) for prefix in hidden):
            yield found


def remove_weights(module: nn.Module, ignore_modules: list[nn.Module] | None = None) -> None:
    """Forget parameters and buffers of a module, except those of ``ignore_modules``."""
    for found in iter_modules(module, ignore_modules):
        found._parameters.clear()
        found._buffers.clear()


def skip_forward(module: nn.Module, ignore_modules: list[nn.Module] | None = None) -> None:
    """Let a module of another stage pass its inputs through, without weights.

    A module without ``skip_forward`` cannot: it keeps its weights and its real forward runs.
    """
    replacement = getattr(module, "skip_forward", None)
    if replacement is None:
        logger.warning(f"{type(module).__name__} has no skip_forward: it runs on every stage")
        return
    module.forward = replacement
    remove_weights(module, ignore_modules)


def send(tensor: torch.Tensor, mapping: Mapping) -> None:
    """Hand a tensor to the next stage."""
    dist.send(tensor.contiguous(), mapping.next_pp_rank())


def receive(tensor: torch.Tensor, mapping: Mapping) -> None:
    """Fill a tensor from the stage before."""
    dist.recv(tensor, mapping.prev_pp_rank())


def forward_after_recv(forward: Callable[..., Any], mapping: Mapping) -> Callable[..., Any]:
    """A stage's first layer: its hidden states (and residual, if passed) come from outside."""
    if getattr(forward, _MARK, "") == "receives":
        return forward

    def receiving(
        position_ids: torch.Tensor,
        hidden_states: torch.Tensor,
        attn_metadata: Any,
        residual: torch.Tensor | None | EllipsisType = ...,
        **kwargs: Any,
    ) -> Any:
        hidden_states = hidden_states.contiguous()
        receive(hidden_states, mapping)
        if not isinstance(residual, EllipsisType):
            residual = torch.empty_like(hidden_states)
            receive(residual, mapping)
        return forward(position_ids, hidden_states, attn_metadata, residual=residual, **kwargs)

    setattr(receiving, _MARK, "receives")
    return receiving


def forward_before_send(forward: Callable[..., Any], mapping: Mapping) -> Callable[..., Any]:
    """A stage's last layer: what it returns goes to the next stage."""
    if getattr(forward, _MARK, "") == "sends":
        return forward

    def sending(
        position_ids: torch.Tensor,
        hidden_states: torch.Tensor,
        attn_metadata: Any,
        residual: torch.Tensor | None | EllipsisType = ...,
        **kwargs: Any,
    ) -> Any:
        output = forward(position_ids, hidden_states, attn_metadata, residual=residual, **kwargs)
        if isinstance(residual, EllipsisType):
            send(output, mapping)
        else:
            hidden_states, residual = output
            send(hidden_states, mapping)
            send(residual, mapping)
        return output

    setattr(sending, _MARK, "sends")
    return sending


def split_layers(layers: nn.ModuleList, count: int, mapping: Mapping) -> None:
    """Keep this stage's layers and wire its ends to its neighbours.

    The input norm of the next stage's first layer keeps its weights: a fused norm of this
    stage's last layer may read it.
    """
    assert count >= mapping.pp_size, f"{count} layers are not enough for PP{mapping.pp_size}"
    mine = mapping.pp_layers(count)
    for index in range(count):
        layer = layers[index]
        if index not in mine:
            keeps_norm = index - 1 == mine[-1] and hasattr(layer, "input_layernorm")
            skip_forward(layer, [layer.input_layernorm] if keeps_norm else None)
        if index == mine[0] and not mapping.is_first_pp_rank():
            layer.forward = forward_after_recv(layer.forward, mapping)
        if index == mine[-1] and not mapping.is_last_pp_rank():
            layer.forward = forward_before_send(layer.forward, mapping)
