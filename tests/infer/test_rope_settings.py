"""Frequencies and attention factors by settings, against transformers' own."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import LlamaConfig, Phi3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

from trtllm_scaffold.infer.normalize import rope_parameters
from trtllm_scaffold.infer.rope import attention_factor, expected, explains

COMMON = {"factor": 8.0, "original_max_position_embeddings": 64}
SETTINGS = {
    "default": {},
    "linear": {"factor": 4.0},
    "llama3": {**COMMON, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "llama3 without a blend": {**COMMON, "low_freq_factor": 1.0, "high_freq_factor": 1.0},
    "yarn": COMMON,
    "yarn without truncation": {**COMMON, "truncate": False, "beta_fast": 20.0, "beta_slow": 2.0},
    "yarn with mscale": {**COMMON, "mscale": 0.7, "mscale_all_dim": 0.3},
    "yarn with a factor of its own": {**COMMON, "attention_factor": 1.3},
    "dynamic": {"factor": 4.0},
}


def llama(name):
    kind = name.split(" ")[0]
    return LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_type": kind, "rope_theta": 7e4, **SETTINGS[name]},
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_against_transformers(name):
    config = llama(name)
    rotary = LlamaRotaryEmbedding(config)
    settings = rope_parameters(config)
    seen = tuple(rotary.inv_freq.tolist())
    assert explains(settings, seen)
    assert attention_factor(settings, 512) == pytest.approx(rotary.attention_scaling, rel=1e-6)
    assert not explains({**settings, "rope_theta": 5e4}, seen)


@pytest.mark.parametrize("longest", [64, 512])
def test_longrope(longest):
    pairs = 16
    config = Phi3Config(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=longest,
        original_max_position_embeddings=64,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0 + j / 10 for j in range(pairs)],
            "long_factor": [2.0 + j for j in range(pairs)],
            "original_max_position_embeddings": 64,
        },
    )
    rotary = Phi3RotaryEmbedding(config)
    settings = rope_parameters(config)
    assert attention_factor(settings, longest) == pytest.approx(rotary.attention_scaling)
    short, long = expected(settings, pairs)
    assert torch.allclose(torch.tensor(short), rotary.inv_freq, rtol=1e-5)
    rotary(torch.zeros(1, 1), torch.arange(80)[None])
    assert torch.allclose(torch.tensor(long), rotary.inv_freq, rtol=1e-5)


def test_factor_is_one_without_settings():
    assert attention_factor({}, None) == 1.0
    assert math.isclose(attention_factor({"rope_type": "yarn", "factor": 1.0}, None), 1.0)
