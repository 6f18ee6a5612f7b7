"""Norms with a gate on their output, in a plain decoder under names of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer import infer
from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import ModelSpec

torch.set_num_threads(1)


class DoorConfig(LlamaConfig):
    model_type = "door-fork"

    def __init__(self, squeeze=24, trick="", **kwargs):
        super().__init__(**kwargs)
        self.squeeze, self.trick = squeeze, trick


class Doorman(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.inner = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.narrow = nn.Linear(config.hidden_size, config.squeeze, bias=config.trick == "bias")
        self.wide = nn.Linear(config.squeeze, config.hidden_size, bias=False)
        self.trick = config.trick

    def forward(self, x):
        y, trick = self.inner(x), self.trick
        inner = self.narrow(x if trick == "before the norm" else y)
        gate = self.wide(inner.relu() if trick == "relu" else nn.functional.silu(inner))
        gate = gate.tanh() if trick == "tanh" else gate.sigmoid()
        return y * gate * 2.0 if trick == "twice" else y + y * gate if trick == "sum" else y * gate


class DoorForCausalLM(LlamaForCausalLM):
    config_class = DoorConfig

    def __init__(self, config):
        super().__init__(config)
        for layer in self.model.layers:
            layer.input_layernorm = Doorman(config)
        if config.trick == "final":
            self.model.norm = Doorman(config)


def spec_of(trick: str = "") -> ModelSpec:
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 3200}
    config = DoorConfig(**sizes, **heads, trick=trick, rms_norm_eps=1e-4)
    raw = {**json.loads(config.to_json_string(use_diff=False)), "trick": trick}
    raw = {**raw, "architectures": ["DoorForCausalLM"]}
    source = Sources(raw, "fork", None, None, Path())
    return infer(source, HFClasses(DoorConfig, DoorForCausalLM))


def test_a_gate_on_some_norms() -> None:
    spec = spec_of()
    norms = dict(spec.layer.block.norms)
    assert {name: norm.label for name, norm in norms.items()} == {
        "input_layernorm": "rmsnorm, gated",
        "post_attention_layernorm": "rmsnorm",
    }
    gate = norms["input_layernorm"].gate
    assert gate is not None and gate.rank.value == 24
    assert norms["input_layernorm"].eps.expr == "config.rms_norm_eps"
    answers = plan_port(spec, port_names(spec, None, None), "1.4").answers
    assert answers["gated_norms"] == ["input_layernorm"] and answers["norm_gate_rank"] == 24
    targets = dict(zip(answers["weight_names"], answers["weight_targets"], strict=True))
    place = "model.layers.{i}.input_layernorm"
    assert targets[f"{place}.narrow.weight"] == f"{place}.down.weight"
    assert targets[f"{place}.wide.weight"] == f"{place}.up.weight"
    assert targets[f"{place}.inner.weight"] == f"{place}.norm.weight"


@pytest.mark.parametrize("trick", ["bias", "before the norm", "relu", "twice", "final"])
def test_other_gates_are_refused(trick: str) -> None:
    with pytest.raises(Refused):
        spec = spec_of(trick)
        plan_port(spec, port_names(spec, None, None), "1.2")
