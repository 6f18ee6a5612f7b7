"""The model of the real configuration is asked too: it knows what tiny ones cannot show."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from published_configs import FOLDER, classes_of, load
from transformers import LlamaForCausalLM
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    chunked_causal_mask_function,
    padding_mask_function,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer import assembly, infer
from trtllm_scaffold.infer.attention_calls import AttentionCall, Mask, NotTold
from trtllm_scaffold.infer.real_size import check_real_size
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import Quantity

#: As published with 27 billion parameters, but six layers: no two numbers of its attention agree.
GEMMA2 = {
    **load("google__gemma-2-9b"),
    "hidden_size": 4608,
    "head_dim": 128,
    "num_attention_heads": 32,
    "num_key_value_heads": 16,
    "query_pre_attn_scalar": 144,
    "num_hidden_layers": 6,
}


def inferred(raw, classes=None):
    return infer(Sources(raw, "m", None, None, FOLDER), classes or classes_of(raw))


def shown(spec):
    return {e.fact: e.value for e in spec.evidence if e.witness == "real size"}


@pytest.fixture(scope="module")
def checked():
    """What a right inference hands to the check."""
    taken = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "check_real_size", lambda *given: taken.extend(given) or ())
        inferred(GEMMA2)
    return taken


def with_attention(spec, **changes):
    kinds = (replace(k, attention=replace(k.attention, **changes)) for k in spec.layer_kinds)
    return replace(spec, layer_kinds=tuple(kinds))


def test_the_real_size_confirms_every_number(checked):
    spec, observations, config, classes = checked
    before = copy.deepcopy(config.to_dict()), config._attn_implementation
    found = {e.fact: e.value for e in check_real_size(spec, observations, config, classes)}
    assert found == {
        "attention.num_attention_heads": 32,
        "attention.num_key_value_heads": 16,
        "attention.head_dim": 128,
        "attention.v_head_dim": 128,
        "attention.scale": 144**-0.5,
        "attention.softcap": 50.0,
        "attention.window": "4096 in 3, none in 3 of 6 layers",
    }
    assert (config.to_dict(), config._attn_implementation) == before
    for interface in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        assert not [name for name in interface if "trtllm" in name]


WRONG = {
    "scale of layer 0: .* say 0.015625, .* shows 0.08333333": {
        "scale": Quantity(4096**-0.5, "config.sliding_window ** -0.5")
    },
    "scale of layer 1: .* say 0.04166667, .* shows 0.08333333": {
        "scale": Quantity(144**-0.5, "config.query_pre_attn_scalar ** -0.5 / (layer_idx + 1)")
    },
    "num_attention_heads of layer 0: .* say 16, .* shows 32": {
        "num_attention_heads": Quantity(16, "config.num_key_value_heads")
    },
    "num_key_value_heads of layer 0: .* say 32, .* shows 16": {
        "num_key_value_heads": Quantity(32, "config.num_attention_heads")
    },
    "head_dim of layer 0: .* say 144, .* shows 128": {
        "head_dim": Quantity(144, "config.hidden_size // config.num_attention_heads")
    },
    "softcap of layer 0: .* say none, .* shows 50": {"softcap": None},
    "window of layer 0: .* say 144 keys seen at position 144, .* shows 145 keys": {
        "window": Quantity(144, "config.query_pre_attn_scalar")
    },
    "window of layer 0: .* say 8192 keys seen at position 8191, .* shows 4096 keys": {
        "window": Quantity(8192, "config.max_position_embeddings")
    },
    "window of layer 0: .* say 1 keys seen at position 4096, .* shows 4096 keys": {"chunked": True},
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_number_is_refused_with_both_values(checked, message):
    spec, observations, config, classes = checked
    with pytest.raises(Refused, match=message) as refusal:
        check_real_size(with_attention(spec, **WRONG[message]), observations, config, classes)
    assert refusal.value.axis == "attention"
    assert refusal.value.where == "the real configuration's model on the meta device"


def test_a_window_on_the_wrong_layers_is_refused(checked):
    spec, *rest = checked
    turned = replace(spec, layer_pattern=spec.layer_pattern[::-1])
    with pytest.raises(Refused, match="window of layer 0: .* say 4097 keys .* shows 4096 keys"):
        check_real_size(turned, *rest)


def by_size(config):
    """A Llama whose wide heads are scaled in another way: no tiny model has wide heads."""
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        if config.head_dim > 64:
            layer.self_attn.scaling = 64**-0.5
    return model


def test_a_class_that_decides_by_a_size_is_refused():
    raw = load("meta-llama__Meta-Llama-3.1-8B")
    found = classes_of(raw)
    classes = HFClasses(found.config_class, by_size)
    with pytest.raises(Refused, match="scale of layer 0: .* say 0.08838835, .* shows 0.125"):
        inferred({**raw, "num_hidden_layers": 2}, classes)


def test_what_the_class_does_not_tell_is_said_to_be_left_out():
    own = shown(inferred({**load("EleutherAI__gpt-j-6b"), "n_layer": 2}))
    assert own == {"attention": "left out: the class's attention is code of its own"}
    scaled = shown(inferred(load("facebook__opt-125m")))  # it scales its queries itself
    assert scaled.pop("attention.scale").startswith("left out: the class hands 1 to its attention")
    assert scaled["attention.num_attention_heads"] == 12
    assert not [value for value in scaled.values() if "left out" in str(value)]


def test_a_chunk_is_read_from_its_mask_and_values_are_never_made_up():
    call = AttentionCall(8, 8, 64, 64, 0.125, None, None)
    chunk = chunked_causal_mask_function(8192, torch.zeros(1, dtype=torch.long, device="meta"))
    chunked = replace(call, mask=Mask(chunk))
    assert [chunked.first_key(at) for at in (8191, 8192, 20000)] == [0, 8192, 16384]
    padded = replace(call, mask=Mask(padding_mask_function(torch.ones(1, 4, device="meta"))))
    for untold in (call, padded):
        with pytest.raises(NotTold):
            untold.first_key(10)
