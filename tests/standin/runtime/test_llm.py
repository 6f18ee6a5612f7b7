"""LLM: from a folder to greedy tokens, against HuggingFace's own greedy generation."""

from __future__ import annotations

import logging

import pytest
import torch

from trtllm_scaffold.errors import EnvironmentProblem, InputError

from ..statements import states
from .checkpoint import save
from .families import CASES, llama
from .harness import hf_logits, ports, randomise, tokens


def folder_of(tmp_path, gen, case):
    file, name, family = CASES[case]
    ports(gen, file)
    config, hf_class = family()
    hf = randomise(hf_class(config))
    return save(tmp_path / case, hf, name), hf


def greedy(hf, ids, count):
    out = list(ids)
    for _ in range(count):
        out.append(int(hf_logits(hf, out)[-1].argmax()))
    return out[len(ids) :]


@states("W2.1-1")
@pytest.mark.parametrize("case", ["llama", "mistral", "qwen3", "opt"])
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_greedy_tokens(tmp_path, gen, case):
    folder, hf = folder_of(tmp_path, gen, case)
    from tensorrt_llm import LLM, SamplingParams
    from tensorrt_llm.llmapi import KvCacheConfig

    backend = "VANILLA" if case == "opt" else "TRTLLM"
    llm = LLM(
        model=str(folder),
        attn_backend=backend,
        max_num_tokens=10,
        max_batch_size=2,
        kv_cache_config=KvCacheConfig(tokens_per_block=8, enable_block_reuse=False),
    )
    prompts = [tokens(n, 97, n) for n in (17, 3, 9)]
    outputs = llm.generate(prompts, SamplingParams(max_tokens=8, return_context_logits=True))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.outputs[0].token_ids == greedy(hf, prompt, 8)
        assert output.outputs[0].finish_reason == "length"
        assert output.prompt_token_ids == prompt
        torch.testing.assert_close(
            output.context_logits, hf_logits(hf, prompt), rtol=1e-3, atol=1e-3
        )
    llm.shutdown()


def test_one_prompt_end_token_and_seq_len(tmp_path):
    folder, hf = folder_of(tmp_path, "1.2", "llama")
    from tensorrt_llm import LLM, SamplingParams

    prompt = tokens(5, 97)
    wanted = greedy(hf, prompt, 6)
    llm = LLM(model=str(folder), max_seq_len=9)
    out = llm.generate(prompt, SamplingParams(max_tokens=20))
    assert out.outputs[0].token_ids == wanted[:4]
    assert out.outputs[0].finish_reason == "length"
    end = wanted[2]
    out = llm.generate(prompt, SamplingParams(max_tokens=6, end_id=end))
    assert out.outputs[0].token_ids == wanted[: wanted.index(end)]
    assert out.outputs[0].finish_reason == "stop"
    with pytest.raises(InputError, match="9 tokens does not fit max_seq_len 9"):
        llm.generate(tokens(9, 97), SamplingParams())
    with pytest.raises(InputError, match="tokenizer"):
        llm.generate("text", SamplingParams())
    with pytest.raises(NotImplementedError, match="top_k"):
        llm.generate(prompt, SamplingParams(top_k=40))


@states("E3-1", "W1.2-2")
def test_unknown_architecture_and_arguments(tmp_path):
    ports("1.2", "llama")
    config, hf_class = llama()
    folder = save(tmp_path / "m", hf_class(config), "NobodyKnowsThisForCausalLM")
    from tensorrt_llm import LLM

    with pytest.raises(
        ValueError,
        match="Unknown architecture for AutoModelForCausalLM: NobodyKnowsThisForCausalLM",
    ):
        LLM(model=str(folder))
    with pytest.raises(ValueError, match="no argument 'max_batchsize'"):
        LLM(model=str(folder), max_batchsize=3)
    with pytest.raises(EnvironmentProblem, match="needs 2 processes"):
        LLM(model=str(folder), tensor_parallel_size=2)
    with pytest.raises(InputError, match="config.json"):
        LLM(model=str(tmp_path / "nothing"))


@states("W2.1-1", "W6.4-1")
def test_meta_initialisation_is_used_and_its_failure_is_logged(tmp_path, caplog, monkeypatch):
    folder, hf = folder_of(tmp_path, "1.2", "llama")
    from tensorrt_llm import LLM, SamplingParams
    from tensorrt_llm._torch.models.modeling_utils import MODEL_CLASS_MAPPING

    prompt = tokens(6, 97)
    with caplog.at_level(logging.WARNING, logger="tensorrt_llm"):
        LLM(model=str(folder))
    assert "meta initialisation failed" not in caplog.text

    plain = MODEL_CLASS_MAPPING["HandLlamaForCausalLM"]

    class WithOnes(plain):
        def __init__(self, model_config):
            super().__init__(model_config)
            self.spare = torch.nn.LayerNorm(4)

    monkeypatch.setitem(MODEL_CLASS_MAPPING, "HandLlamaForCausalLM", WithOnes)
    monkeypatch.setattr(
        WithOnes,
        "load_weights",
        lambda self, weights: plain.load_weights(self, weights, skip_modules=["spare"]),
    )
    with caplog.at_level(logging.WARNING, logger="tensorrt_llm"):
        llm = LLM(model=str(folder))
    assert "meta initialisation failed" in caplog.text
    out = llm.generate(prompt, SamplingParams(max_tokens=4))
    assert out.outputs[0].token_ids == greedy(hf, prompt, 4)


@states("C6-2", "W2.1-2")
def test_mapper_is_passed_by_declared_name_only(tmp_path, monkeypatch):
    folder, _ = folder_of(tmp_path, "1.4", "llama")
    from tensorrt_llm import LLM
    from tensorrt_llm._torch.models.modeling_utils import MODEL_CLASS_MAPPING

    plain = MODEL_CLASS_MAPPING["HandLlamaForCausalLM"]
    seen = {}

    class Declares(plain):
        def load_weights(self, weights, weight_mapper=None):
            seen["declared"] = weight_mapper
            super().load_weights(weights, weight_mapper)

    class Swallows(plain):
        def load_weights(self, weights, **kwargs):
            seen["swallowed"] = kwargs
            super().load_weights(weights)

    for cls in (Declares, Swallows):
        monkeypatch.setitem(MODEL_CLASS_MAPPING, "HandLlamaForCausalLM", cls)
        LLM(model=str(folder))
    assert type(seen["declared"]).__name__ == "HfWeightMapper"
    assert seen["swallowed"] == {}


@states("C6-6", "W2.3-3", "W2.3-4")
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_a_missing_tensor(tmp_path, gen):
    """1.2 fails; 1.4 leaves an embedding unfilled (NaN here); both fail on a fused product."""
    folder, hf = folder_of(tmp_path, gen, "llama")
    from safetensors.torch import load_file, save_file
    from tensorrt_llm import LLM, SamplingParams

    path = str(folder / "model.safetensors")
    whole = load_file(path)
    lacking = {k: v for k, v in whole.items() if k != "model.embed_tokens.weight"}
    save_file(lacking, path)
    if gen == "1.2":
        with pytest.raises((KeyError, AssertionError)):
            LLM(model=str(folder))
    else:
        out = LLM(model=str(folder)).generate(
            [3, 4], SamplingParams(max_tokens=1, return_context_logits=True)
        )
        assert out.context_logits.isnan().all()
    save_file({k: v for k, v in whole.items() if "layers.1.self_attn.k_proj" not in k}, path)
    with pytest.raises((KeyError, AssertionError)):
        LLM(model=str(folder))
