"""Drives one model as the library's own model tests do: packed batches over a paged cache."""

from __future__ import annotations

import importlib
import random
import sys

import torch

from trtllm_scaffold.standin.install import install

PORTS = f"{__package__}.ports" if __package__ else "ports"
BLOCK = 8


def ports(generation: str, name: str):
    """The hand-written models, imported afresh on the stand-in of ``generation``."""
    install(generation, force=True)
    for module in [item for item in sys.modules if item.startswith(PORTS)]:
        del sys.modules[module]
    return importlib.import_module(f"{PORTS}.{name}")


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Give every parameter, norms and biases included, values that no mistake survives."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.6 + 0.5 * noise)
            else:
                parameter.copy_(noise * 1.4 / parameter.shape[-1] ** 0.5)
    return model.eval()


class Driver:
    """One model, its cache and its batches; mirrors the recipe of the library's tests."""

    def __init__(self, model, backend: str, *, max_seq_len: int = 64, max_batch: int = 4):
        from tensorrt_llm._torch.pyexecutor.resource_manager import KVCacheManager
        from tensorrt_llm.bindings import DataType
        from tensorrt_llm.bindings.executor import KvCacheConfig
        from tensorrt_llm.bindings.internal.batch_manager import CacheType

        config = model.config
        block = max_seq_len if backend == "VANILLA" else BLOCK
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        head_dim = getattr(config, "head_dim", None)
        self.model = model
        self.cache = KVCacheManager(
            KvCacheConfig(max_tokens=max_batch * max_seq_len, enable_block_reuse=False),
            CacheType.SELF,
            num_layers=config.num_hidden_layers,
            num_kv_heads=heads,
            head_dim=head_dim or config.hidden_size // config.num_attention_heads,
            tokens_per_block=block,
            max_seq_len=max_seq_len,
            max_batch_size=max_batch,
            mapping=model.model_config.mapping,
            dtype=DataType.FLOAT,
        )
        self.metadata = self._backend(backend).Metadata(
            max_num_requests=max_batch,
            max_num_tokens=256,
            kv_cache_manager=self.cache,
        )
        self.done: dict[int, int] = {}

    @staticmethod
    def _backend(name: str):
        try:
            from tensorrt_llm._torch.attention.backends.utils import get_attention_backend
        except ImportError:
            from tensorrt_llm._torch.attention_backend.utils import get_attention_backend
        return get_attention_backend(name)

    def add(self, *lengths: tuple[int, int]) -> None:
        """Give requests room for so many tokens in all."""
        ids, totals = zip(*lengths, strict=True)
        self.cache.add_dummy_requests(list(ids), list(totals))

    def step(self, contexts, generations=(), all_logits: bool = False):
        """One forward pass of ``(request, token ids)`` pairs, contexts first."""
        from tensorrt_llm._torch.metadata import KVCacheParams

        both = [*contexts, *generations]
        past = [self.done.get(request, 0) for request, _ in both]
        md = self.metadata
        md.seq_lens = torch.tensor([len(ids) for _, ids in both], dtype=torch.int)
        md.num_contexts = len(contexts)
        md.request_ids = [request for request, _ in both]
        md.prompt_lens = [len(ids) for _, ids in both]
        md.kv_cache_params = KVCacheParams(use_cache=True, num_cached_tokens_per_seq=past)
        md.prepare()
        ids = torch.cat([torch.as_tensor(ids, dtype=torch.int32) for _, ids in both])
        positions = torch.cat(
            [
                torch.arange(old, old + len(ids), dtype=torch.int32)
                for old, (_, ids) in zip(past, both, strict=True)
            ]
        )
        with torch.inference_mode():
            logits = self.model.forward(
                input_ids=ids.to(self.cache.device),
                position_ids=positions.unsqueeze(0).to(self.cache.device),
                attn_metadata=md,
                return_context_logits=all_logits,
            )
        for request, new in both:
            self.done[request] = self.done.get(request, 0) + len(new)
        return logits.cpu()


def tokens(count: int, vocab: int, seed: int = 1) -> list[int]:
    chooser = random.Random(seed)
    return [chooser.randrange(vocab) for _ in range(count)]


def close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    """The bound of the proof: 1e-4 of the largest logit, or 1e-4."""
    assert got.shape == wanted.shape, f"{tuple(got.shape)} logits, HF has {tuple(wanted.shape)}"
    error = (got - wanted).abs().max().item()
    bound = 1e-4 * max(1.0, wanted.abs().max().item())
    assert error <= bound, f"max abs error {error:.3e} over {bound:.3e}"


@torch.inference_mode()
def hf_logits(model, ids: list[int]) -> torch.Tensor:
    """``[tokens, vocab]`` logits of one sequence."""
    return model(torch.tensor([ids])).logits[0].float()
