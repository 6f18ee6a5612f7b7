"""The same models on CUDA: eager, captured in a CUDA graph, and without host synchronisation."""

from __future__ import annotations

import pytest
import torch

from ..statements import states
from .harness import Driver, close, hf_logits, tokens
from .test_recipe import build

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _exact():
    torch.backends.cuda.matmul.allow_tf32 = False
    yield


def on_gpu(gen, case, backend):
    model, hf = build(gen, case, backend)
    return model.cuda(), hf


@pytest.mark.parametrize("case", ["llama", "mistral", "qwen3", "opt"])
@pytest.mark.parametrize("backend", ["VANILLA", "TRTLLM"])
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_prefill_decode_and_mixed(gen, case, backend):
    model, hf = on_gpu(gen, case, backend)
    driver = Driver(model, backend)
    first, second = tokens(19, 97), tokens(17, 97, 2)
    whole = {0: hf_logits(hf, first), 1: hf_logits(hf, second)}
    driver.add((0, 40), (1, 40))
    close(driver.step([(0, first[:11])], all_logits=True), whole[0][:11])
    for i in range(4):
        close(driver.step([], [(0, first[11 + i : 12 + i])]), whole[0][11 + i : 12 + i])
    logits = driver.step([(1, second[:9])], [(0, first[15:16])], all_logits=True)
    close(logits, torch.cat([whole[1][:9], whole[0][15:16]]))


@states("B-9", "E1-6", "W6.5-2")
@pytest.mark.parametrize("case", ["llama", "mistral", "qwen3", "opt"])
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
@torch.inference_mode()
def test_decode_in_a_cuda_graph(gen, case):
    model, hf = on_gpu(gen, case, "TRTLLM")
    from tensorrt_llm._torch.metadata import KVCacheParams

    driver = Driver(model, "TRTLLM")
    texts = [tokens(20, 97, 5), tokens(20, 97, 6)]
    whole = [hf_logits(hf, text) for text in texts]
    driver.add((0, 40), (1, 40))
    driver.step([(0, texts[0][:9]), (1, texts[1][:5])])
    graph_metadata = driver.metadata.create_cuda_graph_metadata(2)
    ids = torch.zeros(2, dtype=torch.int32, device="cuda")
    positions = torch.zeros(1, 2, dtype=torch.int32, device="cuda")

    def prepare(step):
        past = [9 + step, 5 + step]
        graph_metadata.request_ids = [0, 1]
        graph_metadata.prompt_lens = [9, 5]
        graph_metadata.kv_cache_params = KVCacheParams(
            use_cache=True, num_cached_tokens_per_seq=past
        )
        graph_metadata.prepare()
        ids.copy_(torch.tensor([texts[n][past[n]] for n in (0, 1)]))
        positions.copy_(torch.tensor([past]))

    def forward():
        return model.forward(input_ids=ids, position_ids=positions, attn_metadata=graph_metadata)

    prepare(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        forward(), forward()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = forward()
    for step in range(8):
        prepare(step)
        graph.replay()
        wanted = torch.stack([whole[0][9 + step], whole[1][5 + step]])
        close(logits.cpu(), wanted)


@states("W6.5-2")
@pytest.mark.parametrize("backend", ["VANILLA", "TRTLLM"])
def test_decode_does_not_wait_for_the_device(backend):
    model, _ = on_gpu("1.2", "llama", backend)
    driver = Driver(model, backend)
    text = tokens(12, 97)
    driver.add((0, 30))
    driver.step([(0, text[:9])])
    driver.step([], [(0, text[9:10])])
    md = driver.metadata
    md.kv_cache_params.num_cached_tokens_per_seq[0] = 10
    md.prepare()
    given = {
        "input_ids": torch.tensor([text[10]], dtype=torch.int32, device="cuda"),
        "position_ids": torch.tensor([[10]], dtype=torch.int32, device="cuda"),
        "attn_metadata": md,
    }
    with torch.inference_mode():
        model.forward(**given)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.forward(**given)
        finally:
            torch.cuda.set_sync_debug_mode("default")
