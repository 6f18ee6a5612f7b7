"""Collectives over the tensor-parallel group and hand-over along the pipeline, by torch.

One process is one rank: the rank of a Mapping is the rank in ``torch.distributed``. Alone
(size 1) every collective is the identity, so any rank's shard can be built in one process as long
as nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from trtllm_scaffold.standin import compiled_ops
from trtllm_scaffold.standin.functional import (
    AllReduceFusionOp,
    AllReduceParams,
    AllReduceStrategy,
)
from trtllm_scaffold.standin.generation import contract
from trtllm_scaffold.standin.mapping import Mapping

_groups: dict[tuple[Any, tuple[int, ...]], Any] = {}


def process_group(ranks: Sequence[int]) -> Any:
    """The process group of some world ranks; made by its members when they first need it.

    Raises:
        RuntimeError: If ``torch.distributed`` is not initialised, has too few processes, or this
            process is none of them.
    """
    if not dist.is_initialized():
        raise RuntimeError(
            f"ranks {list(ranks)} must exchange tensors, but torch.distributed is not initialised: "
            "a model of several ranks can be built and loaded in one process, not run"
        )
    if max(ranks) >= dist.get_world_size() or dist.get_rank() not in ranks:
        raise RuntimeError(
            f"process {dist.get_rank()} of {dist.get_world_size()} runs a model whose Mapping "
            f"exchanges among the ranks {list(ranks)}"
        )
    world = dist.group.WORLD
    if len(ranks) == dist.get_world_size():
        return world
    key = (id(world), tuple(ranks))
    if key not in _groups:
        _groups[key] = dist.new_group(list(ranks), use_local_synchronization=True)
    return _groups[key]


def all_reduce_sum(tensor: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """Sum of the ranks' tensors, a new tensor. Half types are summed in float32 on the CPU."""
    if torch.compiler.is_compiling():
        return compiled_ops.all_reduce_sum(tensor, ranks)
    group = process_group(ranks)
    wide = tensor.is_cpu and tensor.dtype in (torch.float16, torch.bfloat16)
    total = tensor.float() if wide else tensor.clone()
    total = total.contiguous()
    dist.all_reduce(total, group=group)
    return total.to(tensor.dtype)


@contract("tensorrt_llm._torch.distributed.AllReduce")
class AllReduce(nn.Module):
    """Sum over the tensor-parallel group; identity at size 1."""

    def __init__(
        self,
        mapping: Mapping,
        strategy: AllReduceStrategy = AllReduceStrategy.AUTO,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mapping = mapping
        self.strategy = strategy

    def forward(
        self, input: torch.Tensor, *, all_reduce_params: AllReduceParams | None = None
    ) -> Any:
        """The sum, or what the fusion makes of it.

        Returns:
            A tensor like ``input``; ``(normed, residual)`` for RESIDUAL_RMS_NORM.

        Raises:
            NotImplementedError: For fusions that quantise.
        """
        params = all_reduce_params
        if self.mapping.tp_size == 1 or (params is not None and not params.enable_allreduce):
            return input
        total = all_reduce_sum(input, self.mapping.tp_group)
        return total if params is None else _fuse(total, params)

    def uses_nccl_window(self) -> bool:
        """Never: the stand-in has no window tensors."""
        return False


def _fuse(total: torch.Tensor, params: AllReduceParams) -> Any:
    if params.bias is not None:
        total = total + params.bias
    operation = AllReduceFusionOp(params.fusion_op)
    if operation not in _FUSIONS:
        raise NotImplementedError(f"the stand-in does not fuse {operation.name} into an all-reduce")
    return _FUSIONS[operation](total, params)


def _no_fusion(total: torch.Tensor, params: AllReduceParams) -> torch.Tensor:
    return total


def _residual_norm(
    total: torch.Tensor, params: AllReduceParams
) -> tuple[torch.Tensor, torch.Tensor]:
    assert params.residual is not None
    wide = total.float() + params.residual.float()
    return _rms_norm(wide, params).to(total.dtype), wide.to(total.dtype)


def _norm(total: torch.Tensor, params: AllReduceParams) -> torch.Tensor:
    return _rms_norm(total.float(), params).to(total.dtype)


def _rms_norm(wide: torch.Tensor, params: AllReduceParams) -> torch.Tensor:
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + params.eps)
    return normed if params.norm_weight is None else normed * params.norm_weight.float()


_FUSIONS: dict[AllReduceFusionOp, Callable[[torch.Tensor, AllReduceParams], Any]] = {
    AllReduceFusionOp.NONE: _no_fusion,
    AllReduceFusionOp.RESIDUAL_RMS_NORM: _residual_norm,
    AllReduceFusionOp.RMS_NORM: _norm,
}


def allgather(input: Any, mapping: Mapping, dim: int = -1, sizes: list[int] | None = None) -> Any:
    """Concatenate the tensors of the tensor-parallel group.

    Args:
        input: A tensor or a list of tensors (None stays None).
        mapping: Whose group.
        dim: Along which dimension.
        sizes: Sizes along ``dim`` per rank where they differ.

    Returns:
        The whole tensor on every rank, or a list of them.
    """
    if mapping.tp_size == 1:
        return input
    if not isinstance(input, torch.Tensor):
        return [item if item is None else allgather(item, mapping, dim, sizes) for item in input]
    dim %= input.ndim
    if sizes is None:
        sizes = [input.shape[dim]] * mapping.tp_size
    assert len(sizes) == mapping.tp_size and input.shape[dim] == sizes[mapping.tp_rank], (
        f"sizes {sizes} do not fit shape {tuple(input.shape)} on rank {mapping.tp_rank}"
    )
    missing = max(sizes) - input.shape[dim]
    padding = [0, 0] * (input.ndim - 1 - dim) + [0, missing]
    own = (F.pad(input, padding) if missing else input).contiguous()
    parts = [torch.empty_like(own) for _ in sizes]
    dist.all_gather(parts, own, group=process_group(mapping.tp_group))
    whole = [part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)]
    return torch.cat(whole, dim=dim)


def reducescatter(
    input: Any, mapping: Mapping, dim: int = -1, sizes: list[int] | None = None
) -> Any:
    """Sum over the tensor-parallel group and keep this rank's part along ``dim``."""
    if mapping.tp_size == 1:
        return input
    if not isinstance(input, torch.Tensor):
        return [
            item if item is None else reducescatter(item, mapping, dim, sizes) for item in input
        ]
    total = all_reduce_sum(input, mapping.tp_group)
    parts = total.split(sizes, dim) if sizes else total.chunk(mapping.tp_size, dim)
    return parts[mapping.tp_rank].contiguous()


def pp_send(tensor: torch.Tensor, mapping: Mapping) -> None:
    """Hand a tensor to the same tensor-parallel rank of the next pipeline stage."""
    dist.send(tensor.contiguous(), dst=mapping.next_pp_rank())


def pp_recv(tensor: torch.Tensor, mapping: Mapping) -> torch.Tensor:
    """Fill ``tensor`` from the previous pipeline stage and return it."""
    dist.recv(tensor, src=mapping.prev_pp_rank())
    return tensor
