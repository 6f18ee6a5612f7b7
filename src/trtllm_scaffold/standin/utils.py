"""Small helpers of ``tensorrt_llm._utils`` and ``tensorrt_llm._torch.utils``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum, IntEnum
from typing import Any

import torch
import torch.nn.functional as F

_extra_attrs: ContextVar[dict[str, Any] | None] = ContextVar("model_extra_attrs", default=None)

_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int64": torch.int64,
    "int32": torch.int32,
    "int8": torch.int8,
    "bool": torch.bool,
    "fp8": torch.float8_e4m3fn,
}


class AuxStreamType(Enum):
    """Side streams that modules share."""

    Attention = 1
    MoeShared = 2
    MoeChunkingOverlap = 3
    MoeBalancer = 4
    MoeOutputMemset = 5


class EventType(Enum):
    """Events that order the side streams."""

    Main = 0
    Attention = 1
    MoeShared = 2
    MoeChunkingOverlap = 3
    MoeBalancer = 4
    MoeOutputMemset = 5


class ActivationType(IntEnum):
    """Activations of expert kernels. 1.2 lacks the last one."""

    InvalidType = 0
    Identity = 1
    Gelu = 2
    Relu = 3
    Silu = 4
    Swiglu = 5
    Geglu = 6
    SwigluBias = 7
    Relu2 = 8
    SiTu = 9


def get_model_extra_attrs() -> dict[str, Any] | None:
    """The string-keyed attributes of the model being built, None outside of construction."""
    return _extra_attrs.get()


@contextmanager
def model_extra_attrs(attrs: dict[str, Any]) -> Iterator[None]:
    """Expose ``attrs`` as the attributes of the model being built."""
    token = _extra_attrs.set(attrs)
    try:
        yield
    finally:
        _extra_attrs.reset(token)


def relu2(x: torch.Tensor) -> torch.Tensor:
    """Squared ReLU."""
    return F.relu(x).square()


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh form."""
    return F.gelu(x, approximate="tanh")


def str_dtype_to_torch(dtype: str) -> torch.dtype:
    """The torch dtype named ``dtype``.

    Raises:
        KeyError: If the name is unknown.
    """
    return _DTYPES[dtype]


def torch_dtype_to_str(dtype: torch.dtype) -> str:
    """The name of a torch dtype (``fp8`` for e4m3).

    Raises:
        KeyError: If the dtype has no name here.
    """
    return {value: name for name, value in _DTYPES.items()}[dtype]


def get_sm_version() -> int:
    """Compute capability as ``10 * major + minor``, 0 without CUDA."""
    if not torch.cuda.is_available():
        return 0
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


def mpi_rank() -> int:
    """Rank of this process, 0 without a process group."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def mpi_world_size() -> int:
    """Number of processes, 1 without a process group."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def mpi_disabled() -> bool:
    """Always: the stand-in communicates by torch.distributed."""
    return True
