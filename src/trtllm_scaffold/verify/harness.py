"""Drive one model on the runtime without its executor: packed batches, paged cache, logits."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from trtllm_scaffold.errors import EnvironmentProblem

_T = "tensorrt_llm._torch"

#: What the driver itself needs, at every path it is known to have had: (module, name).
_API = {
    "get_attention_backend": (
        (f"{_T}.attention.backends.utils", "get_attention_backend"),
        (f"{_T}.attention_backend.utils", "get_attention_backend"),
    ),
    "AttentionRuntimeFeatures": (
        (f"{_T}.attention.backends.interface", "AttentionRuntimeFeatures"),
        (f"{_T}.attention_backend.interface", "AttentionRuntimeFeatures"),
    ),
    "KVCacheParams": ((f"{_T}.metadata", "KVCacheParams"),),
    "KVCacheManager": ((f"{_T}.pyexecutor.resource_manager", "KVCacheManager"),),
    "ModelConfig": ((f"{_T}.model_config", "ModelConfig"),),
    "AutoModelForCausalLM": (
        (f"{_T}.models.modeling_auto", "AutoModelForCausalLM"),
        (f"{_T}.models", "AutoModelForCausalLM"),
    ),
    "MetaInitMode": ((f"{_T}.models.modeling_utils", "MetaInitMode"),),
    "Mapping": (("tensorrt_llm.mapping", "Mapping"),),
    "KvCacheConfig": (("tensorrt_llm.bindings.executor", "KvCacheConfig"),),
    "CacheType": (("tensorrt_llm.bindings.internal.batch_manager", "CacheType"),),
    "DataType": (("tensorrt_llm.bindings", "DataType"),),
}

_CACHE_TYPES = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16"}


def runtime_api() -> SimpleNamespace:
    """The runtime's names that the driver uses, found in the installed generation.

    Raises:
        EnvironmentProblem: If the runtime lacks one.
    """
    return SimpleNamespace(**{name: _find(name, homes) for name, homes in _API.items()})


def _find(name: str, homes: Sequence[tuple[str, str]]) -> Any:
    problems = []
    for module, attribute in homes:
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            problems.append(str(error))
    raise EnvironmentProblem(f"the runtime has no {name}: {problems[-1]}")


@dataclass(frozen=True)
class Setup:
    """How a model is built and run.

    Attributes:
        max_seq_len: Longest sequence that the engine promises to serve; with longrope it
            decides which factors apply.
        backend: Name of the attention backend.
        dtype: Of the weights, the activations and the cache.
        device: ``cpu`` or ``cuda``.
        mapping: Arguments of the runtime's ``Mapping``: world_size, rank, tp_size and so on.
        room: Tokens that the cache holds of each sequence; `max_seq_len` where it is None.
    """

    max_seq_len: int
    backend: str = "TRTLLM"
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    mapping: Mapping[str, int] | None = None
    room: int | None = None

    @property
    def longest(self) -> int:
        """Tokens that the cache holds of each sequence."""
        return self.max_seq_len if self.room is None else self.room


@dataclass(frozen=True)
class Piece:
    """New tokens of one sequence in a batch.

    Attributes:
        request: Key of the sequence in the cache.
        tokens: [n] token ids.
        cached: How many tokens of the sequence the cache holds already.
        is_context: Whether they are (a chunk of) the prompt, else one generated token.
    """

    request: int
    tokens: torch.Tensor
    cached: int
    is_context: bool


def model_config(config: Any, setup: Setup) -> Any:
    """The runtime's ``ModelConfig`` around a copy of the HF configuration."""
    api = runtime_api()
    pretrained = copy.deepcopy(config)
    pretrained.torch_dtype = setup.dtype
    return api.ModelConfig(
        pretrained_config=pretrained,
        mapping=api.Mapping(**(setup.mapping or {})),
        attn_backend=setup.backend,
        max_seq_len=setup.max_seq_len,
    )


def build_model(config: Any, weights: Mapping[str, torch.Tensor], setup: Setup) -> Any:
    """Construct the registered model, fill it and run the post-load hooks, as the loader does."""
    model = runtime_api().AutoModelForCausalLM.from_config(model_config(config, setup))
    model.to(setup.device)
    return load_model(model, weights)


def load_model(model: Any, weights: Mapping[str, torch.Tensor]) -> Any:
    """Fill a constructed model and run the post-load hooks; returns it in eval mode."""
    model.load_weights(dict(weights))
    for module in model.modules():
        if hasattr(module, "post_load_weights") and not getattr(module, "_weights_removed", False):
            module.post_load_weights()
    return model.eval()


class Driver:
    """A model with a cache for up to `max_requests` sequences, in blocks of `tokens_per_block`.

    Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        model: Any,
        setup: Setup,
        *,
        max_requests: int = 4,
        tokens_per_block: int | None = None,
    ) -> None:
        self.api = runtime_api()
        self.model, self.setup, self.max_requests = model, setup, max_requests
        self.tokens_per_block = tokens_per_block or _tokens_per_block(setup)
        self.cache = self._make_cache(model.model_config)
        self.metadata_class = self.api.get_attention_backend(setup.backend).Metadata

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the cache."""
        self.cache.shutdown()

    def reserve(self, lengths: Mapping[int, int]) -> None:
        """Give each request room for its final length in tokens."""
        self.cache.add_dummy_requests(list(lengths), list(lengths.values()))

    def forward(self, pieces: Sequence[Piece], **options: Any) -> list[torch.Tensor]:
        """Run one packed batch, contexts before generations.

        Args:
            pieces: The new tokens of each sequence.
            **options: Further keywords of the model's ``forward``.

        Returns:
            For each piece its logits at all its positions, [n, vocab_size] fp32 on the CPU.
        """
        with torch.inference_mode():
            metadata = self.metadata(pieces)
            if self.model.model_config.mapping.enable_attention_dp:
                metadata.all_rank_num_tokens = _tokens_of_all_ranks(pieces)
            metadata.prepare()
            tokens, positions = self.packed(pieces)
            logits = self.model.forward(
                attn_metadata=metadata,
                input_ids=tokens,
                position_ids=positions,
                return_context_logits=True,
                **options,
            )
        return list(logits.float().cpu().split([len(piece.tokens) for piece in pieces]))

    def packed(self, pieces: Sequence[Piece]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids [num_tokens] and positions [1, num_tokens] of a batch, on the device."""
        tokens = torch.cat([piece.tokens for piece in pieces]).int()
        spans = [torch.arange(item.cached, item.cached + len(item.tokens)) for item in pieces]
        positions = torch.cat(spans).int().unsqueeze(0)
        return tokens.to(self.setup.device), positions.to(self.setup.device)

    def metadata(self, pieces: Sequence[Piece]) -> Any:
        """The backend's metadata of a batch, not yet prepared."""
        lengths = [len(piece.tokens) for piece in pieces]
        contexts = sum(piece.is_context for piece in pieces)
        chunked = any(piece.is_context and piece.cached for piece in pieces)
        return self.metadata_class(
            max_num_requests=self.max_requests,
            max_num_tokens=8192,
            kv_cache_manager=self.cache,
            mapping=self.model.model_config.mapping,
            seq_lens=torch.tensor(lengths, dtype=torch.int32),
            num_contexts=contexts,
            kv_cache_params=self.api.KVCacheParams(
                use_cache=True, num_cached_tokens_per_seq=[piece.cached for piece in pieces]
            ),
            request_ids=[piece.request for piece in pieces],
            prompt_lens=[
                len(piece.tokens) if piece.is_context else piece.cached for piece in pieces
            ],
            runtime_features=self.api.AttentionRuntimeFeatures(chunked_prefill=chunked),
        )

    def _make_cache(self, config: Any) -> Any:
        pretrained = config.pretrained_config
        blocks = self.max_requests * -(-self.setup.longest // self.tokens_per_block)
        return self.api.KVCacheManager(
            self.api.KvCacheConfig(
                max_tokens=blocks * self.tokens_per_block, enable_block_reuse=False
            ),
            self.api.CacheType.SELFKONLY if is_latent(pretrained) else self.api.CacheType.SELF,
            num_layers=pretrained.num_hidden_layers,
            num_kv_heads=_kv_heads(pretrained),
            head_dim=_head_dim(pretrained),
            tokens_per_block=self.tokens_per_block,
            max_seq_len=self.setup.longest,
            max_batch_size=self.max_requests,
            mapping=config.mapping,
            dtype=getattr(self.api.DataType, _CACHE_TYPES[self.setup.dtype]),
        )


def _tokens_of_all_ranks(pieces: Sequence[Piece]) -> list[int]:
    """How many tokens each rank's batch has: the executor gathers the numbers, as here."""
    own = torch.tensor([sum(len(piece.tokens) for piece in pieces)])
    found = [torch.zeros_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(found, own)
    return [int(count) for count in found]


def _tokens_per_block(setup: Setup) -> int:
    """VANILLA reads only the first block of a sequence; the others should cross many."""
    if setup.backend != "VANILLA":
        return 8
    size = 8
    while size < setup.longest:
        size *= 2
    return size


def is_latent(config: Any) -> bool:
    """Whether the runtime makes the cache of multi-head latent attention for it."""
    return bool(getattr(config, "kv_lora_rank", None) and getattr(config, "qk_rope_head_dim", None))


def _kv_heads(config: Any) -> Any:
    """As the runtime reads it: the attention heads where the attribute is absent."""
    if is_latent(config):
        return 1
    return getattr(config, "num_key_value_heads", config.num_attention_heads)


def _head_dim(config: Any) -> int:
    """As the runtime reads it: only an int counts."""
    if is_latent(config):
        return int(config.kv_lora_rank + config.qk_rope_head_dim)
    given = getattr(config, "head_dim", None)
    if isinstance(given, int):
        return given
    return int(config.hidden_size) // int(config.num_attention_heads)
