"""Chunks and position-dependent queries are seen at lengths that a tiny model reaches."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import Llama4TextConfig

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer import infer
from trtllm_scaffold.infer.query_factor import read_query_factor
from trtllm_scaffold.pipeline import hf_classes
from trtllm_scaffold.sources import load_path


def test_lengths_that_equal_a_width_by_chance_are_still_seen(tmp_path) -> None:
    config = Llama4TextConfig(num_hidden_layers=4, hidden_size=1024, interleave_moe_layer_step=1)
    same = (config.attention_chunk_size, config.floor_scale, config.intermediate_size)
    assert set(same) == {8192}
    path = tmp_path / "config.json"
    raw = {**config.to_dict(), "architectures": ["Llama4ForCausalLM"]}
    path.write_text(json.dumps({**raw, "model_type": "llama4_text"}, default=str))
    sources = load_path(path)
    spec = infer(sources, hf_classes(sources, False))

    rotated, bare = spec.layer_kinds
    assert spec.layer_pattern == (0, 0, 0, 1)
    assert rotated.attention.chunked and not bare.attention.chunked
    window = rotated.attention.window
    assert (window.value, window.expr) == (8192, "config.attention_chunk_size")
    assert bare.attention.window is None and bare.attention.qk_norm is None
    factor = bare.attention.query_factor
    assert rotated.attention.query_factor is None
    assert (factor.period.value, factor.period.expr) == (8192, "config.floor_scale")
    assert (factor.scale.value, factor.scale.expr) == (0.1, "config.attn_scale")
    assert bare.moe.weight_on == "input"


class Place:
    name = "model.layers.0"


def factors(values: torch.Tensor) -> torch.Tensor:
    return torch.eye(4)[None] * values[:, None, None]


def test_a_factor_by_steps_is_read_and_another_refused() -> None:
    positions = torch.arange(12.0)
    steps = 1 + 0.3 * torch.log1p(torch.floor((positions + 1) / 5))
    found = read_query_factor(Place(), factors(steps))
    assert found.period == 5 and found.scale == pytest.approx(0.3, abs=1e-5)
    with pytest.raises(Refused, match="unknown way"):
        read_query_factor(Place(), factors(1 + 0.3 * torch.floor((positions + 1) / 5)))
    with pytest.raises(Refused, match="changed by position"):
        read_query_factor(Place(), factors(torch.ones(12)))
    turned = factors(steps)
    turned[3, 0, 1] = 0.5
    with pytest.raises(Refused, match="changed by position"):
        read_query_factor(Place(), turned)
