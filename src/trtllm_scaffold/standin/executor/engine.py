"""A small greedy engine: packed prefill in chunks, then decode steps, over the paged cache."""

from __future__ import annotations

from typing import Any

import torch

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.standin.attention.selection import get_attention_backend
from trtllm_scaffold.standin.executor.bindings import CacheType, data_type
from trtllm_scaffold.standin.executor.decode_graph import DecodeGraph
from trtllm_scaffold.standin.executor.decode_loop import StepsBySize, decode
from trtllm_scaffold.standin.executor.kv_cache import KVCacheManager
from trtllm_scaffold.standin.executor.sequence import Sequence
from trtllm_scaffold.standin.interface import KVCacheParams
from trtllm_scaffold.standin.kernels.choice import HAS_TRITON


def cache_geometry(pretrained: Any) -> tuple[CacheType, Any, int]:
    """Type, heads and width of the cache, as the runtime reads them off a configuration.

    A configuration with ``kv_lora_rank`` and ``qk_rope_head_dim`` gets one head for the latent
    and the rotated key, whatever the model does.
    """
    latent = getattr(pretrained, "kv_lora_rank", None)
    turned = getattr(pretrained, "qk_rope_head_dim", None)
    if latent and turned:
        return CacheType.SELFKONLY, 1, latent + turned
    heads = pretrained.num_attention_heads
    head_dim = getattr(pretrained, "head_dim", None)
    if not isinstance(head_dim, int):
        head_dim = pretrained.hidden_size // heads
    return CacheType.SELF, getattr(pretrained, "num_key_value_heads", heads), head_dim


class Engine:
    """Runs one model greedily. It batches, but does not schedule: it is no serving engine.

    Attributes:
        captured: Decode steps in CUDA graphs, or None to decode eagerly.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_batch_size: int,
        max_num_tokens: int,
        max_seq_len: int,
        kv_cache_config: Any,
        cuda_graphs: bool = False,
    ) -> None:
        config = model.model_config
        backend = get_attention_backend(config.attn_backend)
        self.model, self.max_batch_size = model, max_batch_size
        self.max_num_tokens, self.max_seq_len = max_num_tokens, max_seq_len
        # VANILLA reads one block per sequence, so the real runtime makes blocks that long.
        whole = backend.name == "VANILLA"
        block = max_seq_len if whole else kv_cache_config.tokens_per_block
        self.cache = self._make_cache(kv_cache_config, block)
        self.metadata = backend.Metadata(
            max_num_requests=max_batch_size,
            max_num_tokens=max(max_num_tokens, max_batch_size),
            kv_cache_manager=self.cache,
            mapping=config.mapping,
        )
        self.captured: StepsBySize | None = None
        if cuda_graphs and self._can_capture(backend.name):
            self.captured = StepsBySize(lambda size: DecodeGraph(model, self.metadata, size))

    def _make_cache(self, kv_cache_config: Any, tokens_per_block: int) -> KVCacheManager:
        config = self.model.model_config
        kind, heads, head_dim = cache_geometry(config.pretrained_config)
        return KVCacheManager(
            kv_cache_config,
            kind,
            num_layers=config.pretrained_config.num_hidden_layers,
            num_kv_heads=heads,
            head_dim=head_dim,
            tokens_per_block=tokens_per_block,
            max_seq_len=self.max_seq_len,
            max_batch_size=self.max_batch_size,
            mapping=config.mapping,
            dtype=data_type(config.torch_dtype),
            model_config=config,
        )

    def _can_capture(self, backend: str) -> bool:
        """Whether decode steps go into CUDA graphs.

        VANILLA goes from sequence to sequence on the host in the real runtime, and collectives
        over gloo go through the host here.
        """
        alone = self.model.model_config.mapping.world_size == 1
        return backend == "TRTLLM" and alone and self.cache.device.type == "cuda" and HAS_TRITON

    def shutdown(self) -> None:
        """Release the captured steps and the cache; the engine must not run afterwards."""
        if self.captured is not None:
            self.captured.clear()
        self.cache.shutdown()

    @torch.inference_mode()
    def run(self, sequences: list[Sequence]) -> None:
        """Generate until every sequence is finished, ``max_batch_size`` at a time.

        Raises:
            InputError: If a prompt is empty, or has no room for a new token.
            NotImplementedError: If decode steps are to be captured, and the model's cannot be.
        """
        for sequence in sequences:
            length = len(sequence.prompt)
            if not 0 < length < self.max_seq_len:
                raise InputError(
                    f"a prompt of {length} tokens does not fit max_seq_len {self.max_seq_len}",
                    hint="prompts need at least one token and room for a new one",
                )
        for first in range(0, len(sequences), self.max_batch_size):
            batch = sequences[first : first + self.max_batch_size]
            for sequence in batch:
                self.cache.add_dummy_requests([sequence.request_id], [len(sequence.prompt)])
            try:
                self._finish(batch)
            finally:
                for sequence in batch:
                    self.cache.free_resources(sequence.request_id)

    def _finish(self, batch: list[Sequence]) -> None:
        while True:
            running = [item for item in batch if item.finish_reason is None]
            if not running:
                return
            if self.captured is None or not all(item.output for item in running):
                self._step(running)
                continue
            try:
                decode(self.captured, self.cache, running, self.max_seq_len)
            except NotImplementedError as error:
                raise NotImplementedError(
                    f"this model's decode step cannot be captured in a CUDA graph ({error}): give "
                    "LLM cuda_graph_config=None, in a file of options `cuda_graph_config: null`"
                ) from error

    def _step(self, running: list[Sequence]) -> None:
        """One forward pass: as much prefill as fits besides one token of each other sequence."""
        decoding = [item for item in running if item.output]
        room = max(self.max_num_tokens - len(decoding), 1)
        contexts: list[tuple[Sequence, int]] = []
        for item in running:
            left = len(item.prompt) - item.cached
            if item.output or not room:
                continue
            contexts.append((item, min(left, room)))
            room -= min(left, room)
        chosen = contexts + [(item, 1) for item in decoding]
        for item in decoding:
            self.cache.reserve(item.request_id, item.cached + 1)
        want_all = any(item.keep_context_logits for item, _ in contexts)
        logits = self._forward(chosen, len(contexts), want_all)
        row = 0
        for item, count in chosen:
            rows = logits[row : row + (count if want_all else 1)]
            row += len(rows)
            was_context = item.cached < len(item.prompt)
            item.cached += count
            if was_context and item.keep_context_logits:
                item.context_logits.append(rows.cpu())
            if item.cached >= len(item.prompt):
                item.take(int(rows[-1].argmax()), self.max_seq_len)
                if item.keep_generation_logits:
                    item.generation_logits.append(rows[-1].cpu())

    def _forward(
        self, chosen: list[tuple[Sequence, int]], num_contexts: int, context_logits: bool
    ) -> torch.Tensor:
        device = self.cache.device
        ids: list[int] = []
        positions: list[int] = []
        for item, count in chosen:
            ids += item.tokens[item.cached : item.cached + count]
            positions += range(item.cached, item.cached + count)
        md = self.metadata
        md.seq_lens = torch.tensor([count for _, count in chosen], dtype=torch.int32)
        md.num_contexts = num_contexts
        md.request_ids = [item.request_id for item, _ in chosen]
        md.prompt_lens = [len(item.prompt) for item, _ in chosen]
        md.kv_cache_params = KVCacheParams(
            use_cache=True, num_cached_tokens_per_seq=[item.cached for item, _ in chosen]
        )
        md.prepare()
        logits: torch.Tensor = self.model.forward(
            input_ids=torch.tensor(ids, dtype=torch.int32, device=device),
            position_ids=torch.tensor(positions, dtype=torch.int32, device=device).unsqueeze(0),
            attn_metadata=md,
            return_context_logits=context_logits,
        )
        return logits
