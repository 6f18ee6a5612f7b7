"""Blocks of experts read alone: of decoders whose attention is another axis' matter."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from zoo_specs import ENTRIES

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.moe import MoeFacts, read_block
from trtllm_scaffold.infer.tiny import build

GROUPED = {"n_routed_experts": 12, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}


def read(name: str, block: str, **changes: Any) -> MoeFacts:
    entry = ENTRIES[name]
    config = AutoConfig.for_model(entry.model_type, **{**entry.overrides, **changes})
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model, _ = build(config.to_dict(), type(config), model_class, seed=0)
    return read_block(model.get_submodule(f"model.layers.1.{block}"), block, config.hidden_size)


def test_deepseek_v2_keeps_the_groups_of_the_largest_scores() -> None:
    facts = read("deepseek_v2", "mlp", **GROUPED)
    routing = facts.routing
    assert (routing.scores, routing.renormalised, routing.biased) == ("softmax", False, False)
    assert (routing.num_groups, routing.top_groups, routing.group_score) == (4, 2, "max")
    assert routing.scaling == pytest.approx(1.5)
    assert facts.parts.shared is not None and facts.join == "sum"


def test_deepseek_v3_keeps_the_groups_of_the_two_largest() -> None:
    routing = read("deepseek_v3", "mlp", **GROUPED).routing
    assert (routing.scores, routing.renormalised, routing.biased) == ("sigmoid", True, True)
    assert (routing.num_groups, routing.top_groups, routing.group_score) == (4, 2, "top2_sum")
    assert (routing.epsilon, routing.top_k) == (1e-20, 3)


@pytest.mark.parametrize("chosen", [1, 2])
def test_llama4_weighs_the_input(chosen: int) -> None:
    facts = read("llama4_text", "feed_forward", num_experts_per_tok=chosen)
    assert (facts.routing.scores, facts.routing.renormalised) == ("sigmoid", False)
    assert (facts.weight_on, facts.routing.top_k, facts.join) == ("input", chosen, "sum")
    assert facts.parts.shared is not None
    assert facts.parts.expert.first[0].transposed and facts.parts.expert.down.transposed


def test_a_clamped_gate_with_a_slope_and_an_offset() -> None:
    gating = read("minimax_m3_vl_text", "mlp").parts.expert.gating
    assert (gating.clamp, gating.beta, gating.offset) == (7.0, 1.702, 1.0)
    assert not gating.alternating


@pytest.mark.parametrize(
    ("name", "block", "problem"),
    [
        ("longcat_flash", "mlp", "outputs"),  # experts that return their input
        ("zaya", "mlp", "the router sees something else"),  # a state from the layer before
        ("inkling2_text", "mlp", "none of the known formulas"),  # a gate with a soft cap
    ],
)
def test_what_has_no_label_is_refused(name: str, block: str, problem: str) -> None:
    with pytest.raises(Refused, match=problem) as caught:
        read(name, block)
    assert caught.value.axis == "moe"
