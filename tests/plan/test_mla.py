"""Latent attention in plans: levels, and what no port can say."""

from __future__ import annotations

import dataclasses
import re

import pytest
from sample_specs import SPECS, key, with_attention, with_layer

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.plan.answers import code
from trtllm_scaffold.plan.support import support
from trtllm_scaffold.spec import GateSpec, IndexerSpec, ModelSpec, NormSpec, Quantity, TensorSpec

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
        (
            with_attention(YOUTU, window=key("sliding_window", 8), chunked=True),
            "attention.window: 'chunks, with latents'",
        ),
        (with_attention(YOUTU, sinks=True), "attention.sinks: 'with latents'"),
        (with_attention(YOUTU, softcap=Quantity(9.0, "9.0")), "attention.softcap: 'with"),
        (
            with_attention(YOUTU, output_gate=GateSpec("sigmoid", "full", head_bias=True)),
            "attention.output_gate: 'sigmoid, full, bias per head, with latents'",
        ),
        (with_layer(YOUTU, rope=None), "position.rope: .*do not all rotate alike"),
    ],
)
def test_what_the_module_has_not_is_refused(spec: ModelSpec, match: str) -> None:
    assert re.search(match, refusal(spec))


@pytest.mark.parametrize(
    ("spec", "because"),
    [
        (with_attention(YOUTU, window=key("sliding_window", 8)), "attention.window with latents"),
        (with_attention(YOUTU, output_gate=GateSpec("sigmoid", "head")), "output_gate sigmoid, he"),
        (with_mla(kv_scale=Quantity(2.0, "2.0")), "attention.latent_scale set"),
        (with_mla(rope_norm=MLA.kv_norm), "attention.latent_rope_norm rmsnorm"),
    ],
)
def test_what_the_module_has_not_is_read_by_the_port_itself(spec: ModelSpec, because: str) -> None:
    plan = plan_port(spec, port_names(spec, None, None), "1.4")
    assert plan.support.level.name == "reference"
    assert any(because in reason for reason in plan.support.because)
    answers = plan.answers
    assert (answers["attention_base"], answers["indexer"]) == ("", "")
    assert "MLA" not in answers["modeling_imports"] and "kv_lora_rank" not in answers["latent_dim"]


def test_a_transposed_projection_has_no_transform() -> None:
    def turned(tensor: TensorSpec) -> TensorSpec:
        return dataclasses.replace(tensor, transposed="_b." in tensor.roles[0])

    tensors = tuple(map(turned, YOUTU.checkpoint.tensors))
    checkpoint = dataclasses.replace(YOUTU.checkpoint, tensors=tensors)
    assert "has no transform" in refusal(dataclasses.replace(YOUTU, checkpoint=checkpoint))


def with_indexer(norm: str = "layernorm") -> ModelSpec:
    eps = Quantity(1e-6, "1e-06")
    numbers = (key("index_n_heads", 4), key("index_head_dim", 40), key("index_topk", 64))
    found = with_mla(indexer=IndexerSpec(*numbers, NormSpec(norm, eps, bias=True), "neox"))
    latents = dataclasses.replace(found.position.rope, style="interleaved")  # type: ignore[type-var]
    return with_layer(
        dataclasses.replace(found, position=dataclasses.replace(found.position, rope=latents)),
        rope=latents,
    )


def test_chosen_keys_are_attended_to_by_modules_of_the_port() -> None:
    spec = with_indexer()
    answers = plan_port(spec, port_names(spec, None, None), "1.2").answers
    assert (answers["attention_base"], answers["indexer"]) == ("", "neox")
    assert {"RotaryEmbedding", "LayerNorm", "RMSNorm"} <= set(answers["modeling_imports"])
    assert "MLA" not in answers["modeling_imports"]
    assert not any(answers["weight_transforms"]), "every tensor fills a module as it is"
    assert "attention.indexer: 'neox, rmsnorm'" in refusal(with_indexer("rmsnorm"))


def test_tensors_that_would_have_to_be_taken_apart_are_refused() -> None:
    spec = with_indexer()

    def turned(tensor: TensorSpec) -> TensorSpec:
        return dataclasses.replace(
            tensor, layout="rows" if "k_b" in tensor.roles[0] else tensor.layout
        )

    checkpoint = dataclasses.replace(
        spec.checkpoint, tensors=tuple(map(turned, spec.checkpoint.tensors))
    )
    assert "own attention reads it" in refusal(dataclasses.replace(spec, checkpoint=checkpoint))


def with_kinds(**second: object) -> ModelSpec:
    """Layers that choose keys, and others whose attention differs in `second`."""
    spec = with_indexer()
    first = spec.layer
    attention = first.attention
    own = {name: second.pop(name) for name in tuple(second) if not hasattr(attention, name)}
    other = dataclasses.replace(attention, **second, mla=dataclasses.replace(attention.mla, **own))
    kinds = (
        dataclasses.replace(first, condition='config.layer_types[layer_idx] == "a"'),
        dataclasses.replace(
            first, attention=other, condition='config.layer_types[layer_idx] == "b"'
        ),
    )
    pattern = tuple(index % 2 for index in range(len(spec.layer_pattern)))
    return dataclasses.replace(spec, layer_kinds=kinds, layer_pattern=pattern)


def test_layers_with_latents_of_their_own_sizes_have_lists_of_them() -> None:
    rank, window = key("near_rank", 24), key("sliding_window", 8)
    spec = with_kinds(indexer=None, window=window, kv_lora_rank=rank)
    answers = plan_port(spec, port_names(spec, None, None), "1.4").answers
    whole = code(MLA.kv_lora_rank)
    told = f'config.near_rank if config.layer_types[layer_idx] == "b" else {whole}'
    assert (answers["layer_size_names"], answers["layer_size_exprs"]) == (["kv_lora_rank"], [told])
    assert answers["indexer_condition"] == 'config.layer_types[layer_idx] == "a"'
    assert not answers["indexer_shared"] and answers["attention_window"] == "config.sliding_window"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"window": key("sliding_window", 8)}, "attention.window: .*that sees chosen keys"),
        ({"indexer": None, "window": key("w", 8), "chunked": True}, "attention.window: 'chunks"),
        ({"indexer": None, "q_lora_rank": None}, "attention: layers differ"),
        ({"indexer": None, "rope_norm": MLA.kv_norm}, "attention: layers differ"),
        ({"indexer": None, "kv_scale": Quantity(2.0, "2.0")}, "attention: layers differ"),
    ],
)
def test_what_layers_with_latents_may_not_differ_in(changes: dict[str, object], match: str) -> None:
    assert re.search(match, refusal(with_kinds(**changes)))


def test_a_factor_is_written_by_what_the_port_knows_of_its_layers() -> None:
    spec = with_kinds(kv_scale=Quantity(2.0, "2.0"))

    def with_scale(expr: str) -> ModelSpec:
        layer = spec.layer
        mla = dataclasses.replace(layer.attention.mla, kv_scale=Quantity(3.0, expr))
        first = dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, mla=mla))
        return dataclasses.replace(spec, layer_kinds=(first, spec.layer_kinds[1]))

    found = with_scale("3.0")
    answers = plan_port(found, port_names(found, None, None), "1.2").answers
    told = '2.0 if config.layer_types[layer_idx] == "b" else 3.0'
    assert answers["latent_kv_scale"] == told
    assert "a factor on latents is" in refusal(with_scale("config.num_attention_heads ** 0.5"))
