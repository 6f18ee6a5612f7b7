"""What is fed to a port: the long prompt, its decoding, and a batch of many sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from trtllm_scaffold.verify.harness import Driver, Piece
from trtllm_scaffold.verify.scenarios import Result, chunked, prefill

from .sizes import Sizes

#: Sequences that are decoded one after the other.
DECODED = 5

Tokens = Sequence[torch.Tensor]
Scenario = Callable[[Driver, Tokens], Iterator[Result]]


def scenarios(sizes: Sizes) -> dict[str, Scenario]:
    """Each runs sequences, the long one first, and yields logits as `verify.scenarios` does."""
    return {
        "prefill": prefill,
        "decode": partial(decode, steps=sizes.decode),
        "mixed batch": partial(mixed, steps=sizes.steps, budget=sizes.budget),
        "chunked prefill": chunked,
    }


def decode(driver: Driver, sequences: Tokens, steps: int) -> Iterator[Result]:
    """The last `steps` tokens of the long sequence and of four others, one by one."""
    for who, tokens in enumerate(sequences[:DECODED]):
        prompt = max(len(tokens) - steps, 1)
        driver.reserve({who: len(tokens)})
        driver.forward([Piece(who, tokens[:prompt], 0, True)])
        for position in range(prompt, len(tokens)):
            piece = Piece(who, tokens[position : position + 1], position, False)
            yield who, position, driver.forward([piece])[0]


def mixed(driver: Driver, sequences: Tokens, steps: int, budget: int) -> Iterator[Result]:
    """All but the long sequence join a few at a time, while those that are in decode."""
    waiting = list(range(1, len(sequences)))
    lengths = {who: len(sequences[who]) for who in waiting}
    driver.reserve(lengths)
    running: dict[int, int] = {}
    while waiting or running:
        joining = _next(waiting, lengths, steps, budget)
        pieces = [Piece(who, sequences[who][: lengths[who] - steps], 0, True) for who in joining]
        starts = [(who, 0) for who in joining]
        for who, position in running.items():
            token = sequences[who][position : position + 1]
            pieces.append(Piece(who, token, position, False))
            starts.append((who, position))
        for (who, start), logits in zip(starts, driver.forward(pieces), strict=True):
            yield who, start, logits
        running = {who: position + 1 for who, position in running.items()}
        running |= {who: lengths[who] - steps for who in joining}
        running = {who: position for who, position in running.items() if position < lengths[who]}


def _next(waiting: list[int], lengths: dict[int, int], steps: int, budget: int) -> list[int]:
    """Take from `waiting` those whose prompts fit into `budget`, one at least."""
    taken: list[int] = []
    while waiting and (not taken or budget >= lengths[waiting[0]] - steps):
        budget -= lengths[waiting[0]] - steps
        taken.append(waiting.pop(0))
    return taken
