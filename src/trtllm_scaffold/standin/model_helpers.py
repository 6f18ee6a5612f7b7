"""Small names of the library that model files import besides the layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

#: No flashinfer behind the stand-in: model files take their plain PyTorch branch.
IS_FLASHINFER_AVAILABLE = False


@dataclass
class Fp4QuantizedTensor:
    """Packed 4-bit activations and their scales; the stand-in never makes one."""

    fp4_tensor: torch.Tensor
    scaling_factor: torch.Tensor

    @property
    def shape(self) -> torch.Size:
        """Shape of the packed tensor."""
        return self.fp4_tensor.shape


def inference_mode_unless_compiling(function: F) -> F:
    """Run under inference mode, except while torch.compile traces (1.4)."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        with torch.inference_mode():
            return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def maybe_alias_or_copy_tensor(target: torch.Tensor, source: torch.Tensor) -> None:
    """Fill a parameter (the library may share the memory instead; here always a copy)."""
    target.data.copy_(source)


def can_access_peer(mapping: Any) -> bool:
    """Whether the ranks' devices reach each other's memory: never here."""
    return False


def split_matrix_tp(v: torch.Tensor, tensor_parallel: int, rank: int, dim: int) -> torch.Tensor:
    """One rank's equal part of a matrix along ``dim``."""
    return v if tensor_parallel == 1 else v.chunk(tensor_parallel, dim)[rank].contiguous()


class HfLoraLoader:
    """Named by model files for adapters with their own vocabulary, which are not modelled.

    Raises:
        NotImplementedError: Always.
    """

    def __init__(self, lora_dirs: list[str]) -> None:
        raise NotImplementedError("the stand-in loads no adapter files")


@contextmanager
def nvtx_range(msg: str, color: str = "grey", domain: str = "TensorRT-LLM", category: Any = None):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """A profiler range that marks nothing; also a decorator."""
    yield
