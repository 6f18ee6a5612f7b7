"""A decode step of the whole batch in one CUDA graph: forward, greedy choice, next positions."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from trtllm_scaffold.standin.attention.batch import Batch
from trtllm_scaffold.standin.interface import KVCacheParams

#: Forward passes before the capture, so that lazy allocations are not captured.
_WARM_UPS = 2


class DecodeGraph:
    """Greedy decoding of a fixed number of sequences without work on the host per token.

    :meth:`start` takes a batch, then every :meth:`step` decodes one token of each sequence. The
    cache must hold blocks for all steps before.

    Attributes:
        tokens: ``[sequences]`` int32, the newest token of each sequence.
        logits: ``[sequences, vocab]`` float32 that chose them, or None before the first step.
    """

    def __init__(self, model: Any, metadata: Any, sequences: int) -> None:
        self.model, self.sequences = model, sequences
        self.metadata = copy.copy(metadata).create_cuda_graph_metadata(sequences)
        device = metadata.kv_cache_manager.device
        self.tokens = torch.zeros(sequences, dtype=torch.int32, device=device)
        self.position_ids = torch.zeros(1, sequences, dtype=torch.int32, device=device)
        self.logits: torch.Tensor | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.inference_mode()
    def start(
        self, tokens: torch.Tensor, cached: Sequence[int], request_ids: Sequence[int]
    ) -> None:
        """Take a batch.

        Args:
            tokens: ``[sequences]`` the token to decode from, not yet in the cache.
            cached: Cached tokens of each sequence.
            request_ids: Key of each sequence in the cache.

        Raises:
            NotImplementedError: If the model cannot be captured; the device stays usable.
        """
        self._place(tokens, cached, request_ids)
        if self._graph is None:
            self._capture()
            self._place(tokens, cached, request_ids)

    def step(self) -> torch.Tensor:
        """Decode one token of each sequence; returns :attr:`tokens`, written in place."""
        assert self._graph is not None, "start() comes first"
        self._graph.replay()
        return self.tokens

    def _place(
        self, tokens: torch.Tensor, cached: Sequence[int], request_ids: Sequence[int]
    ) -> None:
        md = self.metadata
        md.request_ids = list(request_ids)
        md.prompt_lens = list(cached)
        md.kv_cache_params = KVCacheParams(use_cache=True, num_cached_tokens_per_seq=list(cached))
        md.prepare()
        self.tokens.copy_(tokens)
        self.position_ids.copy_(torch.tensor([list(cached)], dtype=torch.int32))

    def _capture(self) -> None:
        self._warm_up()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits = self._forward()
            self.tokens.copy_(greedy(self.logits))
            self._advance(self.metadata.prepared())
        self._graph = graph

    def _warm_up(self) -> None:
        """Run the forward pass as it will be captured, where it may still fail.

        A failure while capturing can leave the process without a usable device; one here leaves
        it as it was.

        Raises:
            NotImplementedError: If the model says that it cannot be captured, or reads on the
                host what the device computes.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self._forward()
                with _refusing_to_wait():
                    self._forward()
        finally:
            torch.cuda.current_stream().wait_stream(stream)

    def _forward(self) -> torch.Tensor:
        found: torch.Tensor = self.model.forward(
            input_ids=self.tokens, position_ids=self.position_ids, attn_metadata=self.metadata
        )
        return found

    def _advance(self, batch: Batch) -> None:
        from trtllm_scaffold.standin.kernels.advance import advance

        (segment,), manager = batch.segments, self.metadata.kv_cache_manager
        assert segment.block_table is not None and batch.token_slots is not None
        advance(
            self.position_ids,
            batch.token_positions,
            segment.positions,
            segment.kv_lens,
            batch.token_slots,
            segment.block_table,
            manager.tokens_per_block,
            manager.rows_per_block,
        )


@contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """Make it an error that the host waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        raise NotImplementedError("it reads on the host what the device computes") from error
    finally:
        torch.cuda.set_sync_debug_mode(before)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """``logits.argmax(-1)`` of ``[sequences, vocab]``, in two steps: one row fills no GPU."""
    vocab = logits.shape[-1]
    parts = math.gcd(vocab, 256)
    best, place = logits.unflatten(-1, (parts, vocab // parts)).max(-1)
    part = best.argmax(-1, keepdim=True)
    return (part * (vocab // parts) + place.gather(-1, part)).squeeze(-1)
