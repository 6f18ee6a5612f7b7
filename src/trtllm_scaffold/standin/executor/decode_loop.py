"""Greedy decoding in runs of steps between which the host looks at nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any, Protocol

import torch

from trtllm_scaffold.standin.executor.sequence import Sequence

#: Most steps between two looks at the tokens. A look waits for the device and writes the batch's
#: lengths and blocks anew, host work of about an eager step's preparation: over 16 captured steps
#: that is little. More steps would be computed in vain behind an end token, on average half of
#: these, and their tokens need room in the cache ahead.
STEPS_PER_LOOK = 16
#: Captured steps kept, one for each number of sequences: each holds its logits and what its
#: forward pass needs between two layers. More than the default ``max_batch_size``, so that only
#: a wide batch, whose sequences end one by one, captures a size twice.
MOST_SIZES = 32


class Steps(Protocol):
    """Decodes a fixed number of sequences; what :class:`DecodeGraph` does on a GPU.

    Attributes:
        tokens: ``[sequences]`` int32, the newest token of each sequence.
        logits: ``[sequences, vocab]`` float32 that chose them; the next step overwrites them.
    """

    tokens: torch.Tensor
    logits: torch.Tensor | None

    def start(self, tokens: torch.Tensor, cached: Many[int], request_ids: Many[int]) -> None:
        """Take a batch: ``[sequences]`` tokens not yet in the cache, and what is cached."""

    def step(self) -> torch.Tensor:
        """Decode one token of each sequence; returns :attr:`tokens`, written in place."""


class StepsBySize:
    """The captured steps of an engine, made when a number of sequences first decodes.

    Args:
        make: Makes the step of so many sequences.
        most: Steps kept; the one not used for longest goes first.
    """

    def __init__(self, make: Callable[[int], Steps], most: int = MOST_SIZES) -> None:
        self._make, self._most = make, most
        self._held: OrderedDict[int, Steps] = OrderedDict()

    def of(self, sequences: int) -> Steps:
        """The step of ``sequences`` sequences."""
        if sequences not in self._held:
            if len(self._held) >= self._most:
                self._held.popitem(last=False)
            self._held[sequences] = self._make(sequences)
        self._held.move_to_end(sequences)
        return self._held[sequences]

    def clear(self) -> None:
        """Release all of them."""
        self._held.clear()


def decode(steps_by_size: StepsBySize, cache: Any, running: list[Sequence], limit: int) -> None:
    """Decode up to ``STEPS_PER_LOOK`` tokens of each sequence.

    Afterwards every sequence is as if it had been decoded token by token until it ended or the
    run did, and one that ended holds no more blocks than then.

    Args:
        steps_by_size: What decodes.
        cache: The KVCacheManager.
        running: Sequences with at least one new token, none of them finished.
        limit: Most tokens of a sequence, prompt included.

    Raises:
        RuntimeError: If the cache has no room for one more token of each.
        NotImplementedError: If the model's decode step cannot be captured.
    """
    wanted = min(STEPS_PER_LOOK, *(item.left(limit) for item in running))
    count = reserve_ahead(cache, running, wanted)
    tokens, logits = _run(steps_by_size.of(len(running)), running, count)
    for column, (item, row) in enumerate(zip(running, tokens, strict=True)):
        for step, chosen in enumerate(row):
            item.cached += 1
            item.take(chosen, limit)
            if item.keep_generation_logits:
                item.generation_logits.append(logits[column][step])
            if item.finish_reason is not None:
                give_back_ahead(cache, item)
                break


def reserve_ahead(cache: Any, running: list[Sequence], steps: int) -> int:
    """Let each sequence own blocks for ``steps`` more tokens, or for as many as there is room.

    Step by step, as if each were decoded before the next is reserved: what decoding token by
    token has room for, this has room for.

    Returns:
        The steps there is room for.

    Raises:
        RuntimeError: If there is no room for a single one.
    """
    for ahead in range(1, steps + 1):
        try:
            for item in running:
                cache.reserve(item.request_id, item.cached + ahead)
        except RuntimeError:
            if ahead == 1:
                raise
            return ahead - 1
    return steps


def give_back_ahead(cache: Any, item: Sequence) -> None:
    """Leave a sequence that ended early no more blocks than its cached tokens need.

    What the blocks hold is lost, which nothing reads any more.
    """
    cache.free_resources(item.request_id)
    cache.reserve(item.request_id, item.cached)


def _run(
    steps: Steps, running: list[Sequence], count: int
) -> tuple[list[list[int]], dict[int, torch.Tensor]]:
    """Decode ``count`` tokens of each sequence, and only then read them.

    Returns:
        The tokens of each sequence, and by its place in ``running`` the ``[count, vocab]`` logits
        of each sequence that keeps them, on the CPU.
    """
    newest = torch.tensor([item.output[-1] for item in running], dtype=torch.int32)
    cached = [item.cached for item in running]
    steps.start(newest, cached, [item.request_id for item in running])
    device = steps.tokens.device
    found = torch.empty(count, len(running), dtype=torch.int32, device=device)
    keeping = [place for place, item in enumerate(running) if item.keep_generation_logits]
    rows = torch.tensor(keeping, dtype=torch.int64, device=device)
    kept = []
    for step in range(count):
        found[step].copy_(steps.step())
        if keeping:
            assert steps.logits is not None
            kept.append(steps.logits.index_select(0, rows))
    logits = dict(zip(keeping, torch.stack(kept, dim=1).cpu(), strict=True)) if kept else {}
    return found.t().tolist(), logits
