"""Packed sequences as padded segments: which token is where, on the device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from trtllm_scaffold.standin.attention.kernel import slots_of_tokens


@dataclass
class Segment:
    """A run of packed sequences that one attention call computes together.

    Attributes:
        first_token: First packed token of the run.
        num_tokens: Packed tokens of the run.
        num_sequences: Sequences of the run.
        num_queries: Longest sequence of the run, in new tokens.
        num_keys: Width of the padded key axis.
        is_context: Whether these are prefill sequences.
        starts_empty: Whether no sequence has cached tokens.
        longest: Cached and new tokens of the longest sequence.
        fixed: Whether a CUDA graph may replay this run with other lengths.
        query_lens: ``[sequences]`` new tokens of each sequence.
        kv_lens: ``[sequences]`` int32, cached and new tokens of each sequence.
        positions: ``[sequences, queries]`` position of each padded query, 0 in the padding.
        gather: ``[sequences, queries]`` packed token (from ``first_token``) of each padded
            query, or None if every sequence has ``num_queries`` tokens.
        scatter: ``[tokens]`` place of each packed token in the padding, or None likewise.
        slots: ``[sequences, keys]`` row of a layer's cache of each key, 0 in the padding.
        block_table: ``[sequences, blocks]`` cache blocks of each sequence, None without a cache.
        masks: Masks already made for this batch, by their parameters.
    """

    first_token: int
    num_tokens: int
    num_sequences: int
    num_queries: int
    num_keys: int
    is_context: bool
    starts_empty: bool
    longest: int
    fixed: bool
    query_lens: torch.Tensor
    kv_lens: torch.Tensor
    positions: torch.Tensor
    gather: torch.Tensor | None
    scatter: torch.Tensor | None
    slots: torch.Tensor
    block_table: torch.Tensor | None
    masks: dict[tuple[object, ...], torch.Tensor] = field(default_factory=dict)

    def pad(self, packed: torch.Tensor) -> torch.Tensor:
        """``[tokens, ...]`` of the run as ``[sequences, queries, ...]``."""
        if self.gather is None:
            return packed.reshape(self.num_sequences, self.num_queries, *packed.shape[1:])
        return packed[self.gather]

    def unpad(self, padded: torch.Tensor) -> torch.Tensor:
        """``[sequences, queries, ...]`` as the packed ``[tokens, ...]`` of the run."""
        flat = padded.reshape(-1, *padded.shape[2:])
        return flat if self.scatter is None else flat[self.scatter]


def padding_maps(
    query_lens: list[int], device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """``gather`` and ``scatter`` of a :class:`Segment`, None twice if nothing needs padding."""
    longest = max(query_lens)
    if all(length == longest for length in query_lens):
        return None, None
    lens = torch.tensor(query_lens)
    start = lens.cumsum(0) - lens
    column = torch.arange(longest).unsqueeze(0)
    inside = column < lens.unsqueeze(1)
    gather = torch.where(inside, start.unsqueeze(1) + column, start.unsqueeze(1))
    scatter = inside.reshape(-1).nonzero().squeeze(1)
    return gather.to(device), scatter.to(device)


@dataclass(frozen=True)
class Batch:
    """A packed batch, ready for attention.

    Attributes:
        token_positions: ``[tokens]`` position of each packed token in its sequence.
        token_slots: ``[tokens]`` row of a layer's cache of each token's key, None without a
            cache.
        kv_lens: ``[sequences]`` int32, cached and new tokens of each sequence.
        segments: The prefill run and the generation run, those that exist.
    """

    token_positions: torch.Tensor
    kv_lens: torch.Tensor
    token_slots: torch.Tensor | None
    segments: tuple[Segment, ...]


class Buffers:
    """Named device tensors that keep their address while they are large enough."""

    def __init__(self, device: torch.device, frozen: bool = False) -> None:
        self.device, self.frozen = device, frozen
        self._held: dict[str, torch.Tensor] = {}

    def store(self, name: str, values: torch.Tensor) -> torch.Tensor:
        """Copy ``values`` to the tensor called ``name`` and return it in their shape.

        Raises:
            ValueError: If a captured graph's tensor is too small.
        """
        held = self._held.get(name)
        if held is None or held.numel() < values.numel():
            if held is not None and self.frozen:
                raise ValueError(f"{name}: the batch is larger than the captured graph's")
            held = torch.empty(values.numel(), dtype=values.dtype, device=self.device)
            self._held[name] = held
        view = held[: values.numel()].view(values.shape)
        view.copy_(values, non_blocking=True)
        return view


@dataclass(frozen=True)
class CacheBlocks:
    """The cache blocks of a batch.

    Attributes:
        table: ``[sequences, blocks]`` on the CPU, 0 where a sequence has no more blocks.
        size: Positions per block.
        rows: Rows of a layer's cache from one block to the next.
    """

    table: torch.Tensor
    size: int
    rows: int


def build_batch(
    lens: list[int],
    cached: list[int],
    num_contexts: int,
    blocks: CacheBlocks | None,
    buffers: Buffers,
) -> Batch:
    """Positions, slots and padding of a packed batch, written to ``buffers``.

    Args:
        lens: New tokens of each sequence, prefill sequences first.
        cached: Cached tokens of each sequence.
        num_contexts: Number of prefill sequences.
        blocks: The cache blocks, or None to attend to the batch's own tokens.
        buffers: Tensors to write; frozen ones belong to a CUDA graph.
    """
    counts, old = torch.tensor(lens), torch.tensor(cached)
    sequence = torch.repeat_interleave(torch.arange(len(lens)), counts)
    within = torch.arange(len(sequence)) - (counts.cumsum(0) - counts)[sequence]
    position = within + old[sequence]
    slots = None
    if blocks is not None:
        rows = slots_of_tokens(blocks.table, sequence, position, blocks.size, blocks.rows)
        slots = buffers.store("token_slots", rows)
    runs = ((0, num_contexts), (num_contexts, len(lens)))
    kv_lens = buffers.store("kv_lens", (counts + old).to(torch.int32))
    return Batch(
        token_positions=buffers.store("token_positions", position),
        kv_lens=kv_lens,
        token_slots=slots,
        segments=tuple(
            _segment(first, last, counts, old, kv_lens, first < num_contexts, blocks, buffers)
            for first, last in runs
            if last > first
        ),
    )


def _segment(
    first: int,
    last: int,
    counts: torch.Tensor,
    old: torch.Tensor,
    kv_lens: torch.Tensor,
    is_context: bool,
    blocks: CacheBlocks | None,
    buffers: Buffers,
) -> Segment:
    start = int(counts[:first].sum())
    mine, past = counts[first:last], old[first:last]
    longest = int((mine + past).max())
    num_queries = int(mine.max())
    column = torch.arange(num_queries)
    inside = column < mine.unsqueeze(1)
    positions = torch.where(inside, past.unsqueeze(1) + column, 0)
    gather, scatter = padding_maps(mine.tolist(), buffers.device)
    kind = "context" if is_context else "generation"
    table = None
    if blocks is None:
        num_keys = num_queries
        begin = start + (mine.cumsum(0) - mine).unsqueeze(1)
        slots = begin + torch.where(inside, column, 0)
    else:
        num_keys = blocks.table.shape[1] * blocks.size if buffers.frozen else longest
        table = buffers.store(f"{kind}_blocks", blocks.table[first:last])
        row = torch.arange(last - first, device=buffers.device).unsqueeze(1)
        column = torch.arange(num_keys, device=buffers.device)
        slots = slots_of_tokens(table, row, column, blocks.size, blocks.rows)
    return Segment(
        first_token=start,
        num_tokens=int(mine.sum()),
        num_sequences=last - first,
        num_queries=num_queries,
        num_keys=num_keys,
        is_context=is_context,
        starts_empty=not bool(past.any()),
        longest=longest,
        fixed=buffers.frozen,
        query_lens=buffers.store(f"{kind}_query_lens", mine),
        kv_lens=kv_lens[first:last],
        positions=buffers.store(f"{kind}_positions", positions),
        gather=gather,
        scatter=scatter,
        slots=buffers.store(f"{kind}_slots", slots),
        block_table=table,
    )
