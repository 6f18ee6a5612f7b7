"""Norms are told apart by calling them alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trtllm_scaffold.infer.norm import classify


class Rms(nn.Module):
    def __init__(self, eps, shift=0.0, weight=True, shape=(16,)):
        super().__init__()
        if weight:
            self.offset = nn.Parameter(torch.randn(shape))  # no name means anything
        self.eps, self.shift = eps, shift

    def forward(self, x):
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        return x * (self.shift + self.offset) if hasattr(self, "offset") else x


class PlusOneLayerNorm(nn.LayerNorm):
    def forward(self, x):
        return nn.functional.layer_norm(x, (16,), self.weight + 1, self.bias, self.eps)


def noisy(module):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter + torch.randn(parameter.shape))
    return module


CASES = {
    "rms": (Rms(1e-6), "rmsnorm", True, False, False),
    "rms 1+w": (Rms(1e-5, shift=1.0), "rmsnorm", True, False, True),
    "rms without weight": (Rms(3e-4, weight=False), "rmsnorm", False, False, False),
    "torch rms": (nn.RMSNorm(16, eps=1e-5), "rmsnorm", True, False, False),
    "layernorm": (nn.LayerNorm(16, eps=1e-5), "layernorm", True, True, False),
    "layernorm without bias": (nn.LayerNorm(16, bias=False), "layernorm", True, False, False),
    "bare layernorm": (
        nn.LayerNorm(16, elementwise_affine=False),
        "layernorm",
        False,
        False,
        False,
    ),
    "layernorm 1+w": (PlusOneLayerNorm(16), "layernorm", True, True, True),
}


@pytest.mark.parametrize("name", CASES)
def test_kinds(name):
    module, kind, weight, bias, plus_one = CASES[name]
    found = classify(noisy(module), (2, 5, 16), "here")
    assert found is not None
    assert (found.kind, found.plus_one) == (kind, plus_one)
    assert (found.weight is not None, found.bias is not None) == (weight, bias)
    assert found.eps == pytest.approx(module.eps, rel=1e-4)


@pytest.mark.parametrize("eps", [1e-12, 1.5625e-7, 1e-6, 0.0013, 0.3])
def test_eps_of_any_size(eps):
    for module in (noisy(Rms(eps)), noisy(nn.LayerNorm(16, eps=eps))):
        found = classify(module, (2, 5, 16))
        assert found is not None
        assert found.eps == pytest.approx(eps, rel=1e-3)


def test_eps_zero():
    found = classify(noisy(Rms(0.0)), (2, 5, 16))
    assert found is not None and found.eps == 0.0


def test_a_weight_for_each_head():
    found = classify(noisy(Rms(1e-5, shape=(4, 16))), (2, 5, 4, 16))
    assert found is not None and found.weight_shape == (4, 16)


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(16, 16),
        nn.SiLU(),
        nn.Identity(),
        nn.Softmax(-1),
        nn.GroupNorm(1, 5),
        nn.Dropout(0.5),
    ],
)
def test_what_is_no_norm(module):
    assert classify(noisy(module).eval(), (2, 5, 16)) is None
