"""Custom operators that model files call by name, in plain PyTorch."""

from __future__ import annotations

import torch

_library: list[torch.library.Library] = []


def define() -> None:
    """Define ``torch.ops.trtllm.*``, once in a process and never over the real ones."""
    if _library or hasattr(torch.ops.trtllm, "cublas_mm"):
        return
    library = torch.library.Library("trtllm", "DEF")
    library.define(
        "cublas_mm(Tensor mat_a, Tensor mat_b, Tensor? bias=None, ScalarType? out_dtype=None)"
        " -> Tensor"
    )
    library.impl("cublas_mm", _matrix_product, "CompositeExplicitAutograd")
    _library.append(library)


def _matrix_product(
    mat_a: torch.Tensor,
    mat_b: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """``mat_a @ mat_b + bias`` in ``out_dtype``."""
    product = mat_a @ mat_b
    product = product if bias is None else product + bias
    return product if out_dtype is None else product.to(out_dtype)
