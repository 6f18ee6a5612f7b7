"""The step from one decoded token to the next, on the device alone."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trtllm_scaffold.standin.kernels.waiting import OVERLAP, wait


@triton.jit
def _advance(
    position_ids,
    token_positions,
    query_positions,
    kv_lens,
    slots,
    table,
    sequences,
    table_width,
    tokens_per_block,
    rows_per_block,
    BLOCK: tl.constexpr,
):
    sequence = tl.arange(0, BLOCK)
    inside = sequence < sequences
    wait()
    position = tl.load(token_positions + sequence, mask=inside, other=0) + 1
    tl.store(position_ids + sequence, position.to(position_ids.dtype.element_ty), mask=inside)
    tl.store(token_positions + sequence, position, mask=inside)
    tl.store(query_positions + sequence, position, mask=inside)
    tl.store(kv_lens + sequence, position + 1, mask=inside)
    # A sequence that is full has no next slot: whoever decodes on has reserved one.
    place = tl.minimum(position // tokens_per_block, table_width - 1)
    block = tl.load(table + sequence * table_width + place, mask=inside, other=0)
    slot = block * rows_per_block + position % tokens_per_block
    tl.store(slots + sequence, slot, mask=inside)


def advance(
    position_ids: torch.Tensor,
    token_positions: torch.Tensor,
    query_positions: torch.Tensor,
    kv_lens: torch.Tensor,
    slots: torch.Tensor,
    table: torch.Tensor,
    tokens_per_block: int,
    rows_per_block: int,
) -> None:
    """Move every sequence of a decode-only batch one token on, in place.

    Args:
        position_ids: ``[1, sequences]`` what the model is given.
        token_positions: ``[sequences]`` position of the new token.
        query_positions: ``[sequences, 1]`` likewise, for the masks.
        kv_lens: ``[sequences]`` cached and new tokens.
        slots: ``[sequences]`` row of the new key in a layer's cache.
        table: ``[sequences, blocks]``, contiguous.
        tokens_per_block: Positions per block.
        rows_per_block: Rows of a layer's cache from one block to the next.
    """
    _advance[(1,)](
        position_ids,
        token_positions,
        query_positions,
        kv_lens,
        slots,
        table,
        table.shape[0],
        table.shape[1],
        tokens_per_block,
        rows_per_block,
        BLOCK=triton.next_power_of_2(table.shape[0]),
        num_warps=1,
        **OVERLAP,
    )
