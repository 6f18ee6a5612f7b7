"""Configurations: the names that the runtime reads, and classes that a port registers."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, LlamaConfig

from trtllm_scaffold.standin.executor.engine import Engine
from trtllm_scaffold.standin.llm_args import KvCacheConfig

from ..statements import states
from .families import llama, opt
from .harness import ports
from .test_loading import blank, mapper_of
from .test_rules import api, model_config

both = pytest.mark.parametrize("gen", ["1.2", "1.4"])


def cache_of(model):
    options = {"max_batch_size": 2, "max_num_tokens": 16, "max_seq_len": 32}
    return Engine(model, **options, kv_cache_config=KvCacheConfig(tokens_per_block=8)).cache


@states("D-8", "W1.7-2")
@both
def test_the_cache_reads_canonical_names_of_the_model_config(gen):
    port = ports(gen, "llama")
    model = port.HandLlamaForCausalLM(model_config(gen))
    buffers = cache_of(model).get_buffers(0)
    assert buffers.shape[2:] == (8, 2, 16)
    config = model.model_config.pretrained_config
    config.num_key_value_heads, config.head_dim = 4, None
    assert cache_of(model).get_buffers(0).shape[2:] == (8, 4, 12)


@states("W1.7-1")
@both
def test_missing_and_empty_key_value_heads(gen):
    ports(gen, "opt")
    config, _ = opt()
    assert not hasattr(config, "num_key_value_heads")
    model, weights = blank(gen, llama, num_key_value_heads=4)
    values = model.model_config.pretrained_config.to_dict()
    del values["num_key_value_heads"]
    for found in (values, {**values, "num_key_value_heads": None}):
        model.model_config.pretrained_config = SimpleNamespace(**found)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))
        for mapped in ([], [mapper_of(model)]):
            model.load_weights(weights, *mapped)
            assert not any(parameter.isnan().any() for parameter in model.parameters())


@states("E3-4", "W1.5-1")
@both
def test_a_config_class_registered_by_the_port_is_found(gen, tmp_path):
    ports(gen, "llama")

    class OwnConfig(LlamaConfig):
        model_type = "standin_own_config"

    AutoConfig.register("standin_own_config", OwnConfig, exist_ok=True)
    found = {"model_type": "standin_own_config", "architectures": ["X"], "dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(found))
    config = api().ModelConfig.from_pretrained(str(tmp_path))
    assert type(config.pretrained_config) is OwnConfig
    assert config.pretrained_config.torch_dtype is torch.float32
    (tmp_path / "config.json").write_text(json.dumps({**found, "model_type": "nobody_knows_it"}))
    with pytest.raises(ValueError, match="nobody_knows_it"):
        api().ModelConfig.from_pretrained(str(tmp_path))
