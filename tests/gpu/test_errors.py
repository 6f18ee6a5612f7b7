"""The statistics of the GPU suite see what they are for. These run on any machine."""

from __future__ import annotations

import pytest
import torch

from .errors import FP32_BOUND, Compared, largest, noise_ratio
from .families import FAMILIES
from .quantize import per_block, per_tensor, restored


def compared(error=0.0, noise=0.01, clear=40):
    generator = torch.Generator().manual_seed(0)
    exact, ours, theirs = torch.randn(3, 40, 50, generator=generator)
    return Compared(exact + error * ours, exact, exact + noise * theirs, clear)


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


@pytest.mark.parametrize("quantize", [per_tensor, per_block])
def test_fp8_keeps_a_weight_within_its_precision(quantize):
    weight = torch.randn(200, 130) * torch.linspace(0.1, 3, 200)[:, None]
    error = (restored(weight, quantize) - weight).norm() / weight.norm()
    assert 0.01 < error < 0.04


def test_heads_are_of_realistic_sizes_and_windows_are_exceeded():
    sizes = {config.get("head_dim") for config in FAMILIES.values()}
    assert {64, 128, 256} <= sizes
    assert all(config.get("sliding_window") in (None, 128, 512) for config in FAMILIES.values())
