"""Latent attention in plans: levels, and what no port can say."""

from __future__ import annotations

import dataclasses
import re

import pytest
from sample_specs import SPECS, key, with_attention, with_layer

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.plan.support import support
from trtllm_scaffold.spec import GateSpec, ModelSpec, NormSpec, Quantity, TensorSpec

YOUTU = SPECS["youtu"]
MLA = YOUTU.layer.attention.mla
assert MLA is not None


def with_mla(**parts: object) -> ModelSpec:
    return with_attention(YOUTU, mla=dataclasses.replace(MLA, **parts))


def refusal(spec: ModelSpec, trtllm: str = "1.2") -> str:
    with pytest.raises(Refused) as caught:
        plan_port(spec, port_names(spec, None, None), trtllm)
    return str(caught.value)


def test_widths_that_have_kernels_are_native_and_others_say_so() -> None:
    assert support(YOUTU, "1.2").level.name == "reference"
    assert "128 + 64, values 128, latent 512" in support(YOUTU, "1.4").because[0]
    known = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    widths = {name: key(name, size) for name, size in {**known, "kv_lora_rank": 512}.items()}
    assert support(with_mla(**widths), "1.2").level.name == "native"


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (with_mla(biases=("q_b",)), "attention.latent_bias: 'q_b'"),
        (with_mla(kv_norm=NormSpec("layernorm", MLA.kv_norm.eps)), "attention.latent_norm"),
        (with_attention(YOUTU, window=key("sliding_window", 8)), "attention.window: 'with"),
        (with_attention(YOUTU, sinks=True), "attention.sinks: 'with latents'"),
        (with_attention(YOUTU, softcap=Quantity(9.0, "9.0")), "attention.softcap: 'with"),
        (
            with_attention(YOUTU, output_gate=GateSpec("sigmoid", "head")),
            "attention.output_gate: 'with latents'",
        ),
        (with_layer(YOUTU, rope=None), "position.rope: .*do not all rotate alike"),
    ],
)
def test_what_the_module_has_not_is_refused(spec: ModelSpec, match: str) -> None:
    assert re.search(match, refusal(spec))


def test_a_transposed_projection_has_no_transform() -> None:
    def turned(tensor: TensorSpec) -> TensorSpec:
        return dataclasses.replace(tensor, transposed="_b." in tensor.roles[0])

    tensors = tuple(map(turned, YOUTU.checkpoint.tensors))
    checkpoint = dataclasses.replace(YOUTU.checkpoint, tensors=tensors)
    assert "has no transform" in refusal(dataclasses.replace(YOUTU, checkpoint=checkpoint))
