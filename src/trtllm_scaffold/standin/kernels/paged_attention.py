"""Attention of one new token per sequence over the paged cache, split along the keys.

The keys of a sequence are cut into parts that run side by side; each part keeps its own running
maximum and sum, and a second kernel joins them (Dao et al., Flash-Decoding, 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from trtllm_scaffold.standin.kernels.waiting import OVERLAP, wait

#: Keys of one step of a program.
TILE = 32
#: Most parts that a sequence is cut into.
MOST_PARTS = 32


@triton.jit
def _part(
    query,
    cache,
    table,
    kv_lens,
    sinks,
    out,
    maxima,
    sums,
    scale,
    window,
    softcap,
    tokens_per_block,
    rows_per_block,
    table_width,
    kv_heads,
    groups,
    head_dim,
    query_stride,
    parts,
    SINKS: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINGLE: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    sequence, kv_head, part = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    wait()
    length = tl.load(kv_lens + sequence).to(tl.int32)
    begin = tl.maximum(length - window, 0) // TILE * TILE
    tiles = tl.cdiv(tl.cdiv(length - begin, TILE), parts)
    first = begin + part * tiles * TILE
    last = tl.minimum(first + tiles * TILE, length)
    member, column = tl.arange(0, GROUPS), tl.arange(0, BLOCK)
    real_head, real_column = member < groups, column < head_dim
    head = kv_head * groups + member
    place = query + sequence * query_stride + head[:, None] * head_dim + column[None, :]
    real = real_head[:, None] & real_column[None, :]
    asked = tl.load(place, mask=real, other=0.0)
    highest = tl.full([GROUPS], float("-inf"), tl.float32)
    total = tl.zeros([GROUPS], tl.float32)
    mean = tl.zeros([GROUPS, BLOCK], tl.float32)
    for start in range(first, last, TILE):
        key = start + tl.arange(0, TILE)
        seen = (key < last) & (key >= length - window)
        block = tl.load(
            table + sequence * table_width + key // tokens_per_block, mask=seen, other=0
        )
        row = block.to(tl.int64) * rows_per_block + key % tokens_per_block
        row = (row * kv_heads + kv_head) * head_dim
        whole = seen[:, None] & real_column[None, :]
        keys = tl.load(cache + row[:, None] + column[None, :], mask=whole, other=0.0)
        values_row = row + tokens_per_block * kv_heads * head_dim
        values = tl.load(cache + values_row[:, None] + column[None, :], mask=whole, other=0.0)
        score = tl.dot(asked, tl.trans(keys.to(asked.dtype))) * scale
        if SOFTCAP:
            turned = tl.exp(-2.0 * tl.abs(score) / softcap)
            score = tl.where(score < 0, -1.0, 1.0) * softcap * (1.0 - turned) / (1.0 + turned)
        score = tl.where(seen[None, :], score, float("-inf"))
        raised = tl.maximum(highest, tl.max(score, 1))
        # A tile may be invisible as a whole: its maximum must not become NaN.
        safe = tl.where(raised == float("-inf"), 0.0, raised)
        weight = tl.exp(score - safe[:, None])
        shrink = tl.exp(highest - safe)
        total = total * shrink + tl.sum(weight, 1)
        mean = mean * shrink[:, None] + tl.dot(weight.to(asked.dtype), values.to(asked.dtype))
        highest = raised
    all_heads = kv_heads * groups
    if SINGLE:
        if SINKS:
            sink = tl.load(sinks + head, mask=real_head, other=0.0).to(tl.float32)
            raised = tl.maximum(highest, sink)
            mean = mean * tl.exp(highest - raised)[:, None]
            total = total * tl.exp(highest - raised) + tl.exp(sink - raised)
        where = out + (sequence * all_heads + head[:, None]) * head_dim + column[None, :]
        mean = mean / total[:, None]
        tl.store(where, mean.to(out.dtype.element_ty), mask=real)
    else:
        slot = (sequence * all_heads + head) * parts + part
        tl.store(maxima + slot, highest, mask=real_head)
        tl.store(sums + slot, total, mask=real_head)
        tl.store(out + slot[:, None] * head_dim + column[None, :], mean, mask=real)


@triton.jit
def _join(
    partial,
    maxima,
    sums,
    sinks,
    out,
    heads,
    head_dim,
    parts,
    SINKS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64)
    part, column = tl.arange(0, PARTS), tl.arange(0, BLOCK)
    real_part, real_column = part < parts, column < head_dim
    slot = index * parts + part
    wait()
    highest = tl.load(maxima + slot, mask=real_part, other=float("-inf"))
    top = tl.max(highest, 0)
    if SINKS:
        sink = tl.load(sinks + index % heads).to(tl.float32)
        top = tl.maximum(top, sink)
    share = tl.exp(highest - top)
    total = tl.sum(tl.load(sums + slot, mask=real_part, other=0.0) * share, 0)
    if SINKS:
        total += tl.exp(sink - top)
    whole = real_part[:, None] & real_column[None, :]
    mean = tl.load(partial + slot[:, None] * head_dim + column[None, :], mask=whole, other=0.0)
    joined = tl.sum(mean * share[:, None], 0) / total
    where = out + index * head_dim + column
    tl.store(where, joined.to(out.dtype.element_ty), mask=real_column)


@dataclass(frozen=True)
class Paged:
    """Where the keys of a run of sequences are.

    Attributes:
        cache: ``[blocks, 2, tokens_per_block, kv_heads, head_dim]`` of one layer of a pool.
        table: ``[sequences, blocks]`` block of each run of ``tokens_per_block`` positions.
        kv_lens: ``[sequences]`` keys of each sequence.
        longest: Keys of the longest sequence that may come, for the number of parts.
    """

    cache: torch.Tensor
    table: torch.Tensor
    kv_lens: torch.Tensor
    longest: int


def parts_of(sequences: int, kv_heads: int, longest: int) -> int:
    """How many parts keep the GPU busy: about two programs for each of 132 multiprocessors."""
    wanted = max(264 // (sequences * kv_heads), 1)
    return max(min(wanted, triton.cdiv(longest, 2 * TILE), MOST_PARTS), 1)


def paged_attention(
    query: torch.Tensor,
    paged: Paged,
    *,
    scale: float,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of ``query`` [sequences, heads, head_dim] to all keys of its sequence.

    Args:
        query: One token per sequence; the last two axes contiguous.
        paged: The keys and values, those of the new token included.
        scale: Factor of the scores.
        window: Visible keys, the query's own included.
        sinks: ``[heads]`` logits that take part in the softmax without a value.
        softcap: Scores become ``softcap * tanh(score / softcap)``.
    """
    sequences, heads, head_dim = query.shape
    kv_heads = paged.cache.shape[3]
    reach = paged.longest if window is None else min(window, paged.longest)
    parts = parts_of(sequences, kv_heads, reach)
    out = torch.empty(sequences, heads, head_dim, dtype=query.dtype, device=query.device)
    shape = (sequences, heads, parts)
    partial, maxima, sums = out, out, out
    if parts > 1:
        make = {"dtype": torch.float32, "device": query.device}
        partial = torch.empty(*shape, head_dim, **make)
        maxima, sums = torch.empty(shape, **make), torch.empty(shape, **make)
    block = triton.next_power_of_2(head_dim)
    _part[(sequences, kv_heads, parts)](
        query,
        paged.cache,
        paged.table,
        paged.kv_lens,
        query if sinks is None else sinks,
        partial,
        maxima,
        sums,
        scale,
        (1 << 30) if window is None else window,
        softcap or 0.0,
        paged.cache.shape[2],
        paged.cache.stride(0) // paged.cache.stride(2),
        paged.table.stride(0),
        kv_heads,
        heads // kv_heads,
        head_dim,
        query.stride(0),
        parts,
        SINKS=sinks is not None,
        SOFTCAP=softcap is not None,
        SINGLE=parts == 1,
        GROUPS=max(triton.next_power_of_2(heads // kv_heads), 16),
        BLOCK=block,
        TILE=TILE,
        num_warps=4,
        **OVERLAP,
    )
    if parts > 1:
        _join[(sequences * heads,)](
            partial,
            maxima,
            sums,
            query if sinks is None else sinks,
            out,
            heads,
            head_dim,
            parts,
            SINKS=sinks is not None,
            PARTS=triton.next_power_of_2(parts),
            BLOCK=block,
            num_warps=2,
            **OVERLAP,
        )
    return out
