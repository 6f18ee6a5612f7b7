"""RMSNorm in one pass over a row, the residual added on the way."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trtllm_scaffold.standin.kernels.waiting import OVERLAP, wait


@triton.jit
def _rms_norm(
    x,
    residual,
    weight,
    out,
    width,
    eps,
    x_stride,
    residual_stride,
    out_stride,
    ADD: tl.constexpr,
    PLUS_ONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    factor = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    wait()
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        place = residual + row * residual_stride + column
        value += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        tl.store(place, value.to(residual.dtype.element_ty), mask=inside)
    if PLUS_ONE:
        factor += 1.0
    scale = 1.0 / tl.sqrt(tl.sum(value * value, 0) / width + eps)
    normed = value * scale * factor
    tl.store(out + row * out_stride + column, normed.to(out.dtype.element_ty), mask=inside)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    plus_one: bool = False,
) -> torch.Tensor:
    """``x / sqrt(mean(x^2) + eps) * weight`` of ``[..., width]``, float32 inside.

    Args:
        x: ``[..., width]``; overwritten if there is a residual.
        weight: ``[width]``.
        eps: Added to the mean square.
        residual: Like ``x``: added first, and overwritten by the sum.
        plus_one: Whether the factor is ``1 + weight``.
    """
    rows = x.view(-1, x.shape[-1]) if x.is_contiguous() else x.reshape(-1, x.shape[-1])
    out = torch.empty_like(rows) if residual is None else rows
    added = rows if residual is None else residual.view(-1, x.shape[-1])
    block = triton.next_power_of_2(rows.shape[1])
    _rms_norm[(rows.shape[0],)](
        rows,
        added,
        weight,
        out,
        rows.shape[1],
        eps,
        rows.stride(0),
        added.stride(0),
        out.stride(0),
        ADD=residual is not None,
        PLUS_ONE=plus_one,
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
        **OVERLAP,
    )
    return out.view(x.shape)
