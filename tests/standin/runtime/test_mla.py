"""Multi-head latent attention on the stand-in, against its definition in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from trtllm_scaffold.standin.executor.engine import cache_geometry

from ..statements import states
from .mla_layer import (
    HEADS,
    Case,
    Session,
    build,
    fill,
    follow,
    formula,
    run_rank,
    sequences,
    weights,
)
from .workers import Pool

CASES = [
    Case("1.2"),
    Case("1.2", lite=True),
    Case("1.2", neox=True),  # the kernel pairs neighbours whatever is_neox says
    Case("1.4"),
    Case("1.4", "VANILLA"),
    Case("1.4", "VANILLA", lite=True, neox=True),
    Case("1.4", "FLASHINFER"),
]


def check(results, lite, neox=False):
    for found, x in zip(results, sequences(), strict=True):
        wanted = formula(x, weights(lite), lite, neox)
        error = (torch.as_tensor(found).double() - wanted).abs().max() / wanted.abs().max()
        assert error < 2e-6, f"{error:.2e}"


@states("A4-6", "W4.1-1", "W4.2-1", "W4.3-1")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_prefill_chunks_decoding_and_mixed_batches(case):
    api, layer, config = build(case)
    fill(layer, weights(case.lite))
    results = follow(Session(api, layer, config, case.backend), sequences())
    check(results, case.lite, case.neox and case.backend != "TRTLLM")


@pytest.mark.slow
def test_two_ranks():
    pool = Pool(2)
    try:
        for gen, lite, compiler in (("1.2", False, ""), ("1.4", True, ""), ("1.4", False, "eager")):
            for results in pool.run(run_rank, gen, lite, compiler):
                check(results, lite)
    finally:
        pool.close()


@states("W4.2-2")
@pytest.mark.parametrize("name", ["k_b_proj_trans", "v_b_proj", "kv_b_proj.weight"])
def test_each_form_of_kv_b_is_read(name):
    """Prefill reads the packed product, decoding the derived ones: none may be left unfilled."""
    api, layer, config = build(Case("1.2"))
    fill(layer, weights(False))
    dict(layer.named_parameters())[name].data.zero_()
    with pytest.raises(AssertionError, match="e-|e\\+"):
        check(follow(Session(api, layer, config, "TRTLLM"), sequences()), False)


def test_decoding_with_the_fixed_tensors_of_a_cuda_graph():
    """A captured batch is padded to the cache's whole width: what lies beyond must not be seen."""
    api, layer, config = build(Case("1.2"))
    session = Session(api, fill(layer, weights(False)), config, "TRTLLM")
    lengths = (9, 23, 12)
    inputs = sequences()
    session.step([(i, x[:n]) for i, (x, n) in enumerate(zip(inputs, lengths, strict=True))])
    session.metadata = session.metadata.create_cuda_graph_metadata(3)
    steps = [(i, x[n : n + 1]) for i, (x, n) in enumerate(zip(inputs, lengths, strict=True))]
    for found, x, n in zip(session.step([], steps), inputs, lengths, strict=True):
        wanted = formula(x[: n + 1], weights(False), False)[n]
        torch.testing.assert_close(found[0].double(), wanted, atol=5e-6, rtol=0)


@states("B-13")
def test_backends_of_1_2_other_than_trtllm_have_none():
    with pytest.raises(AssertionError, match="VANILLA backend of TensorRT-LLM 1.2"):
        build(Case("1.2", "VANILLA"))


@states("W4.1-2")
@pytest.mark.parametrize(
    ("gen", "changes", "error", "match"),
    [
        ("1.2", {"aux_stream_dict": {}}, TypeError, "aux_stream_dict"),
        ("1.4", {"aux_stream": None}, TypeError, "aux_stream"),
        ("1.2", {"rms_norm_eps": 1e-6}, TypeError, "rms_norm_eps"),
        ("1.4", {"pos_embd_params": None}, AssertionError, "pos_embd_params"),
        ("1.2", {"num_key_value_heads": HEADS // 2}, AssertionError, "2 are not 4"),
        ("1.2", {"bias": True}, NotImplementedError, "no biases"),
    ],
)
def test_what_the_constructor_refuses(gen, changes, error, match):
    with pytest.raises(error, match=match):
        build(Case(gen), **changes)


@states("W4.1-3")
def test_1_4_takes_the_eps_of_the_latents():
    _, layer, _ = build(Case("1.4"), rms_norm_eps=0.25)
    assert layer.q_a_layernorm.variance_epsilon == layer.kv_a_layernorm.variance_epsilon == 0.25


@states("W4.3-2")
def test_the_kernel_s_table_must_be_duplicated():
    api, layer, _ = build(Case("1.2"))
    given = layer.pos_embd_params
    for gen, changes in (
        ("1.2", {"scale_type": 0}),
        ("1.4", {"duplicate_data": False}),
    ):
        api, layer, _ = build(Case(gen))
        rope = layer.pos_embd_params.rope
        plain = type(rope)(**{**vars(rope), **changes})
        if "scale_type" in changes:
            plain.scale_type = api.RotaryScalingType.none
        given = api.PositionalEmbeddingParams(
            type=api.PositionEmbeddingType.yarn, rope=plain, is_neox=False
        )
        with pytest.raises(ValueError, match="duplicated table"):
            build(Case(gen), pos_embd_params=given)


@states("W4.3-3")
def test_a_config_with_latent_widths_gets_a_cache_of_latents():
    config = SimpleNamespace(
        num_attention_heads=HEADS, hidden_size=32, kv_lora_rank=18, qk_rope_head_dim=6
    )
    kind, heads, width = cache_geometry(config)
    assert (kind.name, heads, width) == ("SELFKONLY", 1, 24)
    config.kv_lora_rank = None
    assert cache_geometry(config)[0].name == "SELF"
    api, layer, made = build(Case("1.2"))
    session = Session(api, fill(layer, weights(False)), made, "TRTLLM")
    session.cache.kv_cache_type = api.CacheType.SELF
    with pytest.raises(ValueError, match="needs a SELFKONLY cache"):
        session.step([(0, sequences()[0])])
