"""Logits at every position: exact in fp32, and in 16 bits no noisier than HF's own model."""

from __future__ import annotations

import pytest
import torch

from trtllm_scaffold.verify.close_calls import BF16_MARGIN, MARGIN, noted
from trtllm_scaffold.verify.harness import Piece
from trtllm_scaffold.verify.port_module import quiet
from trtllm_scaffold.verify.scenarios import prefill

from .batches import scenarios
from .errors import BF16_BOUND, FP32_BOUND, Choices, largest, noise_ratio
from .sizes import FULL

pytestmark = pytest.mark.gpu

SCENARIOS = list(scenarios(FULL))


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_fp32(subject, measure, scenario):
    note = measure(f"fp32 {scenario}", relative_error=FP32_BOUND)
    parts = subject.compared("fp32", scenario)
    error, share = largest(parts)
    note(relative_error=error, positions=sum(len(part.found) for part in parts), compared=share)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_noise(subject, measure, dtype, scenario):
    note = measure(f"{dtype} {scenario}", error_ratio=BF16_BOUND)
    parts = subject.compared(dtype, scenario)
    if not all(bool(part.noisy.isfinite().all()) for part in parts):
        pytest.skip(f"HF's own model overflows in {dtype}")
    routed = subject.routed(next(iter(subject.reference.sequences)))
    ratio = noise_ratio(parts, routed)
    note(
        error_ratio=ratio,
        positions=sum(len(part.found) for part in parts),
        sequences=len({part.sequence for part in parts}),
    )


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_greedy_generation(subject, measure, dtype):
    note = measure(f"{dtype} greedy", wrong_choices=0)
    regime, sequences = next(iter(subject.reference.sequences.items()))
    start, count = subject.sizes.greedy
    with quiet(), subject.driver(dtype, regime, [torch.zeros(start + count)]) as driver:
        tokens = generate(driver, sequences[0][:start], count)
    found = choices(subject, dtype, regime, tokens, start)
    differing = (~found.equal).nonzero()
    note(
        wrong_choices=int(found.wrong.sum()),
        tokens=count,
        distinct_tokens=len(set(found.chosen.tolist())),
        clear_steps=int(found.clear.sum()),
        compared_steps=int(found.compared.sum()),
        equal_until=int(differing[0]) if len(differing) else count,
        largest_noise=float(found.noise.max()),
    )
    if dtype == "bf16" and not found.clear.any():
        pytest.xfail("no step's choice is clear of the noise of HF's own bf16: this shows nothing")
    assert found.conclusive, "too few steps' choices are clear of rounding: this shows nothing"


def choices(subject, dtype, regime, tokens, start):
    """The steps that generated `tokens` after the first `start`, beside HF's."""
    given, chosen = tokens[:-1], tokens[start:].to(subject.sizes.device)
    exact = subject.reference.forward("fp32", given)[start - 1 :]
    if dtype == "fp32":
        other = subject.reference.stepwise(given, start)
    else:
        other = subject.reference.forward(dtype, given)[start - 1 :]
    calls = None
    if subject.routed(regime):
        calls = close_calls(subject, dtype, regime, given).to(exact.device)
    return Choices(chosen, exact, other, calls, dtype)


def generate(driver, tokens, count):
    """`tokens` and `count` more, each the likeliest."""
    driver.reserve({0: len(tokens) + count})
    logits = driver.forward([Piece(0, tokens, 0, True)])[0][-1]
    for _ in range(count):
        tokens = torch.cat([tokens, logits.argmax().view(1)])
        piece = Piece(0, tokens[-1:], len(tokens) - 1, False)
        logits = driver.forward([piece])[0][-1]
    return tokens


def close_calls(subject, dtype, regime, tokens):
    """At which positions rounding in a dtype may turn the choice of a router: [n] bool."""
    model = subject.model(dtype, regime)
    margin = MARGIN if dtype == "fp32" else BF16_MARGIN
    with quiet(), noted(model, margin) as calls:
        with subject.driver(dtype, regime, [tokens]) as driver:
            list(prefill(driver, [tokens]))
    return torch.stack(calls).any(dim=0)
