"""The attention module: what it hands to the backend, and what a subclass may override."""

from __future__ import annotations

import dataclasses
import logging
import math

import pytest
import torch

from ..statements import states
from .families import llama, qwen3
from .harness import Driver, close, tokens
from .test_recipe import build
from .test_rules import api, attention, model_config

GENERATIONS = ["1.2", "1.4"]
HEADS, KV, DIM = 4, 2, 16
both = pytest.mark.parametrize("gen", GENERATIONS)


def rope(**changes):
    given = {"dim": DIM, "theta": 1234.0, "max_positions": 64, **changes}
    params = api().RopeParams(**given)
    return api().PositionalEmbeddingParams(
        type=api().PositionEmbeddingType.rope_gpt_neox, rope=params, is_neox=True
    )


def filled(layer):
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.2)
    return layer.eval()


def batch(backend: str, *lengths: int):
    """Metadata of sequences that start empty, without a cache."""
    md = (
        api()
        .get_attention_backend(backend)
        .Metadata(max_num_requests=len(lengths), max_num_tokens=64, kv_cache_manager=None)
    )
    md.seq_lens = torch.tensor(lengths, dtype=torch.int)
    md.num_contexts, md.request_ids = len(lengths), list(range(len(lengths)))
    md.prepare()
    return md


def run(layer, x, positions, md, **options):
    with torch.inference_mode():
        return layer(position_ids=positions, hidden_states=x, attn_metadata=md, **options)


@states("A1-4")
@both
def test_padding_rows_do_not_reach_the_backend(gen):
    layer = filled(attention(model_config(gen, backend="VANILLA")))
    md, x = batch("VANILLA", 3, 2), torch.randn(9, 48)
    out = run(layer, x, None, md)
    torch.testing.assert_close(out[:5], run(layer, x[:5], None, md))
    assert out.shape[0] == 5


@states("A2-3", "B-5")
@both
@pytest.mark.parametrize("backend", ["VANILLA", "TRTLLM", "FLASHINFER"])
def test_apply_rope_may_return_either_form(gen, backend):
    config = model_config(gen, backend=backend)
    layer = filled(attention(config))
    md, x = batch(backend, 6), torch.randn(6, 48)
    wanted = run(layer, x, None, md)
    qkv = layer.qkv_proj(x)
    for form in (lambda *_: (qkv, None, None), lambda *_: layer.split_qkv(qkv)):
        layer.apply_rope = form
        torch.testing.assert_close(run(layer, x, None, md), wanted)
    q, k, v = layer.convert_qkv(*layer.split_qkv(qkv))
    assert (k is None and v is None) == (backend == "TRTLLM")
    if backend != "TRTLLM":
        with pytest.raises(ValueError, match="q, k and v apart"):
            layer.attn.forward(qkv, None, None, md)


@states("A3-2")
@both
def test_asking_for_fusion_where_there_is_none_warns(gen, caplog):
    from trtllm_scaffold.standin.logger import logger

    logger._seen.clear()
    config = model_config(gen, backend="VANILLA")
    with caplog.at_level(logging.WARNING, logger="tensorrt_llm"):
        layer = attention(config, pos_embd_params=rope(), rope_fusion=True)
    assert layer.rope_fusion is False and layer.rotary_emb is not None
    assert "rope_fusion is switched off" in caplog.text


@states("A3-3")
@both
def test_fused_rope_does_not_read_position_ids(gen):
    layer = filled(attention(model_config(gen), pos_embd_params=rope()))
    md, x = batch("TRTLLM", 4, 3), torch.randn(7, 48)
    absent = run(layer, x, None, md)
    wrong = torch.full((1, 7), 11)
    torch.testing.assert_close(run(layer, x, wrong, md), absent)
    real = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    outside = filled(attention(model_config(gen), pos_embd_params=rope(), rope_fusion=False))
    torch.testing.assert_close(run(outside, x, real, md), absent, rtol=1e-4, atol=1e-4)


@states("A3-4")
@both
def test_unfused_rope_follows_position_ids(gen):
    layer = filled(attention(model_config(gen, backend="VANILLA"), pos_embd_params=rope()))
    md, x = batch("VANILLA", 5), torch.randn(5, 48)
    plain = run(layer, x, torch.arange(5)[None], md)
    # attention sees distances only, so a shift changes nothing and a stretch does
    torch.testing.assert_close(
        run(layer, x, torch.arange(5)[None] + 9, md), plain, rtol=1e-4, atol=1e-4
    )
    assert (run(layer, x, torch.arange(5)[None] * 3, md) - plain).abs().max() > 0.01
    assert (run(layer, x, None, md) - plain).abs().max() > 0.01


@states("A4-2")
@both
def test_a_score_factor_of_hf_becomes_q_scaling(gen):
    scale = 0.37
    given = {"q_scaling": 1 / (scale * math.sqrt(DIM))}
    layer = filled(attention(model_config(gen), **given))
    md, x = batch("TRTLLM", 5), torch.randn(5, 48)
    q, k, v = layer.split_qkv(layer.qkv_proj(x))
    q, k, v = (part.double().view(5, -1, DIM).transpose(0, 1) for part in (q, k, v))
    k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(torch.ones(5, 5).triu(1) > 0, -torch.inf)
    wanted = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ layer.o_proj.weight.double().T
    torch.testing.assert_close(run(layer, x, None, md).double(), wanted, rtol=1e-4, atol=1e-4)


@states("A4-3")
@both
@pytest.mark.parametrize("nothing", [None, 0, 0.0])
def test_no_q_scaling_is_one(gen, nothing):
    md, x = batch("TRTLLM", 5), torch.randn(5, 48)
    wanted = run(filled(attention(model_config(gen), q_scaling=1.0)), x, None, md)
    got = run(filled(attention(model_config(gen), q_scaling=nothing)), x, None, md)
    torch.testing.assert_close(got, wanted)


@states("A6-1")
@both
@pytest.mark.parametrize("backend", ["VANILLA", "FLASHINFER"])
def test_sinks_are_for_trtllm_only(gen, backend):
    layer = filled(attention(model_config(gen, backend=backend)))
    sinks = torch.zeros(HEADS)
    with pytest.raises(AssertionError, match="attn_backend='TRTLLM'"):
        run(layer, torch.randn(2, 48), None, batch(backend, 2), attention_sinks=sinks)
    layer = filled(attention(model_config(gen)))
    md, x = batch("TRTLLM", 2), torch.randn(2, 48)
    assert not torch.allclose(
        run(layer, x, None, md, attention_sinks=sinks), run(layer, x, None, md)
    )


@states("A7-1")
@both
def test_no_backend_caps_scores(gen):
    with pytest.raises(TypeError, match="logits_soft_cap"):
        attention(model_config(gen), logits_soft_cap=30.0)
    layer = filled(attention(model_config(gen)))
    md, x = batch("TRTLLM", 4), torch.randn(4, 48)
    qkv = layer.qkv_proj(x)
    if gen == "1.2":  # swallowed: the scores are those without a cap
        capped = layer.attn.forward(qkv, None, None, md, logits_soft_cap=0.1)
        torch.testing.assert_close(capped, layer.attn.forward(qkv, None, None, md))
    else:
        with pytest.raises(ValueError, match="logits_soft_cap"):
            layer.attn.forward(qkv, None, None, md, logits_soft_cap=0.1)


@states("A7-2", "C4-7")
@both
def test_logits_can_be_capped_behind_the_head(gen):
    model, _ = build(gen, "llama", "TRTLLM")
    plain = model.forward

    def forward(*args, **kwargs):
        return 3.0 * torch.tanh(plain(*args, **kwargs) / 3.0)

    ids = tokens(9, 97)
    whole = one_prefill(model, ids)
    model.forward = forward
    capped = one_prefill(model, ids)
    assert whole.dtype == torch.float32 and whole.abs().max() > 3
    torch.testing.assert_close(capped, 3.0 * torch.tanh(whole / 3.0))


def one_prefill(model, ids):
    driver = Driver(model, "TRTLLM")
    driver.add((1, 20))
    return driver.step([(1, ids)], all_logits=True)


@states("A8-1")
@both
def test_alibi_is_not_usable(gen):
    config = model_config(gen)
    kind = api().PositionEmbeddingType.alibi
    params = api().PositionalEmbeddingParams(type=kind)
    with pytest.raises(NotImplementedError, match="ALiBi"):
        attention(config, pos_embd_params=params)
    config = model_config(gen, backend="VANILLA")
    md, x = batch("VANILLA", 4), torch.randn(4, 48)
    plain = run(filled(attention(config)), x, None, md)
    layer = attention(config)
    layer.pos_embd_params = layer.attn.pos_embd_params = params
    torch.testing.assert_close(run(filled(layer), x, None, md), plain)


@states("A9-11")
@both
def test_the_fused_table_grows_and_the_other_does_not(gen):
    short = rope_of(gen, max_positions=8)
    fused = attention(model_config(gen), pos_embd_params=short)
    driver = Driver(build(gen, "llama", "TRTLLM")[0], "TRTLLM")
    driver.add((1, 40))
    driver.step([(1, tokens(20, 97))])
    assert fused.attn._rotary_for(driver.metadata).max_positions == driver.cache.max_seq_len
    outside = attention(model_config(gen, backend="VANILLA"), pos_embd_params=short)
    with pytest.raises(IndexError):
        outside.rotary_emb(torch.tensor([[8]]), [torch.zeros(1, HEADS * DIM)])


def rope_of(gen, **changes):
    model_config(gen)
    return rope(**changes)


@states("A10-2")
@both
def test_yarn_pairs_halves_when_fused_and_by_is_neox_otherwise(gen):
    def output(backend, is_neox):
        config = model_config(gen, backend=backend)
        params = api().PositionalEmbeddingParams(
            type=api().PositionEmbeddingType.yarn,
            rope=rope(scale_type=api().RotaryScalingType.yarn, scale=4.0).rope,
            is_neox=is_neox,
        )
        layer = filled(attention(config, pos_embd_params=params))
        torch.manual_seed(1)
        return run(layer, torch.randn(6, 48), torch.arange(6)[None], batch(backend, 6))

    halves = output("VANILLA", True)
    for is_neox in (True, False):
        torch.testing.assert_close(output("TRTLLM", is_neox), halves, rtol=1e-4, atol=1e-4)
    assert (output("VANILLA", False) - halves).abs().max() > 0.01


@states("A11-3", "A11-4")
@both
def test_the_fused_norm_of_1_2_turns_whole_heads(gen):
    """The share of the model's config acts in 1.4 only; the layer's own width never does."""

    def output(fuse, share, dim):
        config = model_config(gen, qwen3)
        config.pretrained_config.partial_rotary_factor = share
        layer = api().QKNormRoPEAttention(
            hidden_size=48,
            num_attention_heads=HEADS,
            num_key_value_heads=KV,
            max_position_embeddings=64,
            bias=False,
            pos_embd_params=rope(dim=dim),
            fuse_qk_norm_rope=fuse,
            config=config,
            layer_idx=0,
            dtype=torch.float32,
        )
        torch.manual_seed(3)
        return run(filled(layer), torch.randn(6, 48), torch.arange(6)[None], batch("TRTLLM", 6))

    half = output(False, 0.5, DIM // 2)
    whole = output(False, 1.0, DIM)
    fused = output(True, 0.5, DIM // 2)
    torch.testing.assert_close(fused, whole if gen == "1.2" else half, rtol=1e-4, atol=1e-4)
    assert (half - whole).abs().max() > 0.01
    torch.testing.assert_close(output(True, 1.0, DIM // 2), whole, rtol=1e-4, atol=1e-4)


@states("A11-9")
@both
def test_a_norm_behind_the_rotation_overrides_apply_rope(gen):
    config = model_config(gen, backend="VANILLA")

    class Normed(api().Attention):
        def apply_rope(self, q, k, v, position_ids):
            q, k, v = super().apply_rope(q, k, v, position_ids)
            q, k, v = self.split_qkv(q, k, v)
            return unit(q), unit(k), v

    def unit(x):
        heads = x.unflatten(-1, (-1, DIM))
        return (heads / heads.norm(dim=-1, keepdim=True)).flatten(-2)

    options = {"pos_embd_params": rope(), "config": config}
    layer = filled(attention_of(Normed, **options))
    md, x = batch("VANILLA", 5), torch.randn(5, 48)
    positions = torch.arange(5)[None]
    q, k, v = layer.split_qkv(layer.qkv_proj(x))
    q, k = layer.rotary_emb(positions, [q, k])
    wanted = layer.o_proj(layer.attn.forward(unit(q), unit(k), v, md))
    torch.testing.assert_close(run(layer, x, positions, md), wanted)


def attention_of(cls, **options):
    return cls(
        hidden_size=48,
        num_attention_heads=HEADS,
        num_key_value_heads=KV,
        max_position_embeddings=64,
        bias=False,
        layer_idx=0,
        dtype=torch.float32,
        **options,
    )


@states("A12-1")
@both
def test_the_output_gate_is_interleaved_by_head(gen):
    gated = filled(attention(model_config(gen), attn_output_gate=True))
    plain = attention(model_config(gen))
    rows = gated.qkv_proj.weight.data
    heads = rows[: 2 * HEADS * DIM].view(HEADS, 2, DIM, 48)
    with torch.no_grad():
        plain.qkv_proj.weight.copy_(torch.cat([heads[:, 0].flatten(0, 1), rows[2 * HEADS * DIM :]]))
        plain.o_proj.weight.copy_(torch.eye(48, HEADS * DIM))
        weight = gated.o_proj.weight.clone()
    md, x = batch("TRTLLM", 5), torch.randn(5, 48)
    gate = torch.sigmoid(x @ heads[:, 1].flatten(0, 1).T)
    plain.o_proj = torch.nn.Identity()
    plain.o_proj.forward = lambda output, **_: output
    wanted = (run(plain, x, None, md) * gate) @ weight.T
    torch.testing.assert_close(run(gated, x, None, md), wanted, rtol=1e-4, atol=1e-4)


@states("A13-1")
@both
def test_the_output_bias_follows_the_input_bias(gen):
    config = model_config(gen)
    for bias, dense, wanted in ((True, None, True), (False, None, False), (True, False, False)):
        layer = attention(config, bias=bias, dense_bias=dense)
        assert (layer.o_proj.bias is not None) is wanted
        assert (layer.qkv_proj.bias is not None) is bias


@states("A13-6")
@both
def test_head_sizes_without_a_kernel_are_named(gen, caplog, monkeypatch):
    from trtllm_scaffold.standin.attention.backends import KERNEL_HEAD_SIZES
    from trtllm_scaffold.standin.logger import logger

    assert KERNEL_HEAD_SIZES == (32, 48, 64, 80, 96, 104, 112, 128, 144, 160, 192, 224, 256)
    logger._seen.clear()
    with caplog.at_level(logging.WARNING, logger="tensorrt_llm"):
        attention(model_config(gen))
        attention(model_config(gen))
    assert caplog.text.count("head_dim 16 has no kernel") == 1
    attention(model_config(gen, backend="VANILLA"))
    monkeypatch.setenv("TRTLLM_SCAFFOLD_HEAD_SIZES", "strict")
    with pytest.raises(RuntimeError, match=r"head_dim 16 .*32, 48, 64"):
        attention(model_config(gen))
    attention(model_config(gen, backend="VANILLA"))
    attention(model_config(gen, llama, head_dim=64))


@states("A13-10")
@both
def test_attention_dp_keeps_whole_heads(gen):
    model_config(gen)
    mapping = api().Mapping(world_size=2, tp_size=2, rank=1, enable_attention_dp=True)
    layer = attention(model_config(gen, mapping=mapping))
    assert (layer.tp_size, layer.num_heads, layer.num_key_value_heads) == (1, HEADS, KV)
    assert layer.qkv_proj.weight.shape == ((HEADS + 2 * KV) * DIM, 48)
    assert layer.mapping.tp_size == 2


@states("A14-1")
@both
def test_layers_with_and_without_rope_in_one_model(gen):
    """A layer without parameters and ids is order-free but for the mask; its neighbour is not."""
    model, _ = build(gen, "llama", "VANILLA")
    bare = filled(attention(model.model_config, layer_idx=1))
    md, x = batch("VANILLA", 4), torch.randn(4, 48)
    swapped = x[[1, 0, 2, 3]]
    # the last token sees the same set of keys in either order
    torch.testing.assert_close(
        run(bare, x, None, md)[-1], run(bare, swapped, None, md)[-1], rtol=1e-4, atol=1e-4
    )
    turning = filled(attention(model.model_config, layer_idx=2, pos_embd_params=rope()))
    positions = torch.arange(4)[None]
    moved = run(turning, x, positions, md)[-1] - run(turning, swapped, positions, md)[-1]
    assert moved.abs().max() > 0.01


@states("B-3")
@both
def test_each_backend_has_its_metadata(gen):
    model_config(gen)
    kinds = [api().get_attention_backend(n).Metadata for n in ("VANILLA", "TRTLLM", "FLASHINFER")]
    assert [kind.__name__ for kind in kinds] == [
        "VanillaAttentionMetadata",
        "TrtllmAttentionMetadata",
        "FlashInferAttentionMetadata",
    ]
    fields = [{item.name for item in dataclasses.fields(kind)} for kind in kinds]
    assert all("seq_lens" in names or "kv_cache_params" in names for names in fields)


@states("W1.6-3")
@both
def test_layers_register_by_index_as_a_string(gen):
    config = model_config(gen)
    layers = [attention(config, layer_idx=index) for index in (0, 7, 7, 7)]
    known = config.extra_attrs["attn_layers"]
    assert list(known) == ["0", "7", "7_0", "7_1"]
    assert [known[name]() for name in known] == layers


@states("C2-5", "W6.7-1")
@both
def test_the_head_passes_its_keywords_on(gen):
    model, _ = build(gen, "llama", "TRTLLM")
    seen = {}
    model.model.forward = lambda **given: seen.update(given) or torch.zeros(3, 48)
    marker, adapters = object(), {"nothing": 1}
    md = batch("TRTLLM", 3)
    ids, positions = torch.arange(3), torch.arange(3)[None]
    model.forward(
        attn_metadata=md,
        input_ids=ids,
        position_ids=positions,
        spec_metadata=marker,
        lora_params=adapters,
        return_context_logits=True,
        nothing_that_it_knows=1,
    )
    assert seen["spec_metadata"] is marker and seen["lora_params"] is adapters
    assert seen["input_ids"] is ids and seen["position_ids"] is positions
    assert "return_context_logits" not in seen and "nothing_that_it_knows" not in seen


@both
def test_logits_of_a_mixed_batch_have_a_row_per_sequence(gen):
    model, hf = build(gen, "llama", "TRTLLM")
    driver = Driver(model, "TRTLLM")
    driver.add((0, 20), (1, 20))
    driver.step([(0, tokens(5, 97))])
    rows = driver.step([(1, tokens(7, 97, 2))], [(0, [3])])
    assert rows.shape == (2, 97)
    driver.done = {0: 5}
    close(driver.step([(1, tokens(7, 97, 2))], [(0, [3])], all_logits=True)[[6, 7]], rows)
