"""KVCacheManager: blocks of keys and values, handed out per request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trtllm_scaffold.standin.device import runtime_device
from trtllm_scaffold.standin.executor.bindings import TORCH_TYPES, CacheType, DataType
from trtllm_scaffold.standin.generation import contract
from trtllm_scaffold.standin.mapping import Mapping


@dataclass
class DummyRequest:
    """What ``add_dummy_requests`` returns per request: enough to free it again."""

    request_id: int

    @property
    def py_request_id(self) -> int:
        """The request id."""
        return self.request_id


@contract("KVCacheManager")
class KVCacheManager:
    """A paged cache of the layers of this pipeline stage.

    Layer ``i`` owns ``[blocks, 2, tokens_per_block, kv_heads, head_dim]``, or, if the type is
    SELFKONLY, one in place of the 2; a request owns the same block numbers in every layer. All
    layers lie in one pool, those of a block side by side, so a layer's tensor is not contiguous;
    layers that differ in heads or windows have a pool each.

    Attributes:
        num_pools: Number of pools.
        kv_cache_pool_mapping: ``[local layers, 2]`` int32 on the CPU: the pool of each layer, and
            its place among the pool's layers.
        max_blocks_per_seq: Blocks of the longest sequence.
        rows_per_block: Rows ``[kv_heads, head_dim]`` of a pool from one block to the next.

    Raises:
        ValueError: If the windows of the layers differ and there is no ``model_config`` (the
            real manager needs one then), or the heads do not fit the tensor-parallel size.
    """

    def __init__(
        self,
        kv_cache_config: Any,
        kv_cache_type: CacheType,
        *,
        num_layers: int,
        num_kv_heads: int | list[int | None],
        head_dim: int,
        tokens_per_block: int,
        max_seq_len: int,
        max_batch_size: int,
        mapping: Mapping,
        dtype: DataType = DataType.HALF,
        spec_config: Any = None,
        layer_mask: list[bool] | None = None,
        max_num_tokens: int = 8192,
        model_config: Any = None,
        max_beam_width: int = 1,
        is_draft: bool = False,
        kv_connector_manager: Any = None,
        enable_indexer_k_cache: bool = False,
        indexer_k_cache_quant_block_size: int = 128,
        indexer_k_cache_index_head_dim: int = 0,
        indexer_k_cache_use_fp4: bool = False,
        indexer_k_cache_layer_mask: list[bool] | None = None,
        is_estimating_kv_cache: bool = False,
        execution_stream: Any = None,
        linear_attention_metadata: Any = None,
        **kwargs: Any,
    ) -> None:
        if kv_cache_type is CacheType.CROSS:
            raise NotImplementedError(f"the stand-in has no {kv_cache_type} cache")
        if spec_config is not None or layer_mask is not None or max_beam_width != 1:
            raise NotImplementedError("the stand-in's cache is for greedy decoding of all layers")
        self.kv_cache_type, self.mapping, self.dtype = kv_cache_type, mapping, dtype
        self.num_layers, self.head_dim = num_layers, head_dim
        self.kv_factor = 1 if kv_cache_type is CacheType.SELFKONLY else 2
        self.tokens_per_block, self.max_seq_len = tokens_per_block, max_seq_len
        self.max_batch_size = max_batch_size
        self.pp_layers = mapping.pp_layers(num_layers)
        self.num_local_layers = len(self.pp_layers)
        self.layer_offsets = {layer: place for place, layer in enumerate(self.pp_layers)}
        self.num_kv_heads_per_layer = self._local_heads(num_kv_heads)
        self._windows = self._layer_windows(kv_cache_config, model_config)
        self.device = runtime_device()
        self.num_blocks = self._count_blocks(kv_cache_config)
        self.max_blocks_per_seq = -(-max_seq_len // tokens_per_block)
        self._make_pools()
        # Every second block first: neighbours in a sequence are never neighbours in memory, so
        # code that forgets the block table cannot pass by luck.
        order = [*range(0, self.num_blocks, 2), *range(1, self.num_blocks, 2)]
        self._free = order[::-1]
        self._owned: dict[int, list[int]] = {}

    # ------------------------------------------------------------------ requests

    def add_dummy_requests(
        self,
        request_ids: Sequence[int],
        token_nums: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> list[DummyRequest]:
        """Give each request the blocks for its cached and new tokens.

        Args:
            request_ids: Keys of the requests; a new id, or one that was freed.
            token_nums: Tokens of each request, 1 each if None.
            **kwargs: Further options of the real method, ignored.

        Raises:
            ValueError: If an id is in use, or a length exceeds ``max_seq_len``.
            RuntimeError: If the cache is full.
        """
        lengths = [1] * len(request_ids) if token_nums is None else token_nums
        for request, length in zip(request_ids, lengths, strict=True):
            if request in self._owned:
                raise ValueError(f"request {request} is in the cache already")
            self._owned[request] = []
            self.reserve(request, length)
        return [DummyRequest(request) for request in request_ids]

    def reserve(self, request_id: int, num_tokens: int) -> None:
        """Let a request own blocks for ``num_tokens`` tokens in all (the stand-in's own method).

        Raises:
            ValueError: If that is more than ``max_seq_len``.
            RuntimeError: If the cache is full.
        """
        if num_tokens > self.max_seq_len:
            raise ValueError(f"{num_tokens} tokens, but max_seq_len is {self.max_seq_len}")
        owned = self._owned.setdefault(request_id, [])
        missing = -(-num_tokens // self.tokens_per_block) - len(owned)
        if missing > len(self._free):
            raise RuntimeError(
                f"the KV cache has {len(self._free)} free blocks of {self.tokens_per_block} "
                f"tokens, request {request_id} needs {missing}"
            )
        owned.extend(self._free.pop() for _ in range(missing))

    def free_resources(self, request: Any, **kwargs: Any) -> None:
        """Take the blocks of a request back."""
        request_id = getattr(request, "py_request_id", request)
        self._free.extend(reversed(self._owned.pop(request_id)))

    def shutdown(self) -> None:
        """Release the memory; the manager must not be used afterwards."""
        self._buffers.clear()
        self._owned.clear()
        self._free.clear()

    # ------------------------------------------------------------------ what layers read

    def get_batch_cache_indices(
        self, request_ids: Sequence[int], layer_idx: int | None = None, **kwargs: Any
    ) -> list[list[int]]:
        """Block numbers of each request, in the order of its positions.

        Raises:
            ValueError: If a request was never added.
        """
        missing = [request for request in request_ids if request not in self._owned]
        if missing:
            raise ValueError(f"requests {missing} have no cache blocks: add_dummy_requests first")
        return [list(self._owned[request]) for request in request_ids]

    def get_buffers(self, layer_idx: int, kv_layout: str = "NHD", **kwargs: Any) -> torch.Tensor:
        """Keys and values of a layer.

        Args:
            layer_idx: Layer of the whole model; it must belong to this pipeline stage.
            kv_layout: ``NHD`` for ``[blocks, 2, tokens_per_block, kv_heads, head_dim]``,
                ``HND`` for ``[blocks, 2, kv_heads, tokens_per_block, head_dim]``.
            **kwargs: Further options of the real method, ignored.

        Raises:
            KeyError: If the layer is not of this stage.
        """
        held = self._buffers[self.layer_offsets[layer_idx]]
        return held.transpose(2, 3) if kv_layout == "HND" else held

    def attention_window(self, layer_idx: int) -> int | None:
        """Tokens that the layer keeps, None if all (the stand-in's own method)."""
        return self._windows[layer_idx] if self._windows else None

    # ------------------------------------------------------------------ internals

    def _make_pools(self) -> None:
        heads = self.num_kv_heads_per_layer
        windows = [self.attention_window(layer) for layer in self.pp_layers]
        alike = len(set(zip(heads, windows, strict=True))) == 1
        together = len(heads) if alike else 1
        self.num_pools = len(heads) // together
        places = [divmod(layer, together) for layer in range(len(heads))]
        self.kv_cache_pool_mapping = torch.tensor(places, dtype=torch.int32)
        block = self.kv_factor, self.tokens_per_block
        self.rows_per_block = together * self.kv_factor * self.tokens_per_block
        pools = [
            torch.zeros(
                self.num_blocks,
                together,
                *block,
                heads[first],
                self.head_dim,
                dtype=TORCH_TYPES[self.dtype],
                device=self.device,
            )
            for first in range(0, len(heads), together)
        ]
        self._buffers = [pools[pool][:, place] for pool, place in places]

    def _local_heads(self, num_kv_heads: int | list[int | None]) -> list[int]:
        width = 1 if self.mapping.enable_attention_dp else self.mapping.tp_size
        if isinstance(num_kv_heads, int):
            total: list[int | None] = [num_kv_heads] * self.num_layers
        else:
            total = num_kv_heads
        if len(total) != self.num_layers:
            raise ValueError(f"{len(total)} kv head counts for {self.num_layers} layers")
        return [-(-(total[layer] or 0) // width) for layer in self.pp_layers]

    def _layer_windows(self, config: Any, model_config: Any) -> list[int]:
        given = config.max_attention_window
        if not given:
            return []
        if len(set(given)) > 1 and model_config is None:
            raise ValueError(f"layers with different windows {given} need a model_config")
        capped = [min(size, self.max_seq_len) for size in given]
        return [capped[layer % len(capped)] for layer in range(self.num_layers)]

    def _count_blocks(self, config: Any) -> int:
        if config.max_tokens is not None:
            return -(-config.max_tokens // self.tokens_per_block)
        return self.max_batch_size * -(-self.max_seq_len // self.tokens_per_block)
