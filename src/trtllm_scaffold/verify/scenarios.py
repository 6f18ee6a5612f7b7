"""The batches that a port is proven on: what is fed to the runtime, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.verify.harness import Driver, Piece

#: Decode steps after each prompt.
STEPS = 8

#: Prompt length where no window and no rope length asks for more.
_LEAST = 20

Logits = list[torch.Tensor]
#: Sequence, first position, logits from there on.
Result = tuple[int, int, torch.Tensor]


@dataclass(frozen=True)
class Regime:
    """Sequence lengths that belong together, and what the engine was told.

    Attributes:
        name: Empty where there is only one.
        max_seq_len: Of the engine. The runtime picks longrope factors once, by it; HF picks
            them per forward, by the sequence. Either agrees only within a regime.
        prompts: Prompt lengths of four sequences; each has `STEPS` more tokens.
    """

    name: str
    max_seq_len: int
    prompts: tuple[int, ...]


def regimes(config: Any) -> list[Regime]:
    """The regimes that show every window and rope length of a (tiny) HF configuration.

    Raises:
        InputError: If its longest sequence is too short to show them.
    """
    limit = position_limit(config)
    original = original_length(config)
    if original is not None and has_two_tables(config):
        short, long = original - STEPS, original + 5
        if short < 2 or long + STEPS > limit:
            raise InputError(
                f"original length {original} and max_position_embeddings {limit} leave no room "
                f"for prompts and {STEPS} more tokens below the one and between both",
                where="the tiny configuration",
            )
        return [
            Regime("short factors", original, (short, max(1, short - 3), max(1, short // 2), 2)),
            Regime("long factors", limit, (long, long - 2, long - 4, long - 6)),
        ]
    longest = max([_LEAST, (original or 0) + 9, *(2 * size + 5 for size in windows(config))])
    longest = min(longest, limit - STEPS)
    if longest < 5:
        raise InputError(f"max_position_embeddings {limit} is too short for a proof")
    return [Regime("", limit, (longest, 2 * longest // 3, longest // 2 + 1, 5))]


def position_limit(config: Any) -> int:
    """The longest sequence of `config`; 2048, as the runtime assumes, where it names none."""
    return int(getattr(config, "max_position_embeddings", None) or 2048)


def windows(config: Any) -> list[int]:
    """Every window and chunk of a configuration that some sequence can exceed."""
    found = []
    for name in ("sliding_window", "attention_chunk_size", "window_size"):
        value = getattr(config, name, None)
        if isinstance(value, int) and 0 < value < position_limit(config):
            found.append(value)
    return found


def original_length(config: Any) -> int | None:
    """The length that the rope table was trained for, where scaling extends it."""
    limit = position_limit(config)
    sources = [getattr(config, name, None) for name in ("rope_parameters", "rope_scaling")]
    for source in (*sources, vars(config)):
        value = source.get("original_max_position_embeddings") if source else None
        if isinstance(value, int) and value < limit:
            return value
    return None


def has_two_tables(config: Any) -> bool:
    """Whether short and long sequences use different factors."""
    for name in ("rope_parameters", "rope_scaling"):
        source = getattr(config, name, None) or {}
        if source.get("long_factor") and source.get("short_factor"):
            return True
    return False


def prefill(driver: Driver, sequences: list[torch.Tensor]) -> Iterator[Result]:
    """The first sequence, whole, in one context batch."""
    first = sequences[0]
    driver.reserve({10: len(first)})
    yield 0, 0, driver.forward([Piece(10, first, 0, True)])[0]


def decode(driver: Driver, sequences: list[torch.Tensor]) -> Iterator[Result]:
    """A prompt, then `STEPS` single tokens."""
    tokens = sequences[0]
    prompt = len(tokens) - STEPS
    driver.reserve({20: len(tokens)})
    driver.forward([Piece(20, tokens[:prompt], 0, True)])
    for position in range(prompt, len(tokens)):
        piece = Piece(20, tokens[position : position + 1], position, False)
        yield 0, position, driver.forward([piece])[0]


def mixed(driver: Driver, sequences: list[torch.Tensor]) -> Iterator[Result]:
    """Two prompts of unequal length; two more join while the first two decode; all decode."""
    prompts = [len(tokens) - STEPS for tokens in sequences]
    driver.reserve({30 + index: len(tokens) for index, tokens in enumerate(sequences)})

    def step(contexts: list[int], generations: dict[int, int]) -> Iterator[Result]:
        pieces = [Piece(30 + who, sequences[who][: prompts[who]], 0, True) for who in contexts]
        starts = [(who, 0) for who in contexts]
        for who, position in generations.items():
            token = sequences[who][position : position + 1]
            pieces.append(Piece(30 + who, token, position, False))
            starts.append((who, position))
        for (who, start), logits in zip(starts, driver.forward(pieces), strict=True):
            yield who, start, logits

    yield from step([1, 0], {})
    yield from step([2, 3], {0: prompts[0], 1: prompts[1]})
    for count in range(STEPS - 1):
        done = {0: 1, 1: 1, 2: 0, 3: 0}
        yield from step([], {who: prompts[who] + done[who] + count for who in (3, 1, 0, 2)})


def chunked(driver: Driver, sequences: list[torch.Tensor]) -> Iterator[Result]:
    """A prompt in three unequal chunks, the second beside another sequence's decode step."""
    tokens, other = sequences[0], sequences[1]
    prompt, known = len(tokens) - STEPS, len(other) - STEPS
    driver.reserve({40: len(tokens), 41: len(other)})
    yield 1, 0, driver.forward([Piece(41, other[:known], 0, True)])[0]
    cuts = [0, max(1, prompt // 3), max(2, prompt // 3 + prompt // 2), prompt]
    for index, (start, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        pieces = [Piece(40, tokens[start:end], start, True)]
        if index == 1:
            pieces.append(Piece(41, other[known : known + 1], known, False))
        results = driver.forward(pieces)
        yield 0, start, results[0]
        if index == 1:
            yield 1, known, results[1]
    yield 0, prompt, driver.forward([Piece(40, tokens[prompt : prompt + 1], prompt, False)])[0]


SCENARIOS: dict[str, Callable[[Driver, list[torch.Tensor]], Iterator[Result]]] = {
    "prefill": prefill,
    "decode": decode,
    "mixed batch": mixed,
    "chunked prefill": chunked,
}


def make_sequences(regime: Regime, vocab_size: int, seed: int) -> list[torch.Tensor]:
    """Random token ids, [prompt + STEPS] for each of the regime's sequences."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, vocab_size, (prompt + STEPS,), generator=generator)
        for prompt in regime.prompts
    ]
