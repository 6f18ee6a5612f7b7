"""Prefill and decode of the port on the stand-in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from trtllm_scaffold.bench.subject import Subject
from trtllm_scaffold.verify.harness import Driver, Piece


@contextmanager
def session(subject: Subject, batch: int, length: int) -> Iterator[Driver]:
    """A driver whose cache holds ``batch`` sequences of ``length`` tokens."""
    setup = replace(subject.setup, room=length)
    with Driver(subject.port, setup, max_requests=batch, tokens_per_block=32) as driver:
        driver.reserve(dict.fromkeys(range(batch), length))
        yield driver


class Prefill:
    """One sequence's prompt; calling it again writes the same cache rows again."""

    def __init__(self, driver: Driver, prompt: torch.Tensor, request: int = 0) -> None:
        pieces = [Piece(request, prompt.cpu(), 0, True)]
        self.driver, self.metadata = driver, driver.metadata(pieces)
        self.tokens, self.positions = driver.packed(pieces)

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        """Logits ``[1, vocab]`` of the last position."""
        self.metadata.prepare()
        logits: torch.Tensor = self.driver.model.forward(
            attn_metadata=self.metadata, input_ids=self.tokens, position_ids=self.positions
        )
        return logits


class Decode:
    """Greedy decoding of a batch in a CUDA graph, after the prompts are in the cache."""

    def __init__(self, driver: Driver, prompts: torch.Tensor) -> None:
        from trtllm_scaffold.standin.executor.decode_graph import DecodeGraph

        first = [Prefill(driver, prompt, who)().argmax(-1) for who, prompt in enumerate(prompts)]
        self.batch, self.length = prompts.shape
        self.first = torch.cat(first)
        metadata = driver.metadata([Piece(0, prompts[0][:1], 0, False)])
        self.graph = DecodeGraph(driver.model, metadata, self.batch)

    def start(self) -> None:
        """Go back to the end of the prompts."""
        self.graph.start(self.first, [self.length] * self.batch, range(self.batch))

    def forward(self, steps: int) -> torch.Tensor:
        """Decode ``steps`` tokens of each sequence; the newest of each, ``[batch]``."""
        for _ in range(steps):
            self.graph.step()
        return self.graph.tokens


class EagerDecode:
    """Greedy decoding step by step, for ports whose own attention asks the host."""

    def __init__(self, driver: Driver, prompts: torch.Tensor) -> None:
        self.driver, self.prompts = driver, prompts
        first = [Prefill(driver, prompt, who)().argmax(-1) for who, prompt in enumerate(prompts)]
        self.first = torch.cat(first)

    def start(self) -> None:
        """Go back to the end of the prompts."""
        self.tokens, self.past = self.first, self.prompts.shape[1]

    @torch.inference_mode()
    def forward(self, steps: int) -> torch.Tensor:
        """Decode ``steps`` tokens of each sequence; the newest of each, ``[batch]``."""
        for _ in range(steps):
            pieces = [
                Piece(who, self.prompts[who, :1], self.past, False)
                for who in range(len(self.prompts))
            ]
            metadata = self.driver.metadata(pieces)
            metadata.prepare()
            at = torch.full((1, len(pieces)), self.past, dtype=torch.int32, device="cuda")
            logits = self.driver.model.forward(
                attn_metadata=metadata, input_ids=self.tokens.int(), position_ids=at
            )
            self.tokens, self.past = logits.argmax(-1), self.past + 1
        return self.tokens


def decoding(driver: Driver, prompts: torch.Tensor, captured: bool) -> Decode | EagerDecode:
    """Greedy decoding in a CUDA graph, or step by step."""
    return Decode(driver, prompts) if captured else EagerDecode(driver, prompts)
