"""What each backend's metadata has beyond the common batch description."""

from __future__ import annotations

import torch

from trtllm_scaffold.standin.attention.metadata import AttentionMetadata


class TrtllmAttentionMetadata(AttentionMetadata):
    """Metadata of the TRTLLM backend, which also has the cache's blocks on the device.

    Attributes:
        kv_cache_block_offsets: ``[pools, sequences, 2, max_blocks_per_seq]`` int32: where the
            keys and the values of a sequence's blocks are, from the layer's first block on and
            counted in blocks of one layer's keys. None without a cache.
    """

    kv_cache_block_offsets: torch.Tensor | None = None

    @property
    def kv_lens_cuda(self) -> torch.Tensor:
        """``[sequences]`` int32 cached and new tokens of each sequence."""
        return self.prepared().kv_lens

    @property
    def host_kv_cache_pool_mapping(self) -> torch.Tensor | None:
        """``[local layers, 2]`` pool of each layer and its place there, on the CPU."""
        manager = self.kv_cache_manager
        return None if manager is None else manager.kv_cache_pool_mapping

    def prepare(self) -> None:
        """As the base, and write the block offsets."""
        super().prepare()
        manager = self.kv_cache_manager
        if manager is None:
            return
        owned = manager.get_batch_cache_indices(self.request_ids)
        # What lies behind a sequence's last block is whatever an earlier batch had there.
        table = torch.full((len(owned), manager.max_blocks_per_seq), -1, dtype=torch.int32)
        for row, blocks in enumerate(owned):
            table[row, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        step = manager.rows_per_block // manager.tokens_per_block
        keys = torch.where(table < 0, table, table * step)
        values = torch.where(table < 0, table, keys + manager.kv_factor - 1)
        both = torch.stack([keys, values], dim=1).expand(manager.num_pools, -1, -1, -1)
        self.kv_cache_block_offsets = self._buffers().store("block_offsets", both)


class FlashInferAttentionMetadata(AttentionMetadata):
    """Metadata of the FLASHINFER backend."""


class VanillaAttentionMetadata(AttentionMetadata):
    """Metadata of the VANILLA backend, which reads one cache block per sequence."""

    def prepare(self) -> None:
        """As the base, but a sequence must fit one block.

        Raises:
            ValueError: If a sequence is longer than a block: the real backend reads the first
                block of each sequence only, and its runtime makes blocks of ``max_num_tokens``.
        """
        super().prepare()
        if self.kv_cache_manager is None:
            return
        size = self._tokens_per_block()
        longest = max(segment.longest for segment in self.prepared().segments)
        if longest > size:
            raise ValueError(
                f"the VANILLA backend reads one cache block per sequence: {longest} tokens do "
                f"not fit tokens_per_block={size}"
            )
