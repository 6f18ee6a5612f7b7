"""Hand-written models against HuggingFace, along the recipe of the library's model tests."""

from __future__ import annotations

import copy

import pytest
import torch

from ..statements import states
from .families import CASES
from .harness import Driver, close, hf_logits, ports, randomise, tokens

BACKENDS = ("VANILLA", "TRTLLM")


def build(generation: str, case: str, backend: str, mapper: bool = False):
    file, name, family = CASES[case]
    cls = getattr(ports(generation, file), name)
    from tensorrt_llm._torch.model_config import ModelConfig

    config, hf_class = family()
    hf = randomise(hf_class(config))
    config = copy.deepcopy(config)
    config.torch_dtype = torch.float32
    model_config = ModelConfig(pretrained_config=config, attn_backend=backend)
    model = cls(model_config).to(torch.float32)
    if mapper:
        from tensorrt_llm._torch.models.checkpoints.auto_mapper import AutoCheckpointMapper

        weight_mapper = AutoCheckpointMapper.get("HF", name)
        weight_mapper.init_model_and_config(model, model_config)
        model.load_weights(hf.state_dict(), weight_mapper)
    else:
        model.load_weights(hf.state_dict())
    for module in model.modules():
        if hasattr(module, "post_load_weights"):
            module.post_load_weights()
    return model.eval(), hf


@states(
    "A1-1",
    "A1-2",
    "A5-1",
    "A8-2",
    "A11-1",
    "A11-8",
    "B-6",
    "C2-1",
    "C2-2",
    "C4-2",
    "D-7",
    "E1-1",
    "E1-2",
    "E1-3",
    "E1-4",
    "E1-5",
    "E1-7",
    "E2-1",
    "W2.3-1",
)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_prefill_decode_mixed_and_chunked(gen, case, backend):
    model, hf = build(gen, case, backend)
    driver = Driver(model, backend)
    vocab = hf.config.vocab_size
    first, second, third = tokens(19, vocab), tokens(27, vocab, 2), tokens(14, vocab, 3)
    whole = {0: hf_logits(hf, first), 1: hf_logits(hf, second), 2: hf_logits(hf, third)}
    driver.add((0, 40), (1, 40), (2, 40))

    # prefill, two sequences of unequal length, last token of each
    logits = driver.step([(0, first[:11]), (1, second[:7])])
    close(logits, torch.stack([whole[0][10], whole[1][6]]))
    # eight decode steps
    for i in range(8):
        logits = driver.step([], [(0, first[11 + i : 12 + i]), (1, second[7 + i : 8 + i])])
        close(logits, torch.stack([whole[0][11 + i], whole[1][7 + i]]))
    # a prefill joins: contexts come first; the second sequence goes on by a chunk of its prompt
    logits = driver.step([(2, third[:13]), (1, second[15:21])], [(0, third[:1])], all_logits=True)
    ahead = hf_logits(hf, first + third[:1])
    close(logits, torch.cat([whole[2][:13], whole[1][15:21], ahead[-1:]]))
    # and all of them decode, of different ages
    logits = driver.step([], [(1, second[21:22]), (2, third[13:])])
    close(logits, torch.stack([whole[1][21], whole[2][13]]))
    driver.cache.shutdown()


@states("E1-1", "W2.3-1", "W2.5-1")
@pytest.mark.parametrize("case", ["llama", "qwen3", "opt"])
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_loading_through_a_mapper(gen, case):
    model, hf = build(gen, case, "TRTLLM", mapper=True)
    driver = Driver(model, "TRTLLM")
    ids = tokens(15, hf.config.vocab_size)
    driver.add((7, 20))
    close(driver.step([(7, ids)], all_logits=True), hf_logits(hf, ids))


@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_flashinfer_and_no_cache_agree(gen):
    model, hf = build(gen, "llama", "FLASHINFER")
    driver = Driver(model, "FLASHINFER")
    ids = tokens(20, hf.config.vocab_size)
    driver.add((1, 30))
    close(driver.step([(1, ids)], all_logits=True), hf_logits(hf, ids))
    other, _ = build(gen, "llama", "VANILLA")
    bare = Driver(other, "VANILLA")
    bare.metadata.kv_cache_manager = None
    close(bare.step([(1, ids)], all_logits=True), hf_logits(hf, ids))
