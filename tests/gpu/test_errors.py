"""The statistics of the GPU suite see what they are for. These run on any machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from .errors import BF16_BOUND, FP32_BOUND, Choices, Compared, largest, noise_ratio
from .families import FAMILIES
from .quantize import per_block, per_tensor, restored
from .sizes import FULL


def compared(error=0.0, noise=0.01, clear=40, who=0):
    generator = torch.Generator().manual_seed(who)
    exact, ours, theirs = torch.randn(3, 40, 50, generator=generator)
    return Compared(exact + error * ours, exact, exact + noise * theirs, clear, ("", who))


def test_the_largest_error_counts_at_every_clear_position():
    assert largest([compared(1e-6)])[0] < FP32_BOUND
    part = compared(clear=30)
    part.found[35:] += 1.0  # behind the close call
    assert largest([part]) == (0.0, 0.75)
    part.found[12, 7] += 0.1
    assert largest([part])[0] > FP32_BOUND
    part.found[3, 3] = torch.nan
    assert not largest([part])[0] <= FP32_BOUND
    with pytest.raises(AssertionError, match="leave 10 of 40"):
        part = compared(error=1.0, clear=10)
        largest([part])


def test_noise_is_measured_by_noise():
    assert noise_ratio([compared(0.02)], routed=False) == pytest.approx(2.0, rel=0.1)
    assert noise_ratio([compared(0.02)], routed=True) == pytest.approx(2.0, rel=0.1)
    part = compared(0.01)
    part.found[:5] += 1.0  # choices of experts that rounding turned
    assert noise_ratio([part], routed=False) > 10
    assert noise_ratio([part], routed=True) == pytest.approx(1.0, rel=0.2)


def test_with_routers_every_sequence_counts_once():
    others = [compared(0.01, who=who) for who in (1, 2)]
    turned = compared(0.1)
    parts = [replace(turned, found=turned.found[at : at + 1]) for at in range(40)]
    for at, part in enumerate(parts):  # decoded, one position at a time
        parts[at] = replace(part, exact=turned.exact[at : at + 1], noisy=turned.noisy[at : at + 1])
    assert noise_ratio([*parts, *others], routed=True) == pytest.approx(1.0, rel=0.2)
    assert noise_ratio([*parts, others[0]], routed=True) > BF16_BOUND
    others[0].found[0, 0] = torch.nan
    assert not noise_ratio([*parts, *others], routed=True) <= BF16_BOUND


#: How often the error of one of these sequences jumps, and by how many times the noise: about
#: what gpt-oss does in fp16, by position 118 to 222 of the prompts that were looked at.
TURNS, JUMP = 1 / 300, 4.0
LENGTHS = (FULL.prompt + FULL.decode, *(length + FULL.steps for length in FULL.batch))


def simulated(length, generator, level=1.0, factor=1.0):
    """One sequence, of one logit, that is `level` times as noisy and `factor` times as wrong.

    On either side choices turn at positions of their own, the more often the more noise there
    is, and each adds an error to every later position, whatever the noise.
    """

    shared, *draws = torch.randn(5, length, generator=generator)
    chances = torch.rand(2, length, generator=generator)
    errors = []
    for side, noise in enumerate((level, 1.0)):
        own, sizes = draws[2 * side : 2 * side + 2]
        jumps = (chances[side] < TURNS * noise) * JUMP**2 * sizes.exp()
        errors.append((0.17 * shared + 0.1 * own).exp() * (noise**2 + jumps.cumsum(0)).sqrt())
    ours, theirs = errors
    return factor * ours[:, None], torch.zeros(length, 1), theirs[:, None]


def simulations(count, **wrong):
    """The ratios that `noise_ratio` finds in so many runs, and those of one median of the prompt.

    The latter is what the suite took first: every position of the long prompt, pooled.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        rows = [simulated(length, generator, **wrong) for length in LENGTHS]
        parts = [Compared(*row, len(row[0]), ("", who)) for who, row in enumerate(rows)]
        ours, _, theirs = rows[0]
        pooled = float(ours.median() / theirs.median())
        found.append((noise_ratio(parts, routed=True), pooled))
    return torch.tensor(found).T


def test_with_routers_luck_is_told_from_noise():
    typical, pooled = simulations(40) > BF16_BOUND
    assert typical.float().mean() <= 0.03 and pooled.float().mean() > 0.2
    for wrong in ({"level": 1.5}, {"factor": 1.5}):
        typical, pooled = simulations(40, **wrong) > BF16_BOUND
        assert typical.float().mean() >= 0.95 and pooled.float().mean() < 0.8


def test_greedy_choices_count_where_rounding_cannot_turn_them():
    exact = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0 - 1e-4], [1.0, 1.0 - 1e-7]])
    other = exact + torch.tensor([0.6, 0.0, 0.0, 0.0])[:, None]
    found = Choices(torch.tensor([1, 0, 1, 1]), exact, other, None, "fp32")
    assert found.clear.tolist() == [False, True, True, False]
    assert found.wrong.tolist() == [False, False, True, False]
    assert found.conclusive
    behind = replace(found, calls=torch.tensor([False, True, *[False] * 4]))
    assert not behind.wrong.any() and behind.conclusive  # one of two may part
    assert not replace(behind, chosen=torch.ones(4, dtype=torch.long)).conclusive
    assert not replace(found, other=exact + 1).conclusive
    assert replace(behind, dtype="bf16").wrong.tolist() == [False] * 4  # the noise of all is 0.6
    calls = torch.tensor([False, False, True, False, False, False])
    assert replace(behind, dtype="bf16", calls=calls).wrong.tolist() == [False, False, True, True]


@pytest.mark.parametrize("quantize", [per_tensor, per_block])
def test_fp8_keeps_a_weight_within_its_precision(quantize):
    weight = torch.randn(200, 130) * torch.linspace(0.1, 3, 200)[:, None]
    error = (restored(weight, quantize) - weight).norm() / weight.norm()
    assert 0.01 < error < 0.04


def test_heads_are_of_realistic_sizes_and_windows_are_exceeded():
    sizes = {config.get("head_dim") for config in FAMILIES.values()}
    assert {64, 128, 256} <= sizes
    assert all(config.get("sliding_window") in (None, 128, 512) for config in FAMILIES.values())
