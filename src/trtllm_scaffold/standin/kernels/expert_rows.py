"""Experts of a few tokens: each chosen expert's weights are read where they are."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trtllm_scaffold.standin.kernels.matvec import launch_shape, weight_rows
from trtllm_scaffold.standin.kernels.swiglu import gated_silu
from trtllm_scaffold.standin.kernels.waiting import OVERLAP, wait


@triton.jit
def _first(
    x,
    weight,
    chosen,
    out,
    inner,
    width,
    first_expert,
    experts,
    top_k,
    limit,
    gain,
    offset,
    LIMITED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pair = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row < inner
    wait()
    expert = tl.load(chosen + pair).to(tl.int64) - first_expert
    if (expert >= 0) & (expert < experts):
        mine = weight + expert * 2 * inner * width
        token = x + (pair // top_k) * width
        # Rows of the up projection come before those of the gate.
        up = weight_rows(token, mine, row, inside, width, width, False, ROWS, BLOCK)
        gate = weight_rows(token, mine, row + inner, inside, width, width, False, ROWS, BLOCK)
        value = gated_silu(gate, up, limit, gain, offset, LIMITED)
        tl.store(out + pair * inner + row, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _second(
    hidden,
    weight,
    chosen,
    share,
    out,
    rows,
    inner,
    first_expert,
    experts,
    top_k,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    wait()
    total = tl.zeros([ROWS], tl.float32)
    for place in range(top_k):
        pair = token * top_k + place
        expert = tl.load(chosen + pair).to(tl.int64) - first_expert
        if (expert >= 0) & (expert < experts):
            mine = weight + expert * rows * inner
            value = weight_rows(
                hidden + pair * inner, mine, row, inside, inner, inner, False, ROWS, BLOCK
            )
            total += value * tl.load(share + pair).to(tl.float32)
    tl.store(out + token * rows + row, total.to(out.dtype.element_ty), mask=inside)


def few_tokens(
    x: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    chosen: torch.Tensor,
    share: torch.Tensor,
    *,
    first_expert: int = 0,
    constants: tuple[float | None, float, float] = (None, 1.0, 0.0),
) -> torch.Tensor:
    """The weighted sum of the gated SiLU experts that each token chose, ``[tokens, hidden]``.

    Args:
        x: ``[tokens, hidden]``, contiguous.
        first: ``[experts, 2 * inner, hidden]``, up rows before gate rows.
        second: ``[experts, hidden, inner]``.
        chosen: ``[tokens, top_k]`` numbers of experts; those not held here add nothing.
        share: ``[tokens, top_k]`` weight of each.
        first_expert: Number of the first expert held here.
        constants: Limit, gain and offset of the activation.
    """
    tokens, hidden = x.shape
    top_k, inner = chosen.shape[1], second.shape[2]
    between = torch.empty(tokens * top_k, inner, dtype=x.dtype, device=x.device)
    limit, gain, offset = constants
    shape = launch_shape(inner, hidden)
    _first[(tokens * top_k, triton.cdiv(inner, shape["ROWS"]))](
        x,
        first,
        chosen,
        between,
        inner,
        hidden,
        first_expert,
        first.shape[0],
        top_k,
        limit or 0.0,
        gain,
        offset,
        LIMITED=limit is not None,
        **shape,
        **OVERLAP,
    )
    out = torch.empty_like(x)
    shape = launch_shape(hidden, inner)
    _second[(tokens, triton.cdiv(hidden, shape["ROWS"]))](
        between,
        second,
        chosen,
        share,
        out,
        hidden,
        inner,
        first_expert,
        first.shape[0],
        top_k,
        **shape,
        **OVERLAP,
    )
    return out
