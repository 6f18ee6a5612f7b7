"""What a pipeline stage keeps, skips and sends, in one process without a neighbour."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from trtllm_scaffold.standin.models import pipeline

from ..statements import states
from .families import llama
from .harness import ports
from .test_rules import api, model_config

both = pytest.mark.parametrize("gen", ["1.2", "1.4"])


def stage(gen, rank, cls=None, size=3, **changes):
    port = ports(gen, "llama")
    mapping = api().Mapping(world_size=size, pp_size=size, rank=rank)
    made = cls(port) if cls else port.HandLlamaForCausalLM
    config = model_config(gen, llama, **changes)
    return made(api().ModelConfig(pretrained_config=config.pretrained_config, mapping=mapping))


def kept(model) -> set[str]:
    return {name.rpartition(".")[0] for name, _ in model.named_parameters()}


@states("C2-4")
@both
def test_ends_are_found_by_name(gen):
    first, middle, last = (stage(gen, rank) for rank in range(3))
    assert "model.embed_tokens" in kept(first) and "model.norm" not in kept(first)
    assert not kept(middle) & {"model.embed_tokens", "model.norm", "lm_head"}
    assert {"model.norm", "lm_head"} <= kept(last) and "model.embed_tokens" not in kept(last)
    for rank, model in enumerate((first, middle, last)):
        owned = {name.split(".")[2] for name in kept(model) if "self_attn" in name}
        assert owned == {str(rank)}


@states("W6.2-5")
@both
def test_a_stage_keeps_the_next_input_norm(gen):
    first, middle, last = (stage(gen, rank) for rank in range(3))
    assert "model.layers.1.input_layernorm" in kept(first)
    assert "model.layers.1.post_attention_layernorm" not in kept(first)
    assert "model.layers.2.input_layernorm" in kept(middle)
    assert "model.layers.0.input_layernorm" not in kept(last)


@states("W2.8-3")
@both
def test_the_last_stage_keeps_a_tied_embedding(gen):
    last = stage(gen, 2, tie_word_embeddings=True)
    assert "model.embed_tokens" in kept(last)
    assert last.lm_head.weight is last.model.embed_tokens.weight
    middle = stage(gen, 1, tie_word_embeddings=True)
    assert not kept(middle) & {"model.embed_tokens", "lm_head"}


@states("W6.2-4")
@both
def test_every_stage_needs_a_layer(gen):
    with pytest.raises(AssertionError, match="3 layers are not enough for PP4"):
        stage(gen, 0, size=4)


def with_position_table(port):
    class Inner(port.LlamaModel):
        def __init__(self, config):
            super().__init__(config)
            self.embed_positions = api().Embedding(64, 48, dtype=torch.float32)
            self.prologue.append(self.embed_positions)
            self.bare_norm = nn.LayerNorm(48)
            self.epilogue.append(self.bare_norm)

    class Outer(port.HandLlamaForCausalLM):
        model_class = Inner

    return Outer


@states("W6.2-3")
@both
def test_the_prologue_is_removed_from_later_stages(gen):
    assert "model.embed_positions" in kept(stage(gen, 0, with_position_table))
    assert "model.embed_positions" not in kept(stage(gen, 1, with_position_table))


@states("W6.2-2")
@both
def test_a_module_without_skip_forward_runs_on_every_stage(gen, caplog):
    with caplog.at_level(logging.WARNING, logger="tensorrt_llm"):
        model = stage(gen, 0, with_position_table)
    assert "LayerNorm has no skip_forward" in caplog.text
    assert "model.bare_norm" in kept(model)


@states("C2-3")
@both
def test_a_pair_is_sent_if_and_only_if_residual_was_passed(gen, monkeypatch):
    ports(gen, "llama")
    sent = []
    monkeypatch.setattr(pipeline, "send", lambda tensor, mapping: sent.append(tensor))
    hidden, residual = torch.ones(2, 3), torch.zeros(2, 3)

    def forward(position_ids, hidden_states, attn_metadata, residual=..., **kwargs):
        return hidden_states if residual is ... else (hidden_states, residual)

    wrapped = pipeline.forward_before_send(forward, None)
    wrapped(position_ids=None, hidden_states=hidden, attn_metadata=None)
    assert len(sent) == 1 and sent[0] is hidden
    wrapped(position_ids=None, hidden_states=hidden, attn_metadata=None, residual=residual)
    assert sent[1:] == [hidden, residual] or all(
        a is b for a, b in zip(sent[1:], (hidden, residual), strict=True)
    )
    filled = []
    monkeypatch.setattr(pipeline, "receive", lambda tensor, mapping: filled.append(tensor))
    receiving = pipeline.forward_after_recv(forward, None)
    _, got = receiving(position_ids=None, hidden_states=hidden, attn_metadata=None, residual=None)
    assert len(filled) == 2 and got is filled[1]
    receiving(position_ids=None, hidden_states=hidden, attn_metadata=None)
    assert len(filled) == 3
    assert pipeline.forward_after_recv(receiving, None) is receiving
