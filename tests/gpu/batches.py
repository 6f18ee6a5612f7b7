"""What is fed to a port: the long prompt, its decoding, and a batch of many sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise

import torch

from trtllm_scaffold.verify.harness import Driver, Piece
from trtllm_scaffold.verify.scenarios import Result, chunked, prefill

from .sizes import Sizes

#: Sequences that are decoded one after the other where not all are.
DECODED = 5

Tokens = Sequence[torch.Tensor]
Scenario = Callable[[Driver, Tokens], Iterator[Result]]


def scenarios(sizes: Sizes, every: bool = False) -> dict[str, Scenario]:
    """Each runs sequences, the long one first, and yields logits as `verify.scenarios` does.

    Args:
        sizes: How much is run.
        every: Whether each gives logits of every sequence, for a statistic over sequences; if
            not, a prefill of the long one is enough.
    """
    mixed_batch = partial(mixed, steps=sizes.steps, budget=sizes.budget)
    if every:
        return {
            "prefill": prefill_every,
            "decode": partial(decode, steps=sizes.decode, others=sizes.steps),
            "mixed batch": mixed_batch,
            "chunked prefill": chunked_every,
        }
    return {
        "prefill": prefill,
        "decode": partial(decode, steps=sizes.decode, others=sizes.decode),
        "mixed batch": mixed_batch,
        "chunked prefill": chunked,
    }


def involved(scenario: str, sequences: list[torch.Tensor], every: bool) -> list[torch.Tensor]:
    """The sequences that a scenario is given."""
    return sequences if every or scenario == "mixed batch" else sequences[:DECODED]


def prefill_every(driver: Driver, sequences: Tokens) -> Iterator[Result]:
    """Every sequence, whole, in a context batch of its own."""
    driver.reserve({who: len(tokens) for who, tokens in enumerate(sequences)})
    for who, tokens in enumerate(sequences):
        yield who, 0, driver.forward([Piece(who, tokens, 0, True)])[0]


def chunked_every(driver: Driver, sequences: Tokens) -> Iterator[Result]:
    """Each sequence in three unequal chunks, the second beside the last token of the one before."""
    driver.reserve({who: len(tokens) for who, tokens in enumerate(sequences)})
    for who, tokens in enumerate(sequences):
        known = len(tokens) - 1
        cuts = [0, max(1, known // 3), max(2, known // 3 + known // 2), known]
        for index, (start, end) in enumerate(pairwise(cuts)):
            pieces = [Piece(who, tokens[start:end], start, True)]
            if index == 1 and who > 0:
                pieces.append(_last(who - 1, sequences))
            for piece, logits in zip(pieces, driver.forward(pieces), strict=True):
                yield piece.request, piece.cached, logits
    piece = _last(len(sequences) - 1, sequences)
    yield piece.request, piece.cached, driver.forward([piece])[0]


def _last(who: int, sequences: Tokens) -> Piece:
    """The step that decodes the last token of a sequence."""
    tokens = sequences[who]
    return Piece(who, tokens[-1:], len(tokens) - 1, False)


def decode(driver: Driver, sequences: Tokens, steps: int, others: int) -> Iterator[Result]:
    """The last `steps` tokens of the long sequence and `others` of each other one, one by one."""
    for who, tokens in enumerate(sequences):
        prompt = max(len(tokens) - (others if who else steps), 1)
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
