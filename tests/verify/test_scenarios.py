from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.verify.scenarios import (
    SCENARIOS,
    STEPS,
    make_sequences,
    original_length,
    regimes,
    windows,
)

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}


def config(**values):
    return SimpleNamespace(**{"max_position_embeddings": 100, "vocab_size": 50, **values})


def test_prompts_pass_twice_every_window():
    (regime,) = regimes(config(sliding_window=16))
    assert regime.prompts[0] > 2 * 16 and len(set(regime.prompts)) == 4
    assert regime.max_seq_len == 100


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
def test_prompts_pass_the_original_rope_length(key):
    scaled = config(**{key: {"rope_type": "llama3", "original_max_position_embeddings": 40}})
    assert original_length(scaled) == 40
    (regime,) = regimes(scaled)
    assert regime.prompts[0] > 40


def test_longrope_lies_wholly_below_or_wholly_past_the_original_length():
    given = config(rope_scaling=LONGROPE, original_max_position_embeddings=32)
    short, long = regimes(given)
    assert short.max_seq_len == 32 and max(short.prompts) + STEPS <= 32
    assert long.max_seq_len == 100 and min(long.prompts) + STEPS > 32
    assert all(prompt > 0 for prompt in (*short.prompts, *long.prompts))


def test_what_can_never_act_is_not_asked_for():
    never = config(sliding_window=4096, original_max_position_embeddings=100)
    assert windows(never) == [] and original_length(never) is None


def test_a_window_as_long_as_the_longest_sequence_is_still_passed():
    (regime,) = regimes(config(sliding_window=99))
    assert max(regime.prompts) + STEPS == 100


@pytest.mark.parametrize(
    "values",
    [
        {"max_position_embeddings": 12},
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 95},
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 9},
    ],
)
def test_a_configuration_too_short_for_a_proof_is_refused(values):
    with pytest.raises(InputError, match=r"12|95|9"):
        regimes(config(**values))


class Recorder:
    """A driver that checks what it is fed and answers with the position of each token."""

    def __init__(self):
        self.room, self.cached, self.batches = {}, {}, []

    def reserve(self, lengths):
        self.room.update(lengths)
        self.cached.update(dict.fromkeys(lengths, 0))

    def forward(self, pieces):
        kinds = [piece.is_context for piece in pieces]
        assert kinds == sorted(kinds, reverse=True), "contexts come first"
        results = []
        for piece in pieces:
            assert piece.cached == self.cached[piece.request]
            assert piece.is_context or len(piece.tokens) == 1
            self.cached[piece.request] += len(piece.tokens)
            assert self.cached[piece.request] <= self.room[piece.request]
            results.append(piece.tokens[:, None].float())
        self.batches.append(kinds)
        return results


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_feeds_each_sequence_in_order(name):
    (regime,) = regimes(config(sliding_window=8))
    sequences = make_sequences(regime, 50, seed=3)
    driver = Recorder()
    for who, start, logits in SCENARIOS[name](driver, sequences):
        assert torch.equal(logits[:, 0], sequences[who][start : start + len(logits)].float())
    assert driver.batches


def test_what_each_scenario_shows():
    (regime,) = regimes(config())
    sequences = make_sequences(regime, 50, seed=3)
    seen = {}
    for name, scenario in SCENARIOS.items():
        driver = Recorder()
        list(scenario(driver, sequences))
        seen[name] = driver.batches
    assert seen["prefill"] == [[True]]
    assert seen["decode"] == [[True]] + [[False]] * 8
    assert seen["mixed batch"][:2] == [[True, True], [True, True, False, False]]
    assert [False] * 4 in seen["mixed batch"]
    assert [True, False] in seen["chunked prefill"] and [True] in seen["chunked prefill"]
