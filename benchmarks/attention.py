"""Attention of one new token over the paged cache: the stand-in's kernel against FlexAttention.

Usage: python benchmarks/attention.py      (on a GPU; microseconds, both inside of CUDA graphs)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from trtllm_scaffold.bench.timing import timed
from trtllm_scaffold.standin.kernels.paged_attention import Paged, paged_attention

HEADS, KV_HEADS, BLOCK = 32, 8, 32


def captured(work: Callable[[], object]) -> float:
    """Microseconds of one of 20 calls in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            work()
    return timed(graph.replay, per=20).median * 1e3


def compare(head_dim: int, batch: int, length: int) -> str:
    """One line: both times and the largest difference of the results."""
    blocks = length // BLOCK
    options = {"device": "cuda", "dtype": torch.bfloat16}
    cache = torch.randn(batch * blocks, 2, BLOCK, KV_HEADS, head_dim, **options)
    table = torch.randperm(batch * blocks, device="cuda").view(batch, blocks)
    lengths = torch.full((batch,), length, device="cuda")
    query = torch.randn(batch, HEADS, head_dim, **options)
    # A block of values lies behind its block of keys: both are views of the same rows.
    rows = cache.flatten(0, 2)
    count = rows.shape[0] - BLOCK
    keys, values = (
        part[:count].transpose(0, 1).expand(batch, -1, -1, -1) for part in (rows, rows[BLOCK:])
    )
    number = torch.full((batch, 1, 1), blocks, device="cuda", dtype=torch.int32)
    places = torch.zeros(batch, 1, 1, count // BLOCK, device="cuda", dtype=torch.int32)
    places[:, 0, 0, :blocks] = 2 * table
    logical = torch.zeros(batch, 2 * batch * blocks + 2, device="cuda", dtype=torch.int32)
    order = torch.arange(blocks, device="cuda", dtype=torch.int32).expand(batch, -1)
    logical.scatter_(1, 2 * table, order)

    def seen(b, _head, _query, k):  # noqa: ANN001, ANN202
        return logical[b, k // BLOCK] * BLOCK + k % BLOCK < lengths[b]

    mask = BlockMask.from_kv_blocks(
        number,
        places,
        torch.zeros_like(number),
        torch.zeros_like(places),
        BLOCK_SIZE=(128, BLOCK),
        mask_mod=seen,
        seq_lengths=(1, count),
    )
    torch._dynamo.reset()
    flex = torch.compile(flex_attention, dynamic=False)

    def theirs() -> torch.Tensor:
        asked = query.unsqueeze(2)
        return flex(asked, keys, values, block_mask=mask, scale=0.1, enable_gqa=True)

    def ours() -> torch.Tensor:
        return paged_attention(query, Paged(cache, table, lengths, length), scale=0.1)

    apart = (theirs()[:, :, 0].float() - ours().float()).abs().max().item()
    shape = f"head_dim {head_dim}, batch {batch}, {length} tokens"
    return f"{shape}: ours {captured(ours):.1f}, flex {captured(theirs):.1f}, apart {apart:.1e}"


def main() -> None:
    """Every shape."""
    with torch.no_grad():
        for head_dim in (64, 128):
            for batch, length in ((1, 512), (64, 512)):
                print(compare(head_dim, batch, length), flush=True)


if __name__ == "__main__":
    main()
