"""Mistakes that the model tests of the library let pass must fail here."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ..statements import states
from .harness import Driver, close, hf_logits, tokens
from .test_recipe import build


def window(model):
    for layer in model.model.layers:
        layer.self_attn.window += 1


def no_window(model):
    for layer in model.model.layers:
        layer.self_attn.window = None


def norm_of_one_more(model):
    with torch.no_grad():
        model.model.norm.weight += 0.02


def epsilon(model):
    for layer in model.model.layers:
        layer.input_layernorm.variance_epsilon *= 100


def theta(model):
    for layer in model.model.layers:
        backend = layer.self_attn.attn
        backend.rope = replace(backend.rope, theta=backend.rope.theta * 1.02)
        backend._rotary = None  # the table of the first pass


def scale(model):
    for layer in model.model.layers:
        layer.self_attn.attn.q_scaling = 1.01


def swapped(model):
    for layer in model.model.layers:
        weight = layer.mlp.gate_up_proj.weight
        with torch.no_grad():
            weight.copy_(torch.cat(weight.chunk(2)[::-1]))


MISTAKES = [window, no_window, norm_of_one_more, epsilon, theta, scale, swapped]


@states("E2-1")
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_the_harness_sees_what_the_tests_of_the_tree_miss(gen, mistake):
    model, hf = build(gen, "mistral", "TRTLLM")
    ids = tokens(19, 97)
    wanted = hf_logits(hf, ids)

    def prefill():
        driver = Driver(model, "TRTLLM")
        driver.add((1, 24))
        return driver.step([(1, ids)], all_logits=True)

    close(prefill(), wanted)
    mistake(model)
    with pytest.raises(AssertionError, match="max abs error"):
        close(prefill(), wanted)
