"""LLM on CUDA: decoding in graphs gives the eager tokens, and what cannot be captured says so."""

from __future__ import annotations

import pytest
import torch

from .harness import tokens
from .test_llm import folder_of, greedy

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTHS, MOST = (17, 3, 9, 12, 30), (40, 5, 17, 1, 64)


@pytest.fixture(autouse=True)
def _exact():
    torch.backends.cuda.matmul.allow_tf32 = False
    yield


def load(folder, **options):
    from tensorrt_llm import LLM
    from tensorrt_llm.llmapi import KvCacheConfig

    cache = KvCacheConfig(tokens_per_block=8, enable_block_reuse=False)
    given = {"max_batch_size": 3, "max_num_tokens": 10, "kv_cache_config": cache, **options}
    return LLM(model=str(folder), **given)


def params(ends=(), **options):
    from tensorrt_llm import SamplingParams

    return [SamplingParams(max_tokens=most, stop_token_ids=list(ends), **options) for most in MOST]


def prompts():
    return [tokens(length, 97, length) for length in LENGTHS]


def generated(llm, sampling):
    outputs = [output.outputs[0] for output in llm.generate(prompts(), sampling)]
    return [(output.token_ids, output.finish_reason) for output in outputs], outputs


def sizes(llm):
    """Numbers of sequences that were captured."""
    return sorted(llm._engine.captured._held)


@pytest.mark.parametrize("case", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_the_tokens_of_eager_decoding(tmp_path, gen, case):
    folder, hf = folder_of(tmp_path, gen, case)
    captured, eager = load(folder), load(folder, cuda_graph_config=None)
    assert eager._engine.captured is None
    wanted, _ = generated(eager, params())
    ends = {found[min(len(found), 6) - 1] for found, _ in wanted[::2]}
    for stops in ((), ends):
        sampling = params(stops, return_generation_logits=True)
        wanted, exact = generated(eager, sampling)
        found, outputs = generated(captured, sampling)
        assert found == wanted
        for ours, theirs in zip(outputs, exact, strict=True):
            torch.testing.assert_close(
                ours.generation_logits, theirs.generation_logits, rtol=1e-3, atol=1e-3
            )
    assert generated(captured, params())[0][1][0] == greedy(hf, prompts()[1], MOST[1])
    assert set(sizes(captured)) >= {1, 2, 3}
    captured.shutdown()
    assert not sizes(captured)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", ["llama", "mistral"])
def test_sixteen_bits(tmp_path, case, dtype):
    """Kernels of another number of parts round otherwise: close calls may fall either way."""
    folder, _ = folder_of(tmp_path, "1.2", case)
    sampling = params(return_generation_logits=True)
    _, eager = generated(load(folder, dtype=dtype, cuda_graph_config=None), sampling)
    _, captured = generated(load(folder, dtype=dtype), sampling)
    agreed = 0
    for ours, theirs in zip(captured, eager, strict=True):
        assert len(ours.token_ids) == len(theirs.token_ids)
        pairs = zip(ours.generation_logits, theirs.generation_logits, strict=True)
        for step, (logits, wanted) in enumerate(pairs):
            noise = 0.05 * float(wanted.abs().max())
            assert float((logits - wanted).abs().max()) < noise
            if ours.token_ids[step] != theirs.token_ids[step]:
                best = wanted.topk(2).values
                assert float(best[0] - best[1]) < 2 * noise
                break  # what follows answers another text
            agreed += 1
    assert agreed > sum(MOST) // 4


@pytest.mark.parametrize("backend", ["VANILLA", "FLASHINFER"])
def test_other_backends_decode_eagerly(tmp_path, backend):
    folder, _ = folder_of(tmp_path, "1.2", "llama")
    assert load(folder, attn_backend=backend)._engine.captured is None


def refusing(model, metadata):
    if metadata.is_cuda_graph:
        raise NotImplementedError("this attention cannot be captured")


def waiting(model, metadata):
    assert float(model.model.norm.weight.sum()) != 0.5  # read on the host


@pytest.mark.parametrize(
    ("before", "reason"), [(refusing, "this attention"), (waiting, "reads on the host")]
)
def test_a_model_that_cannot_be_captured(tmp_path, monkeypatch, before, reason):
    """It fails before the capture: the device, and the LLM without graphs, go on working."""
    folder, _ = folder_of(tmp_path, "1.2", "llama")
    wanted, _ = generated(load(folder, cuda_graph_config=None), params())
    from tensorrt_llm._torch.models.modeling_utils import MODEL_CLASS_MAPPING

    plain = MODEL_CLASS_MAPPING["HandLlamaForCausalLM"]

    class Uncapturable(plain):
        def forward(self, attn_metadata, **given):
            before(self, attn_metadata)
            return super().forward(attn_metadata=attn_metadata, **given)

    monkeypatch.setitem(MODEL_CLASS_MAPPING, "HandLlamaForCausalLM", Uncapturable)
    for _ in range(2):
        with pytest.raises(NotImplementedError, match=f"{reason}.*cuda_graph_config=None"):
            load(folder).generate(prompts(), params())
        assert generated(load(folder, cuda_graph_config=None), params())[0] == wanted
    monkeypatch.setitem(MODEL_CLASS_MAPPING, "HandLlamaForCausalLM", plain)
    assert generated(load(folder), params())[0] == wanted
