"""When a kernel is used instead of its formula."""

from __future__ import annotations

import importlib.util

import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
_TYPES = (torch.bfloat16, torch.float16)


def fits(*tensors: torch.Tensor) -> bool:
    """Whether all are 16-bit tensors on a GPU and there is Triton.

    float32 keeps to the formulas, which the proofs bound by 1e-5; under ``torch.compile`` the
    compiler fuses the formulas itself.
    """
    if not HAS_TRITON or torch.compiler.is_compiling():
        return False
    return all(tensor.is_cuda and tensor.dtype in _TYPES for tensor in tensors)


def is_one_row(x: torch.Tensor) -> bool:
    """Whether ``x`` [..., width] is a single dense row, as in the decoding of one sequence."""
    return x.numel() == x.shape[-1] and x.is_contiguous()
