"""The attention maths over a paged cache, vectorised over sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def slots_of_tokens(
    block_table: torch.Tensor,
    sequence: torch.Tensor,
    position: torch.Tensor,
    tokens_per_block: int,
    rows_per_block: int,
) -> torch.Tensor:
    """Row of :func:`cache_rows` that holds the key of each token.

    The value lies ``tokens_per_block`` rows after its key.

    Args:
        block_table: ``[sequences, blocks]`` block of each run of ``tokens_per_block`` positions.
        sequence: Index of the sequence of each token, any shape.
        position: Position of each token in its sequence, same shape.
        tokens_per_block: Positions per block.
        rows_per_block: Rows from one block to the next, the layers of a pool together.
    """
    block = block_table[sequence, position // tokens_per_block]
    return block * rows_per_block + position % tokens_per_block


def cache_rows(cache: torch.Tensor) -> torch.Tensor:
    """The rows ``[rows, kv_heads, head_dim]`` of a layer's pool, from the layer's first on.

    Args:
        cache: ``[blocks, 2 or 1, tokens_per_block, kv_heads, head_dim]`` of one layer.
    """
    width = cache.stride(2)
    count = (cache.stride(0) * (cache.shape[0] - 1) + cache.stride(1) * cache.shape[1]) // width
    return cache.as_strided((count, *cache.shape[3:]), cache.stride()[2:])


def write_cache(
    cache: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> None:
    """Store the keys and values of new tokens.

    Args:
        cache: ``[blocks, 2, tokens_per_block, kv_heads, head_dim]``.
        slots: ``[tokens]`` from :func:`slots_of_tokens`.
        keys: ``[tokens, kv_heads, head_dim]``.
        values: ``[tokens, kv_heads, head_dim]``.
    """
    flat = cache_rows(cache)
    flat.index_copy_(0, slots, keys.to(cache.dtype))
    flat.index_copy_(0, slots + cache.shape[2], values.to(cache.dtype))


def read_cache(
    cache: torch.Tensor, slots: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values ``[sequences, keys, kv_heads, head_dim]`` at ``slots`` [sequences, keys]."""
    flat = cache_rows(cache)
    picked = slots.reshape(-1)
    shape = (*slots.shape, *flat.shape[1:])
    keys = flat.index_select(0, picked).view(shape)
    values = flat.index_select(0, picked + cache.shape[2]).view(shape)
    return keys.to(dtype), values.to(dtype)


def causal_mask(
    positions: torch.Tensor,
    num_keys: int,
    *,
    window: int | None = None,
    chunk: int | None = None,
) -> torch.Tensor:
    """Visible keys of each query.

    Args:
        positions: ``[sequences, queries]`` position of each query in its sequence.
        num_keys: Width of the padded key axis; key ``j`` is at position ``j``.
        window: Number of visible keys, the query's own included.
        chunk: A query sees only keys of its own run of ``chunk`` positions.

    Returns:
        Boolean ``[sequences, 1, queries, keys]``.
    """
    key = torch.arange(num_keys, device=positions.device)
    query = positions.unsqueeze(-1)
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    if chunk is not None:
        visible &= key // chunk == query // chunk
    return visible.unsqueeze(1)


def full_mask(kv_lens: torch.Tensor, num_queries: int, num_keys: int) -> torch.Tensor:
    """Every key of the sequence is visible: ``[sequences, 1, queries, keys]``."""
    key = torch.arange(num_keys, device=kv_lens.device)
    visible = (key < kv_lens.unsqueeze(-1)).view(-1, 1, 1, num_keys)
    return visible.expand(-1, 1, num_queries, num_keys)


def custom_mask(
    data: torch.Tensor, query_lens: torch.Tensor, kv_lens: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """The flattened mask of the context tokens, padded to ``[sequences, 1, queries, keys]``.

    Args:
        data: Boolean, the ``[query_len, kv_len]`` masks of the sequences one after the other.
        query_lens: ``[sequences]`` new tokens of each sequence.
        kv_lens: ``[sequences]`` keys of each sequence.
        shape: Padded number of queries and of keys.

    Raises:
        ValueError: If ``data`` has not one element per query and key.
    """
    num_queries, num_keys = shape
    query = torch.arange(num_queries, device=data.device).view(1, -1, 1)
    key = torch.arange(num_keys, device=data.device).view(1, 1, -1)
    valid = (query < query_lens.view(-1, 1, 1)) & (key < kv_lens.view(-1, 1, 1))
    expected = int((query_lens * kv_lens).sum())
    if data.numel() != expected:
        raise ValueError(
            f"attention_mask_data has {data.numel()} elements, the context tokens need {expected}"
        )
    # A padded query must see something, or its softmax is NaN and spreads through the unpadding.
    padded = (~valid.any(-1, keepdim=True)).expand(valid.shape).clone()
    padded[valid] = data.reshape(-1).to(torch.bool)
    return padded.unsqueeze(1)


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    mask: torch.Tensor | None,
    scale: float,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention with grouped heads.

    Args:
        query: ``[sequences, queries, heads, head_dim]``.
        keys: ``[sequences, keys, kv_heads, head_dim]``; head ``h`` reads KV head
            ``h // (heads // kv_heads)``.
        values: Like ``keys``.
        mask: Boolean ``[sequences, 1, queries, keys]``, True where visible. None: query ``i``
            sees keys up to ``i`` (queries and keys are then the same tokens).
        scale: Factor of the scores.
        sinks: ``[heads]`` logits that take part in the softmax without a value.

    Returns:
        ``[sequences, queries, heads, head_dim]``.
    """
    groups = query.shape[2] // keys.shape[2]
    if sinks is not None:
        if mask is None:
            positions = torch.arange(query.shape[1], device=query.device).expand(query.shape[:2])
            mask = causal_mask(positions, keys.shape[1])
        return _attend_with_sinks(query, keys, values, mask, scale, sinks)
    keys, values = keys.transpose(1, 2), values.transpose(1, 2)
    if query.shape[1] == 1 and mask is not None:
        # One token per sequence: the heads of a group share their keys, so they can be the
        # queries of one product and nothing is repeated.
        grouped = query.view(query.shape[0], keys.shape[1], groups, query.shape[3])
        out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        return out.reshape(query.shape)
    shares = groups > 1 and query.is_cuda  # the CPU's kernel is slower than repeating
    if groups > 1 and not shares:
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    out = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys,
        values,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scale,
        enable_gqa=shares,
    )
    return out.transpose(1, 2)


def _attend_with_sinks(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
    sinks: torch.Tensor,
) -> torch.Tensor:
    sequences, queries, heads, _ = query.shape
    kv_heads = keys.shape[2]
    grouped = query.float().view(sequences, queries, kv_heads, heads // kv_heads, -1)
    scores = torch.einsum("bqhgd,bkhd->bhgqk", grouped, keys.float()) * scale
    scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
    sink = sinks.float().view(1, kv_heads, -1, 1, 1).expand(*scores.shape[:-1], 1)
    weights = torch.cat([scores, sink], dim=-1).softmax(dim=-1)[..., :-1]
    out = torch.einsum("bhgqk,bkhd->bqhgd", weights, values.float())
    return out.reshape(query.shape).to(query.dtype)
