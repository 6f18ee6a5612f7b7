"""The gated SiLU of a fused gate and up product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trtllm_scaffold.standin.kernels.waiting import OVERLAP, wait


@triton.jit
def gated_silu(gate, up, limit, gain, offset, LIMITED: tl.constexpr):
    """``gate * sigmoid(gain * gate) * (up + offset)``, both clamped before if there is a limit."""
    if LIMITED:
        gate = tl.minimum(gate, limit)
        up = tl.maximum(tl.minimum(up, limit), -limit)
    return gate / (1.0 + tl.exp(-gain * gate)) * (up + offset)


@triton.jit
def _swiglu(
    x,
    out,
    width,
    x_stride,
    gate_at,
    up_at,
    limit,
    gain,
    offset,
    LIMITED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    wait()
    gate = tl.load(x + row * x_stride + gate_at + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_stride + up_at + column, mask=inside, other=0.0).to(tl.float32)
    value = gated_silu(gate, up, limit, gain, offset, LIMITED)
    tl.store(out + row * width + column, value.to(out.dtype.element_ty), mask=inside)


def swiglu(
    x: torch.Tensor,
    limit: float | None = None,
    gain: float = 1.0,
    offset: float = 0.0,
    *,
    up_first: bool = False,
) -> torch.Tensor:
    """``[..., gate | up]`` to ``[..., width]``; see :func:`gated_silu`.

    ``up_first`` takes ``[..., up | gate]`` instead, the order of experts.
    """
    rows = x.reshape(-1, x.shape[-1])
    width = rows.shape[1] // 2
    out = torch.empty(rows.shape[0], width, dtype=x.dtype, device=x.device)
    block = min(triton.next_power_of_2(width), 1024)
    _swiglu[(rows.shape[0], triton.cdiv(width, block))](
        rows,
        out,
        width,
        rows.stride(0),
        width if up_first else 0,
        0 if up_first else width,
        limit or 0.0,
        gain,
        offset,
        LIMITED=limit is not None,
        BLOCK=block,
        num_warps=4,
        **OVERLAP,
    )
    return out.view(*x.shape[:-1], width)
