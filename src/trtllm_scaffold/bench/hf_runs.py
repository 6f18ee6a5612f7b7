"""Prefill and decode of HF's model: as it is, and compiled with a static cache."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class HfPrefill:
    """The prompt of one sequence, with a cache, logits of the last position alone."""

    def __init__(self, model: torch.nn.Module, prompt: torch.Tensor) -> None:
        self.model, self.tokens = model, prompt.unsqueeze(0).cuda()

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        """Logits ``[1, vocab]``."""
        found: torch.Tensor = self.model(self.tokens, use_cache=True, logits_to_keep=1).logits
        return found[:, -1]


class HfEager:
    """Greedy decoding with HF's default cache."""

    def __init__(self, model: torch.nn.Module, prompts: torch.Tensor) -> None:
        self.model, self.prompts = model, prompts.cuda()

    @torch.inference_mode()
    def start(self) -> None:
        """Fill the cache with the prompts."""
        out = self.model(self.prompts, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        self.tokens = out.logits[:, -1:].argmax(-1)

    @torch.inference_mode()
    def forward(self, steps: int) -> torch.Tensor:
        """Decode ``steps`` tokens; the newest of each sequence, ``[batch, 1]``."""
        for _ in range(steps):
            out = self.model(self.tokens, past_key_values=self.cache, use_cache=True)
            self.tokens = out.logits[:, -1:].argmax(-1)
        return self.tokens


class HfCompiled:
    """Greedy decoding with a static cache, the step compiled to CUDA graphs.

    It is transformers' own fastest road for one GPU: ``torch.compile`` in the mode
    ``reduce-overhead`` over a forward pass whose cache has a fixed size.
    """

    def __init__(self, model: torch.nn.Module, prompts: torch.Tensor, longest: int) -> None:
        from transformers import StaticCache

        self.model, self.prompts, self.longest = model, prompts.cuda(), longest
        config: Any = model.config
        self.cache = StaticCache(config=config, max_cache_len=longest)
        self.step = torch.compile(self._step, mode="reduce-overhead", fullgraph=False)
        self.tokens = torch.zeros(len(prompts), 1, dtype=torch.long, device="cuda")
        self.at = torch.zeros(1, dtype=torch.long, device="cuda")

    def _places(self, at: torch.Tensor) -> dict[str, torch.Tensor]:
        """Releases that do not count the cache's tokens themselves are told where to write."""
        known = inspect.signature(self.model.forward).parameters
        return {"cache_position": at} if "cache_position" in known else {}

    def _step(self, tokens: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        out = self.model(
            tokens,
            position_ids=at.unsqueeze(0),
            past_key_values=self.cache,
            use_cache=True,
            **self._places(at),
        )
        found: torch.Tensor = out.logits[:, -1:].argmax(-1)
        return found

    @torch.no_grad()
    def start(self) -> None:
        """Fill the cache with the prompts."""
        self.cache.reset()
        length = self.prompts.shape[1]
        at = torch.arange(length, device="cuda")
        out = self.model(
            self.prompts,
            position_ids=at.unsqueeze(0),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **self._places(at),
        )
        self.tokens.copy_(out.logits[:, -1:].argmax(-1))
        self.at.fill_(length)

    @torch.no_grad()
    def forward(self, steps: int) -> torch.Tensor:
        """Decode ``steps`` tokens; the newest of each sequence, ``[batch, 1]``."""
        for _ in range(steps):
            torch.compiler.cudagraph_mark_step_begin()
            self.tokens.copy_(self.step(self.tokens, self.at))
            self.at.add_(1)
        return self.tokens
