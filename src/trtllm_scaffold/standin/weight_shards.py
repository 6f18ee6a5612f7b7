"""How a checkpoint tensor is cut for a tensor-parallel rank and copied into a parameter."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

import torch

from trtllm_scaffold.standin.generation import contract


class WeightMode(str, enum.Enum):
    """How many checkpoint tensors make up one parameter, and in which order."""

    VANILLA = "vanilla"
    FUSED_QKV_LINEAR = "fused_qkv_linear"
    FUSED_GATE_UP_LINEAR = "fused_gate_up_linear"

    @property
    def shard_keys(self) -> list[str] | None:
        """Names of the parts in the order of the parameter's rows."""
        keys = _SHARD_KEYS[self.value]
        return list(keys) if keys else None

    @property
    def shard_key_to_index(self) -> dict[str, int] | None:
        """Place of each part in the list that is loaded."""
        keys = self.shard_keys
        return None if keys is None else {key: index for index, key in enumerate(keys)}

    @property
    def int_value(self) -> int:
        """Number of parts."""
        return len(_SHARD_KEYS[self.value]) or 1


_SHARD_KEYS: dict[str, tuple[str, ...]] = {
    "vanilla": (),
    "fused_qkv_linear": ("q", "k", "v"),
    "fused_gate_up_linear": ("gate", "up"),
}


class TensorParallelMode(str, enum.Enum):
    """Which dimension of a weight ``[out, in]`` is cut over the tensor-parallel ranks."""

    COLUMN = "column"
    ROW = "row"

    @classmethod
    def split_dim(cls, mode: TensorParallelMode) -> int:
        """Dimension of the weight that is cut."""
        return 1 if mode == cls.ROW else 0

    @classmethod
    def flip(cls, mode: TensorParallelMode) -> TensorParallelMode:
        """The other mode."""
        return cls.ROW if mode == cls.COLUMN else cls.COLUMN


@contract("WeightsLoadingConfig")
@dataclass(kw_only=True)
class WeightsLoadingConfig:
    """How a Linear reads its weights."""

    weight_mode: WeightMode = WeightMode.VANILLA
    ignore_tensor_parallel: bool = False


def load_weight_shard(
    weight: Any,
    tensor_parallel_size: int = 1,
    tensor_parallel_rank: int = 0,
    tensor_parallel_mode: TensorParallelMode | None = None,
    device: torch.device | str | None = torch.device("cpu"),  # noqa: B008  (the real signature)
    return_slice_indices: bool = False,
) -> Any:
    """This rank's part of a checkpoint tensor.

    The width is the ceiling of size over ranks, so the last part may be shorter. A row-parallel
    one-dimensional tensor and a dimension of size one stay whole.

    Args:
        weight: A tensor, or a lazily read safetensors slice (has ``get_shape``).
        tensor_parallel_size: Number of ranks.
        tensor_parallel_rank: This rank.
        tensor_parallel_mode: Which dimension is cut; None keeps the tensor whole.
        device: Where to put the part; None leaves it.
        return_slice_indices: Whether to return ``(part, slices)``.

    Raises:
        ValueError: If ``weight`` is neither.
    """
    if isinstance(weight, torch.Tensor):
        shape = list(weight.shape)
    elif hasattr(weight, "get_shape"):
        shape = list(weight.get_shape())
    else:
        raise ValueError(f"unsupported weight type: {type(weight)}")
    part = _part(shape, tensor_parallel_size, tensor_parallel_rank, tensor_parallel_mode)
    tensor = weight[part]
    tensor = tensor if device is None else tensor.to(device)
    return (tensor, part) if return_slice_indices else tensor


def _part(
    shape: list[int], size: int, rank: int, mode: TensorParallelMode | None
) -> tuple[slice, ...] | Any:
    if mode is None or size <= 1:
        return ...
    dim = TensorParallelMode.split_dim(mode)
    if len(shape) <= dim or shape[dim] == 1:
        return ...
    width = math.ceil(shape[dim] / size)
    cut = [slice(None)] * len(shape)
    cut[dim] = slice(rank * width, min((rank + 1) * width, shape[dim]))
    return tuple(cut)


def copy_weight(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy with a cast to the parameter's dtype.

    Raises:
        AssertionError: If the shapes differ (a broadcast would hide a wrong tensor).
    """
    assert target.shape == source.shape, (
        f"the parameter has shape {tuple(target.shape)}, "
        f"this rank's part of the checkpoint {tuple(source.shape)}"
    )
    target.data.copy_(source.to(target.dtype))
