"""AttentionBackend: one layer's attention over the paged cache, common to all backends."""

from __future__ import annotations

import math
from typing import Any, Generic, TypeVar

import torch

from trtllm_scaffold.standin.attention.batch import Segment
from trtllm_scaffold.standin.attention.forward_args import (
    AttentionForwardArgs,
    check_computed,
    legacy_forward_args,
    merge_attention_forward_args,
)
from trtllm_scaffold.standin.attention.kernel import (
    attend,
    causal_mask,
    custom_mask,
    full_mask,
    read_cache,
    write_cache,
)
from trtllm_scaffold.standin.attention.metadata import AttentionMetadata
from trtllm_scaffold.standin.generation import active, contract, only_in
from trtllm_scaffold.standin.interface import CustomAttentionMask, PredefinedAttentionMask
from trtllm_scaffold.standin.kernels.choice import fits

TMetadata = TypeVar("TMetadata", bound=AttentionMetadata)


@contract("AttentionBackend")
class AttentionBackend(Generic[TMetadata]):
    """Attention of one layer: stores new keys and values, attends to the cached ones.

    Attributes:
        Metadata: Class of the batch description that this backend reads.
        layer_idx: Layer, the key of its buffers in the cache.
        num_heads: Query heads of this rank.
        num_kv_heads: Key/value heads of this rank.
        head_dim: Width of a head.
    """

    Metadata: type[AttentionMetadata] = AttentionMetadata
    #: Name in ``ModelConfig.attn_backend``.
    name = ""
    #: Per generation: whether the backend takes a custom mask.
    takes_custom_mask: dict[str, bool] = {"1.2": False, "1.4": False}

    def __init__(
        self,
        layer_idx: int | None,
        num_heads: int,
        head_dim: int,
        num_kv_heads: int | None = None,
        quant_config: Any = None,
        skip_create_weights_in_init: bool = False,
        sparse_attention_config: Any = None,
        **kwargs: Any,
    ) -> None:
        if sparse_attention_config is not None or kwargs.get("sparse_params") is not None:
            raise NotImplementedError("the stand-in has no sparse attention")
        self.layer_idx = layer_idx
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_kv_heads = num_kv_heads or num_heads
        self.quant_config = quant_config
        self.sparse_attention_config = sparse_attention_config
        self.q_scaling = kwargs.get("q_scaling") or 1.0
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} query heads do not share {self.num_kv_heads} key/value heads"
            )

    # ------------------------------------------------------------------ capabilities

    @classmethod
    def support_fused_rope(cls) -> bool:
        """Whether the backend rotates queries and keys itself."""
        return False

    @classmethod
    def support_fused_qkv(cls) -> bool:
        """Whether ``q`` may hold q, k and v."""
        return False

    @classmethod
    def support_mla(cls) -> bool:
        """Whether the backend has latent attention: in 1.2 only TRTLLM does."""
        return active() == "1.4"

    @classmethod
    def support_nvfp4_output(cls) -> bool:
        """The stand-in writes full-precision outputs."""
        return False

    def update_quant_config(self, new_quant_config: Any) -> None:
        """Take the layer's resolved quantization."""
        self.quant_config = new_quant_config

    def create_output(self, q: torch.Tensor, **kwargs: Any) -> list[torch.Tensor]:
        """An uninitialised output for ``q``."""
        return [q.new_empty(q.shape[0], self.num_heads * self.head_dim)]

    # ------------------------------------------------------------------ computation

    def forward(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        metadata: AttentionMetadata,
        forward_args: AttentionForwardArgs | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Attention of packed tokens.

        Args:
            q: ``[tokens, heads * head_dim]``, or q, k and v side by side if ``k`` is None.
            k: ``[tokens, kv_heads * head_dim]``.
            v: Like ``k``.
            metadata: The prepared batch.
            forward_args: Options (1.4).
            **kwargs: Options by name; 1.4 refuses names it does not know, 1.2 ignores them.

        Returns:
            ``[tokens, heads * head_dim]``.
        """
        if active() == "1.2":
            only_in("1.4", f"{type(self).__name__}.forward", forward_args=forward_args)
            args = legacy_forward_args(kwargs)
        else:
            args = merge_attention_forward_args(forward_args, kwargs)
        check_computed(args)
        self._check_options(args)
        stored = k is None and self._rotate_and_store(q, metadata, args)
        q, k, v = self._heads(q, k, v)
        if not stored:
            q, k = self._rotate(q, k, metadata)
        out = self._attend(q, k, v, metadata, args, stored)
        if args.output is None:
            return out
        args.output.copy_(out)
        return args.output

    def _check_options(self, args: AttentionForwardArgs) -> None:
        if args.attention_sinks is not None:
            raise ValueError(f"attention_sinks need the TRTLLM backend, this is {self.name}")
        if args.attention_mask == CustomAttentionMask.CUSTOM:
            if not self.takes_custom_mask[active()]:
                raise ValueError(f"the {self.name} backend takes no custom mask")
            if args.attention_mask_data is None:
                raise ValueError("a custom mask needs attention_mask_data")

    def _heads(
        self, q: torch.Tensor, k: torch.Tensor | None, v: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if k is None or v is None:
            if not self.support_fused_qkv():
                raise ValueError(f"the {self.name} backend takes q, k and v apart")
            kv_size = self.num_kv_heads * self.head_dim
            q, k, v = q.split([q.shape[-1] - 2 * kv_size, kv_size, kv_size], dim=-1)
        # [tokens, heads * head_dim] -> [tokens, heads, head_dim]
        return (
            q.reshape(-1, self.num_heads, self.head_dim),
            k.reshape(-1, self.num_kv_heads, self.head_dim),
            v.reshape(-1, self.num_kv_heads, self.head_dim),
        )

    def _rotate(
        self, q: torch.Tensor, k: torch.Tensor, metadata: AttentionMetadata
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return q, k

    def _rotate_and_store(
        self, qkv: torch.Tensor, metadata: AttentionMetadata, args: AttentionForwardArgs
    ) -> bool:
        """Rotate and fill the cache in one kernel, where the backend can; False if it did not."""
        return False

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        metadata: AttentionMetadata,
        args: AttentionForwardArgs,
        stored: bool,
    ) -> torch.Tensor:
        batch = metadata.prepared()
        if q.shape[0] != metadata.num_tokens:
            raise ValueError(f"{q.shape[0]} rows of q for {metadata.num_tokens} tokens")
        manager = metadata.kv_cache_manager
        cache = None if manager is None else manager.get_buffers(self.layer_idx)
        if cache is not None and args.update_kv_cache and not stored:
            write_cache(cache, batch.token_slots, k, v)
        outputs = []
        for segment in batch.segments:
            rows = slice(segment.first_token, segment.first_token + segment.num_tokens)
            if cache is not None and _decodes(segment, q, cache):
                outputs.append(self._decode(q[rows], cache, segment, metadata, args))
                continue
            if cache is None:
                keys, values = k[segment.slots], v[segment.slots]
            elif segment.starts_empty and not segment.fixed and cache.dtype == k.dtype:
                keys, values = segment.pad(k[rows]), segment.pad(v[rows])
            else:
                keys, values = read_cache(cache, segment.slots, q.dtype)
            padded = attend(
                segment.pad(q[rows]),
                keys,
                values,
                mask=self._mask(segment, metadata, args),
                scale=self._scale(metadata),
                sinks=args.attention_sinks,
            )
            outputs.append(segment.unpad(padded))
        joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return joined.reshape(q.shape[0], -1)

    def _decode(
        self,
        q: torch.Tensor,
        cache: torch.Tensor,
        segment: Segment,
        metadata: AttentionMetadata,
        args: AttentionForwardArgs,
    ) -> torch.Tensor:
        """Attention of one new token per sequence, ``[sequences, heads, head_dim]``."""
        from trtllm_scaffold.standin.kernels.paged_attention import Paged, paged_attention

        assert segment.block_table is not None
        longest = segment.num_keys if segment.fixed else segment.longest
        return paged_attention(
            q,
            Paged(cache, segment.block_table, segment.kv_lens, longest),
            scale=self._scale(metadata),
            window=self._window(metadata, args),
            sinks=args.attention_sinks,
        )

    def _scale(self, metadata: AttentionMetadata) -> float:
        """Factor of the scores, ``1 / (sqrt(head_dim) * q_scaling)``."""
        return 1.0 / (math.sqrt(self.head_dim) * self.q_scaling)

    def _window(self, metadata: AttentionMetadata, args: AttentionForwardArgs) -> int | None:
        return args.attention_window_size

    def _chunk(self, segment: Segment) -> int | None:
        return None

    def _mask(
        self, segment: Segment, metadata: AttentionMetadata, args: AttentionForwardArgs
    ) -> torch.Tensor | None:
        if args.attention_mask == CustomAttentionMask.CUSTOM and segment.is_context:
            assert args.attention_mask_data is not None
            shape = (segment.num_queries, segment.num_keys)
            data = args.attention_mask_data
            return custom_mask(data, segment.query_lens, segment.kv_lens, shape)
        if args.attention_mask == PredefinedAttentionMask.FULL:
            return full_mask(segment.kv_lens, segment.num_queries, segment.num_keys)
        window, chunk = self._window(metadata, args), self._chunk(segment)
        window = window if window is not None and window < segment.longest else None
        chunk = chunk if chunk is not None and chunk < segment.longest else None
        if segment.starts_empty and window is None and chunk is None and not segment.fixed:
            return None
        if segment.fixed:
            # A captured mask must be computed inside the graph, from this call's positions.
            limits = {"window": self._window(metadata, args), "chunk": self._chunk(segment)}
            return causal_mask(segment.positions, segment.num_keys, **limits)
        made = segment.masks.get((window, chunk))
        if made is None:
            made = causal_mask(segment.positions, segment.num_keys, window=window, chunk=chunk)
            segment.masks[(window, chunk)] = made
        return made


def _decodes(segment: Segment, q: torch.Tensor, cache: torch.Tensor) -> bool:
    """Whether the run is one new token for each sequence, and the kernel takes it."""
    single = not segment.is_context and segment.num_queries == 1
    return single and fits(q, cache) and q.stride(-1) == 1 and q.stride(-2) == q.shape[-1]
