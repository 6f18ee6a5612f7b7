"""A request while it runs: what it has cached and generated, and why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class Sequence:
    """One request.

    Attributes:
        request_id: Key in the cache.
        prompt: Token ids given.
        max_tokens: Most new tokens.
        end_ids: Tokens that end it.
        min_tokens: End tokens do not count before so many new tokens.
        keep_context_logits: Whether to keep the logits of the prompt.
        keep_generation_logits: Whether to keep the logits of each new token.
        cached: Tokens already in the cache.
        output: New token ids.
        context_logits: Logits of the prompt so far, if kept.
        generation_logits: Logits of each new token, if kept.
        finish_reason: ``length``, ``stop``, or None while it runs.
    """

    request_id: int
    prompt: list[int]
    max_tokens: int
    end_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    keep_context_logits: bool = False
    keep_generation_logits: bool = False
    cached: int = 0
    output: list[int] = field(default_factory=list)
    context_logits: list[torch.Tensor] = field(default_factory=list)
    generation_logits: list[torch.Tensor] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def tokens(self) -> list[int]:
        """Prompt and new tokens."""
        return self.prompt + self.output

    def left(self, max_seq_len: int) -> int:
        """Tokens that it may still generate where a sequence has at most ``max_seq_len``."""
        made = len(self.output)
        return min(self.max_tokens - made, max_seq_len - len(self.prompt) - made)

    def take(self, chosen: int, max_seq_len: int) -> None:
        """Append a new token and see whether that ends it."""
        self.output.append(chosen)
        if chosen in self.end_ids and len(self.output) >= self.min_tokens:
            self.finish_reason = "stop"
        elif self.left(max_seq_len) <= 0:
            self.finish_reason = "length"
