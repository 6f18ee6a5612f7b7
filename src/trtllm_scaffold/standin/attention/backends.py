"""The attention backends VANILLA, FLASHINFER and TRTLLM: what each accepts and adds."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from typing import Any

import torch

from trtllm_scaffold.standin.attention.backend import AttentionBackend
from trtllm_scaffold.standin.attention.backend_metadata import (
    FlashInferAttentionMetadata,
    TrtllmAttentionMetadata,
    VanillaAttentionMetadata,
)
from trtllm_scaffold.standin.attention.batch import Segment
from trtllm_scaffold.standin.attention.forward_args import AttentionForwardArgs
from trtllm_scaffold.standin.attention.metadata import AttentionMetadata
from trtllm_scaffold.standin.functional import PositionEmbeddingType
from trtllm_scaffold.standin.generation import active
from trtllm_scaffold.standin.interface import PositionalEmbeddingParams
from trtllm_scaffold.standin.kernels.choice import fits
from trtllm_scaffold.standin.logger import logger
from trtllm_scaffold.standin.modules.rotary import RotaryEmbedding

#: Head sizes that the TRTLLM backend's decode kernels are compiled for
#: (``MMHA_SUPPORTED_HEAD_SIZES`` in cpp/tensorrt_llm/kernels/decoderMaskedMultiheadAttention).
KERNEL_HEAD_SIZES = (32, 48, 64, 80, 96, 104, 112, 128, 144, 160, 192, 224, 256)
#: Set to ``strict``, a head size without a kernel is an error, as in the real backend.
HEAD_SIZES_VARIABLE = "TRTLLM_SCAFFOLD_HEAD_SIZES"


def check_head_size(head_dim: int) -> None:
    """Warn of a head size that the real TRTLLM backend has no kernel for.

    Tiny test models have such sizes on purpose, so it is an error only on request.

    Raises:
        RuntimeError: If ``TRTLLM_SCAFFOLD_HEAD_SIZES`` is ``strict``.
    """
    if head_dim in KERNEL_HEAD_SIZES:
        return
    message = (
        f"head_dim {head_dim} has no kernel in TensorRT-LLM's TRTLLM backend, which takes "
        f"{', '.join(map(str, KERNEL_HEAD_SIZES))}"
    )
    if os.environ.get(HEAD_SIZES_VARIABLE) == "strict":
        raise RuntimeError(message)
    logger.warning_once(message, key=f"head_dim {head_dim}")


class VanillaAttention(AttentionBackend[VanillaAttentionMetadata]):
    """The reference backend: plain torch, rope outside, q, k and v apart."""

    Metadata = VanillaAttentionMetadata
    name = "VANILLA"

    def _scale(self, metadata: AttentionMetadata) -> float:
        """As the base; without a cache 1.2 passes no scale at all, so ``q_scaling`` is lost."""
        if metadata.kv_cache_manager is None and active() == "1.2":
            return 1.0 / math.sqrt(self.head_dim)
        return super()._scale(metadata)


class FlashInferAttention(AttentionBackend[FlashInferAttentionMetadata]):
    """Rope outside, custom masks in prefill (the window must then be part of the mask)."""

    Metadata = FlashInferAttentionMetadata
    name = "FLASHINFER"
    takes_custom_mask = {"1.2": True, "1.4": True}


class TrtllmAttention(AttentionBackend[TrtllmAttentionMetadata]):
    """The production backend: fused q, k, v, rope from cache positions, sinks and chunks."""

    Metadata = TrtllmAttentionMetadata
    name = "TRTLLM"
    takes_custom_mask = {"1.2": False, "1.4": True}

    def __init__(
        self,
        layer_idx: int | None,
        num_heads: int,
        head_dim: int,
        num_kv_heads: int | None = None,
        quant_config: Any = None,
        q_scaling: float | None = None,
        pos_embd_params: PositionalEmbeddingParams | None = None,
        attention_chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            layer_idx, num_heads, head_dim, num_kv_heads, quant_config, q_scaling=q_scaling
        )
        check_head_size(head_dim)
        kind = None if pos_embd_params is None else pos_embd_params.type
        if kind is not None and kind.is_alibi():
            raise NotImplementedError(
                "ALiBi is half wired in the TRTLLM backend: the slopes never reach the kernels"
            )
        rotates = kind is not None and (kind.is_rope() or kind == PositionEmbeddingType.yarn)
        self.pos_embd_params = pos_embd_params
        self.rope = pos_embd_params.rope if pos_embd_params is not None and rotates else None
        self.attention_chunk_size = attention_chunk_size
        self._rotary: RotaryEmbedding | None = None

    @classmethod
    def support_fused_rope(cls) -> bool:
        """Whether the backend rotates queries and keys itself."""
        return True

    @classmethod
    def support_fused_qkv(cls) -> bool:
        """Whether ``q`` may hold q, k and v."""
        return True

    @classmethod
    def support_mla(cls) -> bool:
        """Whether the backend has latent attention."""
        return True

    def _check_options(self, args: AttentionForwardArgs) -> None:
        sinks = args.attention_sinks
        if sinks is not None and (sinks.dtype != torch.float32 or sinks.shape != (self.num_heads,)):
            raise RuntimeError(
                f"attention_sinks must be float32 [{self.num_heads}], "
                f"not {sinks.dtype} {list(sinks.shape)}"
            )
        super()._check_options(args if sinks is None else replace(args, attention_sinks=None))

    def _rotate(
        self, q: torch.Tensor, k: torch.Tensor, metadata: AttentionMetadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rotate at the cache positions: the caller's position ids are not consulted."""
        if self.rope is None:
            return q, k
        rotary = self._rotary_for(metadata)
        turned = rotary(metadata.prepared().token_positions, [q.flatten(1), k.flatten(1)])
        return turned[0].view(q.shape), turned[1].view(k.shape)

    def _rotate_and_store(
        self, qkv: torch.Tensor, metadata: AttentionMetadata, args: AttentionForwardArgs
    ) -> bool:
        manager = metadata.kv_cache_manager
        cache = None if manager is None else manager.get_buffers(self.layer_idx)
        if cache is None or not args.update_kv_cache or not fits(qkv, cache):
            return False
        from trtllm_scaffold.standin.kernels.rotary import rotate_and_store

        batch = metadata.prepared()
        positions, rope = batch.token_positions, None
        if self.rope is not None:
            rotary = self._rotary_for(metadata)
            rope = rotary.table_on(positions.device), positions, rotary.is_neox
        assert batch.token_slots is not None
        sizes = self.num_heads, self.num_kv_heads, self.head_dim
        rotate_and_store(qkv, sizes, rope=rope, cache=(cache, batch.token_slots))
        return True

    def _rotary_for(self, metadata: AttentionMetadata) -> RotaryEmbedding:
        """The table, grown to the longest sequence of the runtime."""
        assert self.rope is not None and self.pos_embd_params is not None
        manager = metadata.kv_cache_manager
        length = max(self.rope.max_positions, 0 if manager is None else manager.max_seq_len)
        held = self._rotary
        if held is None or held.max_positions < length:
            # The kernel chooses the pairing by the type; ``is_neox`` is not handed down to it.
            neox = self.pos_embd_params.type != PositionEmbeddingType.rope_gptj
            rope = replace(self.rope, max_positions=length)
            held = RotaryEmbedding(rope, head_dim=self.head_dim, is_neox=neox)
            self._rotary = held
        return held

    def _window(self, metadata: AttentionMetadata, args: AttentionForwardArgs) -> int | None:
        """The call's window, narrowed to what the cache keeps of this layer."""
        manager = metadata.kv_cache_manager
        kept = None if manager is None else manager.attention_window(self.layer_idx)
        given = [size for size in (args.attention_window_size, kept) if size is not None]
        return min(given) if given else None

    def _chunk(self, segment: Segment) -> int | None:
        return self.attention_chunk_size if segment.is_context else None
