"""Choices that rounding could turn are found; what leaves too little to compare is said."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trtllm_scaffold import standin
from trtllm_scaffold.verify.close_calls import (
    MARGIN,
    clear_part,
    first_call,
    is_close,
    is_close_choice,
    noted,
    too_few,
)
from trtllm_scaffold.verify.split import Split

BIAS = torch.tensor([0.05, -0.05, 0.1, 0.0])


def methods():
    """Routing methods that take two experts, and what gives them the scores that decide."""
    from tensorrt_llm._torch.modules import fused_moe as library

    biased = library.DeepSeekV3MoeRoutingMethod(
        top_k=2,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=2.5,
        callable_e_score_correction_bias=lambda: BIAS,
    )
    yield library.RenormalizeMoeRoutingMethod(top_k=2), lambda scores: scores
    yield library.Llama4RenormalizeMoeRoutingMethod(top_k=2), torch.logit
    yield biased, lambda scores: torch.logit(scores - BIAS)


@pytest.fixture(autouse=True)
def runtime():
    standin.install("1.2")
    yield
    standin.uninstall()


@pytest.mark.parametrize(
    ("gap", "close"), [(0.1, False), (20 * MARGIN, False), (MARGIN / 9, True), (0.0, True)]
)
def test_a_call_is_close_where_the_last_chosen_barely_wins(gap: float, close: bool) -> None:
    for method, logits_of in methods():
        logits = logits_of(torch.tensor([[0.9, 0.6, 0.6 - gap, 0.3]]))
        assert is_close(method, logits).tolist() == [close], type(method).__name__


def test_a_sparse_mixer_at_its_threshold_is_a_close_call() -> None:
    from tensorrt_llm._torch.modules.fused_moe import SparseMixerMoeRoutingMethod

    method = SparseMixerMoeRoutingMethod(top_k=2, eps=0.1)
    at_threshold = torch.tensor([[1.0, 0.8, 0.1, -0.7]])
    assert is_close(method, at_threshold).all()
    assert not is_close(method, at_threshold - torch.tensor([[0.0, 0.05, 0.0, 0.0]])).any()


@pytest.mark.parametrize(
    ("gap", "close"), [(0.1, False), (20 * MARGIN, False), (MARGIN, True), (0.0, True)]
)
def test_keys_that_hardly_differ_are_a_close_call(gap: float, close: bool) -> None:
    later = float("-inf")
    scores = torch.tensor(
        [
            [0.7, 0.4, later, later, later],  # all are chosen
            [0.7, 3.0, 0.7 - gap, later, later],
            [-9.0, 4.0, 0.7, 0.7 - gap, 5.0],  # neither of the two that are close is chosen
        ]
    )
    assert is_close_choice(scores, 2).tolist() == [False, close, False]
    assert not is_close_choice(scores[:, :2], 2).any()


def test_every_choice_of_keys_is_noted() -> None:
    class Chooser(torch.nn.Module):
        def choose(self, scores: torch.Tensor) -> torch.Tensor:
            return scores.topk(1, dim=-1).indices

    model = torch.nn.Sequential(Chooser(), Chooser())
    with noted(model) as found:
        chosen = [module.choose(torch.tensor([[1.0, 1.0], [1.0, 2.0]])) for module in model]
    assert [part[1].tolist() for part in chosen] == [[1], [1]]
    assert [part.tolist() for part in found] == [[True, False], [True, False]]
    assert all("choose" not in vars(module) for module in model)


def test_a_sequence_is_compared_up_to_its_first_close_call() -> None:
    layers = [torch.tensor([False, False, True, False]), torch.tensor([False, False, False, True])]
    assert first_call(layers, 4) == 2
    assert first_call([torch.zeros(4, dtype=torch.bool)], 4) == first_call([], 4) == 4
    logits = torch.arange(6.0).view(3, 2)
    assert clear_part(2, 1, logits).tolist() == [[0.0, 1.0]]
    assert len(clear_part(2, 3, logits)) == 0
    assert too_few(5, 10) == ""
    assert "4 of 10" in too_few(4, 10)


def test_a_sequence_with_an_early_close_call_is_drawn_again(monkeypatch) -> None:
    """The longest clear draw is kept, with its own logits; clear sequences stay as they are."""
    from trtllm_scaffold.verify import parity
    from trtllm_scaffold.verify.scenarios import STEPS, Regime, make_sequences

    regime = Regime("", 64, (10, 12, 5))
    first = make_sequences(regime, 50, 1)
    whole = [len(tokens) for tokens in first]
    drawn = [make_sequences(regime, 50, 1 + 1000 * draw) for draw in range(1, parity.DRAWS)]
    #: How far each sequence is clear; what is not listed is clear to its end.
    clear = {key(first[0]): 4, key(first[1]): 2}
    clear |= {key(tokens[0]): 3 + place for place, tokens in enumerate(drawn)}

    def lengths(_model, _setup, sequences):
        return [clear.get(key(tokens), len(tokens)) for tokens in sequences]

    monkeypatch.setattr(parity, "clear_lengths", lengths)
    monkeypatch.setattr(parity, "reference_logits", lambda _, tokens: tokens[:, None].float())
    expected = [tokens[:, None].float() for tokens in first]
    given = parity.Inputs(regime, first, expected)
    config = SimpleNamespace(vocab_size=50)
    case = parity.Case(Path(), Path(), config, None, Path(), {}, [given])
    monkeypatch.setattr(case, "model", lambda _: None)
    case.avoid_close_calls()
    found = case.inputs[0]
    best, second, third = found.sequences
    assert torch.equal(best, drawn[-1][0]) and torch.equal(second, drawn[0][1])
    assert torch.equal(third, first[2]) and [len(x) for x in found.sequences] == whole
    assert case.clear_lengths(found) == [2 + len(drawn), 12 + STEPS, 5 + STEPS]
    assert all(
        torch.equal(a[:, 0], b.float())
        for a, b in zip(found.expected, found.sequences, strict=True)
    )


def key(tokens: torch.Tensor) -> tuple[int, ...]:
    return tuple(tokens.tolist())


@pytest.mark.parametrize(
    ("split", "name", "obstacle"),
    [
        (Split(tp_size=2), "parallel TP 2", "experts of width 5 cannot be split 2 ways"),
        (Split(tp_size=2, ep_size=2), "parallel EP 2", ""),
        (Split(tp_size=8, ep_size=8), "parallel EP 8", "4 heads cannot be split 8 ways"),
        (Split(tp_size=4, ep_size=4, attention_dp=True), "parallel attention DP 4", "6 experts"),
        (Split(pp_size=2), "parallel PP 2", ""),
    ],
)
def test_what_hinders_a_split(split: Split, name: str, obstacle: str) -> None:
    config = SimpleNamespace(
        num_attention_heads=4, num_hidden_layers=2, moe_intermediate_size=5, num_experts=6
    )
    assert split.name == name
    found = split.obstacle(config)
    assert found.startswith(obstacle) and bool(found) == bool(obstacle)
