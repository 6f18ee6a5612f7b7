"""Products of one row with a weight: reading the weight once is all the work."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trtllm_scaffold.standin.kernels.swiglu import gated_silu
from trtllm_scaffold.standin.kernels.waiting import OVERLAP, wait


@triton.jit
def weight_rows(
    x,
    weight,
    row,
    inside,
    width,
    stride,
    WAIT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Dot product of ``x`` [width] with each weight row of ``row`` [ROWS], in float32.

    The first weights are on their way before ``x`` is there: they depend on no kernel.
    """
    start = weight + row.to(tl.int64)[:, None] * stride
    column = tl.arange(0, BLOCK)
    real = column < width
    held = tl.load(start + column[None, :], mask=inside[:, None] & real[None, :], other=0.0)
    if WAIT:
        wait()
    value = tl.load(x + column, mask=real, other=0.0)
    total = held.to(tl.float32) * value.to(tl.float32)[None, :]
    for first in range(BLOCK, width, BLOCK):
        column = first + tl.arange(0, BLOCK)
        real = column < width
        held = tl.load(start + column[None, :], mask=inside[:, None] & real[None, :], other=0.0)
        value = tl.load(x + column, mask=real, other=0.0)
        total += held.to(tl.float32) * value.to(tl.float32)[None, :]
    return tl.sum(total, 1)


@triton.jit
def _matvec(
    x,
    weight,
    bias,
    out,
    rows,
    width,
    stride,
    limit,
    gain,
    offset,
    BIAS: tl.constexpr,
    GATED: tl.constexpr,
    LIMITED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    value = weight_rows(x, weight, row, inside, width, stride, True, ROWS, BLOCK)
    if GATED:
        # Rows of the up projection follow those of the gate.
        up = weight_rows(x, weight, row + rows, inside, width, stride, False, ROWS, BLOCK)
        value = gated_silu(value, up, limit, gain, offset, LIMITED)
    if BIAS:
        value += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row, value.to(out.dtype.element_ty), mask=inside)


def matvec(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` [..., in] of one row times ``weight`` [out, in], plus ``bias`` [out]."""
    return _product(x, weight, bias, weight.shape[0])


def matvec_swiglu(
    x: torch.Tensor,
    weight: torch.Tensor,
    limit: float | None = None,
    gain: float = 1.0,
    offset: float = 0.0,
) -> torch.Tensor:
    """The gated SiLU of ``x`` [..., in] times ``weight`` [2 * out, in], gate rows first."""
    return _product(x, weight, None, weight.shape[0] // 2, (limit, gain, offset))


def _product(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: int,
    gate: tuple[float | None, float, float] | None = None,
) -> torch.Tensor:
    out = torch.empty(*x.shape[:-1], rows, dtype=x.dtype, device=x.device)
    limit, gain, offset = gate or (None, 1.0, 0.0)
    shape = launch_shape(rows, weight.shape[1])
    _matvec[(triton.cdiv(rows, shape["ROWS"]),)](
        x,
        weight,
        weight if bias is None else bias,
        out,
        rows,
        weight.shape[1],
        weight.stride(0),
        limit or 0.0,
        gain,
        offset,
        BIAS=bias is not None,
        GATED=gate is not None,
        LIMITED=limit is not None,
        **shape,
        **OVERLAP,
    )
    return out


def launch_shape(rows: int, width: int) -> dict[str, int]:
    """Weight rows and columns of a program's tile, and its warps."""
    # The best of a sweep over the shapes of 1.5B and 8B models on an H100, or within 2 % of it.
    return {"ROWS": 2, "BLOCK": min(triton.next_power_of_2(width), 2048), "num_warps": 2}
