"""AttentionMetadata: the lengths, cache blocks and positions of one packed batch."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch

from trtllm_scaffold.standin.attention.batch import Batch, Buffers, CacheBlocks, build_batch
from trtllm_scaffold.standin.compiled_ops import handle_of
from trtllm_scaffold.standin.device import runtime_device
from trtllm_scaffold.standin.generation import contract
from trtllm_scaffold.standin.interface import AttentionRuntimeFeatures, KVCacheParams

_LENGTHS = frozenset({"seq_lens", "num_contexts", "seq_lens_kv"})


@contract("AttentionMetadata")
@dataclass(kw_only=True)
class AttentionMetadata:
    """One packed batch: prefill sequences first, then generation sequences.

    Set the fields, call :meth:`prepare` before every forward pass. Tensors are allocated once
    and written in place, so that a captured CUDA graph sees the new batch.

    Attributes:
        max_num_requests: Most sequences of a batch.
        max_num_tokens: Most packed tokens of a batch.
        kv_cache_manager: The paged cache, or None to attend to the batch's own tokens only.
        seq_lens: ``[sequences]`` int32 on the CPU, new tokens of each sequence.
        num_contexts: Number of prefill sequences.
        kv_cache_params: Cached tokens of each sequence.
        request_ids: Key of each sequence in the cache.
        prompt_lens: Prompt length of each sequence.
    """

    max_num_requests: int
    max_num_tokens: int
    max_num_sequences: int | None = None
    kv_cache_manager: Any = None
    draft_kv_cache_manager: Any = None
    mapping: Any = None
    sparse_metadata_params: Any = None
    sparse_attention_config: Any = None
    kv_layout: str = "HND"
    enable_flash_mla: bool = False
    enable_context_mla_with_cached_kv: bool = False
    is_cuda_graph: bool = False
    seq_lens: torch.Tensor | None = None
    num_contexts: int = 0
    position_ids: torch.Tensor | None = None
    kv_cache_params: KVCacheParams | None = None
    seq_lens_kv: torch.Tensor | None = None
    cross: Any = None
    request_ids: list[int] | None = None
    prompt_lens: list[int] | None = None
    cu_q_seqlens: torch.Tensor | None = None
    cu_kv_seqlens: torch.Tensor | None = None
    runtime_features: AttentionRuntimeFeatures = field(default_factory=AttentionRuntimeFeatures)
    all_rank_num_tokens: list[int] | None = None
    mamba_metadata: Any = None
    mamba_chunk_size: int = 128
    mamba_metadata_cls: Any = None
    padded_num_tokens: int | None = None
    cache_indirection: torch.Tensor | None = None
    cuda_graph_buffers: Any = None
    num_heads_per_kv: int | None = 1
    multi_item_part_lens: list[list[int]] | None = None

    def __post_init__(self) -> None:
        if self.cross is not None:
            raise NotImplementedError("the stand-in has no cross attention")

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _LENGTHS:
            self.on_update()

    # ------------------------------------------------------------------ lengths

    @property
    def num_seqs(self) -> int:
        """Sequences of the batch."""
        return 0 if self.seq_lens is None else int(self.seq_lens.shape[0])

    @property
    def num_generations(self) -> int:
        """Generation sequences of the batch."""
        return self.num_seqs - self.num_contexts

    @property
    def context_lens(self) -> torch.Tensor:
        """``[contexts]`` new tokens of each prefill sequence, on the CPU."""
        return self._lens()[: self.num_contexts]

    @property
    def num_ctx_tokens(self) -> int:
        """Packed tokens of the prefill sequences."""
        return int(self.context_lens.sum())

    @property
    def num_tokens(self) -> int:
        """Packed tokens of the batch, without CUDA graph padding."""
        self._lens()
        return int(self.__dict__["_num_tokens"])

    @property
    def seq_lens_cuda(self) -> torch.Tensor:
        """``[sequences]`` int32 new tokens of each sequence, on the runtime's device."""
        found: torch.Tensor = self.__dict__["_seq_lens_cuda"]
        return found

    @property
    def seq_lens_kv_cuda(self) -> torch.Tensor:
        """Alias of :attr:`seq_lens_cuda`: without cross attention the two are the same."""
        return self.seq_lens_cuda

    @property
    def is_cross(self) -> bool:
        """Always False: the stand-in has no cross attention."""
        return False

    @property
    def has_cross_sub_metadata(self) -> bool:
        """Always False: the stand-in has no cross attention."""
        return False

    def on_update(self) -> None:
        """Copy the lengths to the device; called whenever they are assigned."""
        self.__dict__.pop("_batch", None)
        lens = self.__dict__.get("seq_lens")
        if lens is not None:
            self.__dict__["_num_tokens"] = int(lens.sum())
            self.__dict__["_seq_lens_cuda"] = self._buffers().store(
                "seq_lens", lens.to(torch.int32)
            )

    # ------------------------------------------------------------------ preparation

    def prepare(self) -> None:
        """Write the batch's positions, cache slots and padding maps to the device.

        Raises:
            ValueError: If lengths, requests and cached tokens do not fit each other, or the
                batch is larger than the metadata was made for.
        """
        lens = [int(length) for length in self._lens()]
        cached = self._cached(len(lens))
        self._check(lens)
        blocks = self._blocks([old + new for old, new in zip(cached, lens, strict=True)])
        batch = build_batch(lens, cached, self.num_contexts, blocks, self._buffers())
        self.__dict__["_batch"] = batch
        self.__dict__["_handle"] = handle_of(self, self.__dict__.get("_handle"))

    def prepared(self) -> Batch:
        """What :meth:`prepare` wrote.

        Raises:
            RuntimeError: If the lengths were assigned after the last call of it.
        """
        batch: Batch | None = self.__dict__.get("_batch")
        if batch is None:
            raise RuntimeError("AttentionMetadata.prepare() must be called before every forward")
        return batch

    def create_cuda_graph_metadata(
        self,
        max_batch_size: int,
        sub_cross_metadata: bool = False,
        max_draft_tokens: int = 0,
        buffers: Any = None,
        encode_only: bool = False,
    ) -> AttentionMetadata:
        """A decode-only copy with its own, never reallocated tensors.

        Args:
            max_batch_size: Sequences of the graph; every batch must have exactly as many.
            sub_cross_metadata: Not supported.
            max_draft_tokens: Tokens per sequence beyond the first.
            buffers: Ignored: the copy owns its tensors.
            encode_only: Not supported.
        """
        if sub_cross_metadata or encode_only:
            raise NotImplementedError("the stand-in captures decoder-only generation")
        if self.is_cuda_graph:
            return self
        graph = copy.copy(self)
        for name in ("_tensors", "_batch"):
            graph.__dict__.pop(name, None)
        graph.is_cuda_graph = True
        graph.max_num_requests = max_batch_size
        graph.max_num_tokens = max_batch_size * (1 + max_draft_tokens)
        # The lengths first: their tensor must have the graph's size from the start.
        graph.seq_lens = torch.full((max_batch_size,), 1 + max_draft_tokens, dtype=torch.int32)
        graph.num_contexts = 0
        return graph

    # ------------------------------------------------------------------ not for decoders

    def prepare_for_spec_dec(self, *fields: str) -> None:
        """Speculative decoding is outside the stand-in."""
        raise NotImplementedError("the stand-in has no speculative decoding")

    restore_from_spec_dec = update_spec_dec_param = prepare_for_spec_dec

    # ------------------------------------------------------------------ internals

    def _lens(self) -> torch.Tensor:
        if self.seq_lens is None:
            raise ValueError("AttentionMetadata.seq_lens is not set")
        return self.seq_lens

    def _cached(self, count: int) -> list[int]:
        params = self.kv_cache_params
        given = None if params is None else params.num_cached_tokens_per_seq
        if given is None:
            if self.kv_cache_manager is not None:
                raise ValueError("kv_cache_params.num_cached_tokens_per_seq is not set")
            return [0] * count
        if len(given) != count:
            raise ValueError(f"{len(given)} cached lengths for {count} sequences")
        if self.kv_cache_manager is None and any(given):
            raise ValueError(f"cached tokens {given} without a KV cache manager")
        return [int(length) for length in given]

    def _check(self, lens: list[int]) -> None:
        limits = self.max_num_sequences or self.max_num_requests
        if len(lens) > limits:
            raise ValueError(f"{len(lens)} sequences, but the metadata was made for {limits}")
        if sum(lens) > self.max_num_tokens:
            raise ValueError(
                f"{sum(lens)} tokens, but the metadata was made for {self.max_num_tokens}"
            )
        if not 0 <= self.num_contexts <= len(lens):
            raise ValueError(f"num_contexts {self.num_contexts} of {len(lens)} sequences")
        if min(lens) < 1:
            raise ValueError(f"every sequence needs a new token, seq_lens are {lens}")
        for name in ("request_ids", "prompt_lens"):
            given = getattr(self, name)
            if given is not None and len(given) != len(lens):
                raise ValueError(f"{len(given)} {name} for {len(lens)} sequences")

    def _tokens_per_block(self) -> int:
        return int(self.kv_cache_manager.tokens_per_block)

    def _blocks(self, totals: list[int]) -> CacheBlocks | None:
        if self.kv_cache_manager is None:
            return None
        if self.request_ids is None:
            raise ValueError("request_ids are needed to find the blocks of the sequences")
        blocks = self.kv_cache_manager.get_batch_cache_indices(self.request_ids)
        size = self._tokens_per_block()
        for request, total, owned in zip(self.request_ids, totals, blocks, strict=True):
            if total > len(owned) * size:
                raise ValueError(
                    f"request {request} needs room for {total} tokens, but has {len(owned)} "
                    f"blocks of {size}"
                )
        if self.is_cuda_graph:
            width = -(-int(self.kv_cache_manager.max_seq_len) // size)
        else:
            width = -(-max(totals) // size)
        table = torch.zeros(len(blocks), width, dtype=torch.int64)
        for row, owned in enumerate(blocks):
            used = owned[:width]
            table[row, : len(used)] = torch.tensor(used, dtype=torch.int64)
        return CacheBlocks(table, size, int(self.kv_cache_manager.rows_per_block))

    def _device(self) -> torch.device:
        manager = self.__dict__.get("kv_cache_manager")
        return runtime_device() if manager is None else manager.device

    def _buffers(self) -> Buffers:
        held: Buffers | None = self.__dict__.get("_tensors")
        if held is None:
            held = Buffers(self._device(), frozen=self.is_cuda_graph)
            self.__dict__["_tensors"] = held
        return held
