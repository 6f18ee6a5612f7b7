"""Rotation of fused queries and keys, and the way of keys and values into the paged cache."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trtllm_scaffold.standin.kernels.waiting import OVERLAP, wait


@triton.jit
def _pair(column, half, NEOX: tl.constexpr):
    """Partner of each rotated dimension, its frequency, and the sign of the partner's sine."""
    if NEOX:
        first = column < half
        return tl.where(first, column + half, column - half), column % half, first
    first = column % 2 == 0
    return tl.where(first, column + 1, column - 1), column // 2, first


@triton.jit
def _rotate_store(
    qkv,
    table,
    positions,
    cache,
    slots,
    heads,
    kv_heads,
    head_dim,
    half,
    qkv_stride,
    value_rows,
    ROTATE: tl.constexpr,
    STORE: tl.constexpr,
    NEOX: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (head < heads + 2 * kv_heads) & (column < head_dim)
    start = qkv + token * qkv_stride + head * head_dim
    wait()
    value = tl.load(start + column, mask=inside, other=0.0)
    if ROTATE:
        turned = inside & (head < heads + kv_heads) & (column < 2 * half)
        partner, frequency, first = _pair(column, half, NEOX)
        other = tl.load(start + partner, mask=turned, other=0.0).to(tl.float32)
        angle = table + tl.load(positions + token).to(tl.int64) * (2 * half) + frequency
        cos = tl.load(angle, mask=column < 2 * half, other=1.0)
        sin = tl.load(angle + half, mask=column < 2 * half, other=0.0)
        wide = value.to(tl.float32) * cos + tl.where(first, -other, other) * sin
        value = tl.where(turned, wide.to(qkv.dtype.element_ty), value)
        # Every partner must have been read before one is overwritten.
        tl.debug_barrier()
        tl.store(start + column, value, mask=turned)
    if STORE:
        place = (head - heads) % kv_heads
        row = tl.load(slots + token).to(tl.int64)
        row += tl.where(head < heads + kv_heads, 0, value_rows)
        target = cache + (row * kv_heads + place) * head_dim + column
        tl.store(target, value.to(cache.dtype.element_ty), mask=inside & (head >= heads))


def rotate_and_store(
    qkv: torch.Tensor,
    sizes: tuple[int, int, int],
    *,
    rope: tuple[torch.Tensor, torch.Tensor, bool] | None = None,
    cache: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """Rotate queries and keys in place, then write keys and values to the cache.

    Args:
        qkv: ``[tokens, (heads + 2 * kv_heads) * head_dim]``, contiguous rows.
        sizes: Query heads, key/value heads and head_dim.
        rope: ``[max_positions, 2, rotary / 2]`` float32 cos and sin, ``[tokens]`` positions and
            whether halves are paired (else neighbours).
        cache: ``[blocks, 2, tokens_per_block, kv_heads, head_dim]`` and the ``[tokens]`` row of
            each key in it, as in ``attention.kernel.slots_of_tokens``.
    """
    heads, kv_heads, head_dim = sizes
    table, positions, neox = rope or (qkv, qkv, True)
    store, slots = cache or (qkv, qkv)
    together = 8  # heads of one program
    _rotate_store[(qkv.shape[0], triton.cdiv(heads + 2 * kv_heads, together))](
        qkv,
        table,
        positions,
        store,
        slots,
        heads,
        kv_heads,
        head_dim,
        table.shape[-1] if rope else 0,
        qkv.stride(0),
        store.shape[2] if cache else 0,
        ROTATE=rope is not None,
        STORE=cache is not None,
        NEOX=neox,
        HEADS=together,
        BLOCK=triton.next_power_of_2(head_dim),
        num_warps=4,
        **OVERLAP,
    )


@triton.jit
def _rotated(
    source,
    out,
    table,
    positions,
    heads,
    head_dim,
    half,
    source_stride,
    NEOX: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (head < heads) & (column < head_dim)
    turned = inside & (column < 2 * half)
    partner, frequency, first = _pair(column, half, NEOX)
    start = source + token * source_stride + head * head_dim
    wait()
    value = tl.load(start + column, mask=inside, other=0.0)
    other = tl.load(start + partner, mask=turned, other=0.0).to(tl.float32)
    angle = table + tl.load(positions + token).to(tl.int64) * (2 * half) + frequency
    cos = tl.load(angle, mask=column < 2 * half, other=1.0)
    sin = tl.load(angle + half, mask=column < 2 * half, other=0.0)
    wide = value.to(tl.float32) * cos + tl.where(first, -other, other) * sin
    value = tl.where(turned, wide.to(source.dtype.element_ty), value)
    tl.store(out + (token * heads + head) * head_dim + column, value, mask=inside)


def rotated(
    source: torch.Tensor,
    head_dim: int,
    table: torch.Tensor,
    positions: torch.Tensor,
    neox: bool,
) -> torch.Tensor:
    """The heads of ``source``, rotated.

    Args:
        source: ``[tokens, heads * head_dim]``, the heads of a token contiguous.
        head_dim: Width of a head.
        table: ``[max_positions, 2, rotary / 2]`` float32 cos and sin.
        positions: ``[tokens]``.
        neox: Whether halves are paired, else neighbours.
    """
    heads = source.shape[1] // head_dim
    out = torch.empty(source.shape, dtype=source.dtype, device=source.device)
    together = min(triton.next_power_of_2(heads), 8)  # heads of one program
    _rotated[(source.shape[0], triton.cdiv(heads, together))](
        source,
        out,
        table,
        positions,
        heads,
        head_dim,
        table.shape[-1],
        source.stride(0),
        NEOX=neox,
        HEADS=together,
        BLOCK=triton.next_power_of_2(head_dim),
        num_warps=4,
        **OVERLAP,
    )
    return out


@triton.jit
def _norm_rotate(
    qkv,
    q_weight,
    k_weight,
    frequencies,
    positions,
    heads,
    kv_heads,
    head_dim,
    half,
    qkv_stride,
    eps,
    magnitude,
    NORM: tl.constexpr,
    NEOX: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (head < heads + kv_heads) & (column < head_dim)
    turned = inside & (column < 2 * half)
    partner, frequency, first = _pair(column, half, NEOX)
    start = qkv + token * qkv_stride + head * head_dim
    wait()
    value = tl.load(start + column, mask=inside, other=0.0).to(tl.float32)
    other = tl.load(start + partner, mask=turned, other=0.0).to(tl.float32)
    if NORM:
        scale = 1.0 / tl.sqrt(tl.sum(value * value, 1) / head_dim + eps)
        value = value * scale[:, None]
        other = other * scale[:, None]
        value *= _factor(q_weight, k_weight, head < heads, column, column < head_dim)
        other *= _factor(q_weight, k_weight, head < heads, partner, column < 2 * half)
    turn = tl.load(positions + token).to(tl.float32)
    turn *= tl.load(frequencies + frequency, mask=column < 2 * half, other=0.0)
    cos, sin = tl.cos(turn) * magnitude, tl.sin(turn) * magnitude
    wide = value * cos + tl.where(first, -other, other) * sin
    value = tl.where(turned, wide, value)
    tl.debug_barrier()
    tl.store(start + column, value.to(qkv.dtype.element_ty), mask=inside)


@triton.jit
def _factor(q_weight, k_weight, is_query, column, real):
    """The norm's factor of each dimension of query and of key heads."""
    of_query = tl.load(q_weight + column, mask=real, other=0.0).to(tl.float32)
    of_key = tl.load(k_weight + column, mask=real, other=0.0).to(tl.float32)
    return tl.where(is_query, of_query, of_key)


def norm_and_rotate(
    qkv: torch.Tensor,
    sizes: tuple[int, int, int],
    weights: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    frequencies: torch.Tensor,
    magnitude: float,
    positions: torch.Tensor,
    neox: bool,
) -> None:
    """RMS norm of each query and key head, then rotation, in place.

    Args:
        qkv: ``[tokens, (heads + 2 * kv_heads) * head_dim]``, contiguous rows.
        sizes: Query heads, key/value heads and head_dim.
        weights: ``[head_dim]`` factors of queries and of keys, or None for no norm.
        eps: Added to the mean square.
        frequencies: ``[rotary / 2]`` float32 radians per position.
        magnitude: Factor of cos and sin.
        positions: ``[tokens]``.
        neox: Whether halves are paired, else neighbours.
    """
    heads, kv_heads, head_dim = sizes
    q_weight, k_weight = weights or (qkv, qkv)
    together = 8  # heads of one program
    _norm_rotate[(qkv.shape[0], triton.cdiv(heads + kv_heads, together))](
        qkv,
        q_weight,
        k_weight,
        frequencies,
        positions,
        heads,
        kv_heads,
        head_dim,
        frequencies.shape[0],
        qkv.stride(0),
        eps,
        magnitude,
        NORM=weights is not None,
        NEOX=neox,
        HEADS=together,
        BLOCK=triton.next_power_of_2(head_dim),
        num_warps=4,
        **OVERLAP,
    )
