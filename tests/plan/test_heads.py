"""Uneven heads, narrow values and sinks beside what they cannot be expressed with."""

from __future__ import annotations

import dataclasses

import pytest
from sample_specs import SPECS, key

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.spec import ModelSpec

BLOCKS, BEAM, LLAMA = SPECS["blocks"], SPECS["beam"], SPECS["llama"]


def changed(spec: ModelSpec, *parts: dict[str, object]) -> ModelSpec:
    """`spec` with changes to the attention of each of its kinds of layers."""
    kinds = tuple(
        dataclasses.replace(kind, attention=dataclasses.replace(kind.attention, **own))
        for kind, own in zip(spec.layer_kinds, parts, strict=True)
    )
    return dataclasses.replace(spec, layer_kinds=kinds)


def answers_of(spec: ModelSpec) -> dict[str, object]:
    return plan_port(spec, port_names(spec, None, None), "1.2").answers


NARROW = {"value_dim": key("v_head_dim", 5)}
FEWER = {"num_key_value_heads": key("few", 1)}


CAP = key("attn_logit_softcapping", 50.0)


@pytest.mark.parametrize(
    ("spec", "axis", "says"),
    [
        (changed(BLOCKS, NARROW, NARROW), "attention.heads", "blocks of keys are chosen"),
        (changed(BLOCKS, FEWER, {}), "attention.heads", "blocks of keys are chosen"),
        (changed(BLOCKS, {}, FEWER), "attention.heads", "blocks of keys are chosen"),
        (changed(BEAM, {"sinks": True}, {}), "attention.sinks", "a bias for each head"),
        (changed(LLAMA, {"sinks": True, "softcap": CAP}), "attention.sinks", "has no sinks"),
    ],
)
def test_what_cannot_stand_together_is_refused(spec: ModelSpec, axis: str, says: str) -> None:
    with pytest.raises(Refused, match=says) as caught:
        answers_of(spec)
    assert caught.value.axis == axis


def test_sinks_in_all_layers_stand_beside_biases_of_the_gate() -> None:
    answers = answers_of(changed(BEAM, {"sinks": True}, {"sinks": True}))
    assert answers["attention_sinks"] and not answers["attention_sinks_condition"]
    assert answers["attention_gate_head_bias"]
