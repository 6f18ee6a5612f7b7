from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from trtllm_scaffold.standin import generation as generations
from trtllm_scaffold.standin.functional import AllReduceStrategy
from trtllm_scaffold.standin.logits_processor import LogitsProcessor
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.modules.decoder_layer import DecoderLayer
from trtllm_scaffold.standin.modules.embedding import LMHead
from trtllm_scaffold.standin.quantization import QuantConfig
from trtllm_scaffold.standin.streams import (
    do_multi_stream,
    maybe_execute_in_parallel,
    with_multi_stream,
)

from ..statements import states

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "intermediate_size": 48,
    "vocab_size": 50,
    "dtype": "float16",
}


@states("W1.5-1", "W1.6-1")
def test_a_frozen_config_lets_only_three_fields_change(tmp_path, generation):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    config = ModelConfig.from_pretrained(str(tmp_path), max_seq_len=77)
    assert config.max_seq_len == 77 and config.torch_dtype == torch.float16
    with pytest.raises(AttributeError, match="max_seq_len.*frozen"):
        config.max_seq_len = 1
    config.extra_attrs = {"a": 1}
    config.quant_config = QuantConfig(quant_algo="FP8")
    config.pretrained_config = None
    config._frozen = False
    config.max_seq_len = 1


@states("W1.5-3", "W1.6-4")
def test_model_kwargs_override_the_config(tmp_path, generation):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    overrides = {"num_hidden_layers": 1, "dtype": "bfloat16"}
    config = ModelConfig.from_pretrained(tmp_path, model_kwargs=overrides)
    assert config.pretrained_config.num_hidden_layers == 1
    assert config.torch_dtype == torch.bfloat16


@states("W5.2-1")
def test_the_declared_quantization_is_read(tmp_path, generation):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    block = {"quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(block))
    config = ModelConfig.from_pretrained(tmp_path)
    assert config.get_quant_config().layer_quant_mode.has_fp8_qdq()


@states("W1.6-2")
def test_a_config_made_by_hand_is_free_and_has_defaults(generation):
    config = ModelConfig(pretrained_config=SimpleNamespace(architectures=["X"]))
    config.attn_backend = "VANILLA"
    assert config.fuse_pos_embd is False and config.torch_dtype == torch.bfloat16
    assert config.moe_max_num_tokens == 8192 and config.extra_attrs == {}
    assert ModelConfig().fuse_pos_embd is True
    assert (
        ModelConfig().mapping == Mapping() and ModelConfig().extra_attrs is not config.extra_attrs
    )
    assert config.enable_torch_compile_for_embedding is False


def test_derived_fields_follow_mapping_strategy_and_architecture(generation):
    mapping = Mapping(world_size=2, tp_size=2, enable_attention_dp=True)
    config = ModelConfig(mapping=mapping, max_num_tokens=10, allreduce_strategy="MINLATENCY")
    assert config.moe_max_num_tokens == 20
    assert config.allreduce_strategy is AllReduceStrategy.MIN_LATENCY
    bert = SimpleNamespace(architectures=["BertForSequenceClassification"])
    assert ModelConfig(pretrained_config=bert).is_generation is False


@states("W1.6-6")
def test_quantization_is_not_looked_up_by_name(generation):
    special = QuantConfig(quant_algo="FP8")
    config = ModelConfig(quant_config_dict={"model.layers.0.mlp": special})
    assert config.get_quant_config() is config.quant_config
    for asked in (config, ModelConfig()):
        with pytest.raises(AttributeError, match="per_layer_quant_configs"):
            asked.get_quant_config("model.layers.0.mlp")


def test_fields_of_the_new_generation_are_refused_in_the_old():
    generations.set_active("1.2")
    with pytest.raises(TypeError, match="is_encoder_decoder"):
        ModelConfig(is_encoder_decoder=True)
    generations.set_active("1.4")
    assert ModelConfig(is_encoder_decoder=True).is_encoder_decoder


class Layer(DecoderLayer):
    def forward(self, position_ids, hidden_states, attn_metadata, residual=..., **kwargs):
        return hidden_states + 1


@states("W6.2-1")
def test_a_skipped_layer_returns_its_inputs_in_the_form_of_the_call(generation):
    layer, x, residual = Layer(), torch.randn(2, 4), torch.randn(2, 4)
    call = {"position_ids": None, "hidden_states": x, "attn_metadata": None}
    assert layer.skip_forward(**call, spec_metadata=None) is x
    assert layer.skip_forward(**call, residual=residual) == (x, residual)
    assert layer.skip_forward(**call, residual=None) == (x, None)
    with pytest.raises(TypeError, match="abstract"):
        DecoderLayer()


@states("C4-2")
def test_logits_are_those_of_the_last_tokens_in_float32(generation):
    head = LMHead(9, 4, dtype=torch.bfloat16)
    head.load_weights([{"weight": torch.randn(9, 4)}])
    hidden = torch.randn(6, 4).bfloat16()
    metadata = SimpleNamespace(seq_lens_cuda=torch.tensor([3, 1, 2], dtype=torch.int32))
    process = LogitsProcessor()
    last = process(hidden, head, metadata)
    every = process(hidden, head, metadata, True)
    assert last.shape == (3, 9) and last.dtype == torch.float32
    torch.testing.assert_close(last, every[[2, 3, 5]])
    torch.testing.assert_close(every, head(hidden).float())


def test_logits_may_keep_their_dtype_in_1_4_only():
    head = LMHead(9, 4, dtype=torch.bfloat16)
    hidden, process = torch.randn(2, 4).bfloat16(), LogitsProcessor()
    generations.set_active("1.2")
    with pytest.raises(TypeError, match="upcast_to_float"):
        process(hidden, head, None, True, upcast_to_float=False)
    generations.set_active("1.4")
    kept = process(hidden, head, None, True, upcast_to_float=False)
    assert kept.dtype == torch.bfloat16


def test_side_by_side_functions_keep_their_order_without_streams(generation):
    calls: list[int] = []
    with with_multi_stream(True):
        assert do_multi_stream()
        found = maybe_execute_in_parallel(
            lambda: calls.append(0) or "a", lambda: calls.append(1) or "b", None, None, None
        )
    assert found == ("a", "b") and calls == [0, 1] and not do_multi_stream()
