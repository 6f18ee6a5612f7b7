"""Layers under ``torch.compile``: no graph break, the eager result, nothing kept of a batch."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from trtllm_scaffold.standin import compiled_ops
from trtllm_scaffold.standin.attention.attention import Attention
from trtllm_scaffold.standin.attention.qk_norm import QKNormRoPEAttention
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.modules.swiglu import swiglu
from trtllm_scaffold.standin.moe.create import create_moe
from trtllm_scaffold.standin.moe.routing import RenormalizeMoeRoutingMethod

from .mla_layer import HIDDEN, Case, Session, build, fill, follow, names, sequences, weights

HEADS, KV, DIM = 4, 2, 16
both = pytest.mark.parametrize("gen", ["1.2", "1.4"])


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def attention(gen, backend="TRTLLM", kind=Attention, **changes):
    """A filled layer with rope, the names and its config."""
    api = names(gen)
    config = api.ModelConfig(
        pretrained_config=SimpleNamespace(
            rms_norm_eps=1e-5, torch_dtype=torch.float32, head_dim=DIM, architectures=None
        ),
        attn_backend=backend,
    )
    given = {
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "max_position_embeddings": 64,
        "bias": True,
        "pos_embd_params": api.PositionalEmbeddingParams(
            type=api.PositionEmbeddingType.rope_gpt_neox,
            rope=api.RopeParams(dim=DIM, theta=500.0, max_positions=64),
        ),
        "layer_idx": 0,
        "dtype": torch.float32,
        "config": config,
    }
    return api, randomised(kind(**{**given, **changes})), config


def randomised(module):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3, generator=generator)
    return module.eval()


def compare(compiled, eager):
    """Prefill, chunks, decoding and mixed batches of two sessions, each with its own cache."""
    torch.testing.assert_close(follow(compiled, sequences()), follow(eager, sequences()))


def sinks():
    return torch.linspace(-1, 2, HEADS)


@both
@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("TRTLLM", {}),
        ("TRTLLM", {"attention_window_size": 5}),
        ("TRTLLM", {"attention_window_size": 5, "attention_sinks": sinks()}),
        ("VANILLA", {"attention_window_size": 5}),
    ],
    ids=["plain", "window", "window and sinks", "apart"],
)
def test_attention(gen, backend, options):
    api, layer, config = attention(gen, backend)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    cache = KV, DIM
    compare(
        Session(api, compiled, config, backend, cache, **options),
        Session(api, layer, config, backend, cache, **options),
    )
    assert counter.frame_count == 2, "once for its first shape, once for every other"


@both
def test_attention_by_what_the_operator_says_of_its_result(gen):
    api, layer, config = attention(gen)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compare(
        Session(api, compiled, config, "TRTLLM", (KV, DIM)),
        Session(api, layer, config, "TRTLLM", (KV, DIM)),
    )


@both
@pytest.mark.parametrize("fused", [True, False])
def test_norms_of_queries_and_keys(gen, fused):
    api, layer, config = attention(gen, kind=QKNormRoPEAttention, fuse_qk_norm_rope=fused)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    compare(
        Session(api, compiled, config, "TRTLLM", (KV, DIM)),
        Session(api, layer, config, "TRTLLM", (KV, DIM)),
    )


@pytest.mark.parametrize(
    ("case", "compiler"),
    [
        (Case("1.2"), "eager"),
        (Case("1.4", lite=True), "aot_eager"),
        (Case("1.4", "VANILLA", neox=True), "eager"),
    ],
    ids=str,
)
def test_latent_attention(case, compiler):
    api, layer, config = build(case)
    fill(layer, weights(case.lite))
    counter = CompileCounterWithBackend(compiler)
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    compare(Session(api, compiled, config, case.backend), Session(api, layer, config, case.backend))
    assert counter.frame_count == 2


@both
@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_experts(gen, compiler):
    names(gen)
    layer = create_moe(
        routing_method=RenormalizeMoeRoutingMethod(3),
        num_experts=6,
        hidden_size=12,
        intermediate_size=8,
        dtype=torch.float32,
        model_config=ModelConfig(),
        layer_idx=0,
        bias=True,
    )
    randomised(layer)
    compiled = torch.compile(layer, fullgraph=True, backend=compiler)
    for tokens in (9, 1, 5):
        x, logits = torch.randn(tokens, 12), torch.randn(tokens, 6)
        for dtype in (None, torch.bfloat16):
            got = compiled(x, logits, output_dtype=dtype)
            torch.testing.assert_close(got, layer(x, logits, output_dtype=dtype))


def prepared(api, *lengths):
    """Metadata of sequences that start empty, without a cache."""
    kind = api.get_attention_backend("TRTLLM").Metadata
    md = kind(max_num_requests=4, max_num_tokens=64, kv_cache_manager=None)
    return lengthened(md, *lengths)


def lengthened(md, *lengths):
    md.seq_lens = torch.tensor(lengths, dtype=torch.int)
    md.num_contexts, md.request_ids = len(lengths), list(range(len(lengths)))
    md.prepare()
    return md


@both
def test_one_graph_serves_every_batch(gen):
    api, layer, _ = attention(gen)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    x = torch.randn(8, HIDDEN)

    def check(md):
        with torch.inference_mode():
            got, wanted = (each(None, x, md) for each in (compiled, layer))
        torch.testing.assert_close(got, wanted)
        return wanted

    first, second = prepared(api, 8), prepared(api, 3, 5)
    assert not torch.equal(check(first), check(second))
    check(first)  # it was not the one that was prepared last
    check(lengthened(first, 2, 2, 4))
    copied = copy.copy(second)
    check(lengthened(copied, 4, 4))
    check(lengthened(second, 6, 2))
    check(lengthened(copied, 1, 7))
    assert counter.frame_count == 1


def test_one_graph_serves_every_layer():
    """Compiled one by one, layers do not run into the compiler's limit of recompilations."""
    api, layer, _ = attention("1.2")
    counter = CompileCounterWithBackend("eager")
    x, md = torch.randn(6, HIDDEN), prepared(api, 6)
    for number in range(torch._dynamo.config.recompile_limit + 2):
        other = copy.deepcopy(layer)
        with torch.inference_mode():
            other.o_proj.weight.mul_(number)
            got = torch.compile(other, fullgraph=True, backend=counter)(None, x, md)
            torch.testing.assert_close(got, other(None, x, md))
    assert counter.frame_count == 1


@both
def test_padding_rows_stay_in_a_graph(gen):
    """Eager cuts them off; a graph has as many rows as it was given."""
    api, layer, _ = attention(gen, dense_bias=False)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    x, md = torch.randn(9, HIDDEN), prepared(api, 3, 2)
    with torch.inference_mode():
        got, wanted = compiled(None, x, md), layer(None, x, md)
    assert wanted.shape[0] == 5 and got.shape[0] == 9
    torch.testing.assert_close(got[:5], wanted)
    assert not got[5:].any()


@both
def test_a_copy_of_a_layer_is_found_by_itself(gen):
    api, layer, _ = attention(gen)
    other = randomised(copy.deepcopy(layer))
    other.attn.q_scaling = 3.0
    x, md = torch.randn(6, HIDDEN), prepared(api, 6)
    with torch.inference_mode():
        got = [
            torch.compile(each, fullgraph=True, backend="eager")(None, x, md)
            for each in (layer, other)
        ]
        torch.testing.assert_close(got, [layer(None, x, md), other(None, x, md)])
    assert not torch.equal(*got)


@both
def test_a_batch_that_was_not_prepared_is_refused(gen):
    api, layer, _ = attention(gen)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    md, x = prepared(api, 6), torch.randn(6, HIDDEN)
    compiled(None, x, md)
    md.seq_lens = torch.tensor([6], dtype=torch.int)
    with pytest.raises(RuntimeError, match="prepare"):
        compiled(None, x, md)


@both
def test_what_a_callable_takes_is_held_to_the_generation_in_a_trace(gen):
    names(gen)
    x = torch.randn(3, 8)

    def call(**options):
        return torch.compile(lambda x: swiglu(x, None, **options), fullgraph=True, backend="eager")(
            x
        )

    torch.testing.assert_close(call(), swiglu(x))
    if gen == "1.4":
        torch.testing.assert_close(call(swiglu_limit=0.5), swiglu(x, swiglu_limit=0.5))
        return
    with pytest.raises(Exception, match="swiglu_limit"):
        call(swiglu_limit=0.5)


def test_operators_tell_the_truth_about_themselves():
    """They write to none of their arguments, and the fake results have the real ones' form."""
    api, layer, _ = attention("1.2")
    md, qkv = prepared(api, 3, 2), torch.randn(5, (HEADS + 2 * KV) * DIM)
    handles = layer._handle, md._handle
    given = qkv, None, None, *handles, "causal", 2, None, sinks(), HEADS * DIM
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(compiled_ops._attention, given, test_utils=checks)
