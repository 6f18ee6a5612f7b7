"""How much of everything the suite runs: in full on a GPU, in a dry run only to see it run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trtllm_scaffold.verify.scenarios import Regime, has_two_tables, original_length


@dataclass(frozen=True)
class Sizes:
    """Tokens and sequences of the checks.

    Attributes:
        device: ``cuda``, or ``cpu`` in a dry run.
        config: The configuration that runs, relative to the port.
        prompt: Tokens of the long prompt.
        decode: Tokens decoded after it.
        batch: Prompt lengths of the mixed batch, one for each of its sequences.
        steps: Tokens decoded after each of those.
        budget: Prompt tokens that join the mixed batch in one step.
        greedy: Prompt and generated tokens of the greedy generation.
        ranks: Lengths of the four sequences that two ranks run.
        limit: Longest sequence of a model that has no limit of its own.
        compiler: Backend of ``torch.compile``.
    """

    device: str
    config: str
    prompt: int
    decode: int
    batch: tuple[int, ...]
    steps: int
    budget: int
    greedy: tuple[int, int]
    ranks: tuple[int, ...]
    limit: int
    compiler: str


FULL = Sizes(
    device="cuda",
    config="config.json",
    prompt=4096,
    decode=64,
    batch=(5, 700, 17, 512, 129, 1100, 64, 33, 513, 128, 300, 1, 900, 127, 511, 65),
    steps=12,
    budget=3000,
    greedy=(100, 256),
    ranks=(620, 310, 137, 20),
    limit=8192,
    compiler="inductor",
)

DRY = Sizes(
    device="cpu",
    config="tests/configs/published.json",
    prompt=40,
    decode=6,
    batch=(5, 21, 1, 13),
    steps=4,
    budget=24,
    greedy=(10, 12),
    ranks=(16, 14, 12, 10),
    limit=64,
    compiler="eager",
)


def regimes(config: Any, sizes: Sizes) -> list[Regime]:
    """The long prompt and those of the batch, in lengths that belong together.

    With two tables of rotary factors HF takes one by the length of the sequence, the runtime by
    the engine's: sequences below the original length and beyond it then make a regime each.
    """
    limit = int(getattr(config, "max_position_embeddings", None) or sizes.limit)
    original = original_length(config)
    if original is None or not has_two_tables(config):
        return [Regime("", limit, _prompts(limit, sizes))]
    beyond = [min(original + 1 + length // 4, limit - sizes.steps) for length in sizes.batch]
    longest = max(min(sizes.prompt, limit - sizes.decode), original + 1)
    return [
        Regime("short factors", original, _prompts(original, sizes)),
        Regime("long factors", limit, (longest, *beyond)),
    ]


def _prompts(limit: int, sizes: Sizes) -> tuple[int, ...]:
    batch = (min(length, limit - sizes.steps) for length in sizes.batch)
    return (min(sizes.prompt, limit - sizes.decode), *batch)
