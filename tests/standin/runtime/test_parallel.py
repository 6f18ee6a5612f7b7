"""Tensor and pipeline parallel in real processes, against HuggingFace."""

from __future__ import annotations

import pytest
import torch

from ..statements import states
from .families import CASES
from .harness import close, hf_logits, randomise, tokens
from .workers import Pool, generate

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pool():
    made = Pool(2)
    yield made
    made.close()


def plan_of(case: str, changes: dict | None = None):
    """Steps over three requests and the logits that HuggingFace gives for them."""
    config, hf_class = CASES[case][2](**(changes or {}))
    hf = randomise(hf_class(config))
    texts = [tokens(n, 97, n) for n in (17, 13, 11)]
    whole = [hf_logits(hf, text) for text in texts]
    a, b, c = texts
    steps = [
        ([(0, a[:9]), (1, b[:6])], []),
        ([], [(0, a[9:10]), (1, b[6:7])]),
        ([(2, c[:8])], [(0, a[10:11]), (1, b[7:8])]),
        ([], [(0, a[11:12]), (1, b[8:9]), (2, c[8:9])]),
    ]
    wanted = [
        torch.cat([whole[0][:9], whole[1][:6]]),
        torch.stack([whole[0][9], whole[1][6]]),
        torch.cat([whole[2][:8], whole[0][10:11], whole[1][7:8]]),
        torch.stack([whole[0][11], whole[1][8], whole[2][8]]),
    ]
    return {"requests": [0, 1, 2], "steps": steps, "changes": changes or {}}, wanted


def check(results, wanted):
    for got, expected in zip(results, wanted, strict=True):
        close(torch.from_numpy(got), expected)


@pytest.mark.parametrize("backend", ["VANILLA", "TRTLLM"])
@pytest.mark.parametrize("case", ["llama", "qwen3", "opt"])
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_tensor_parallel_2(pool, gen, case, backend):
    plan, wanted = plan_of(case)
    for results in pool.run(generate, gen, case, backend, {"world_size": 2, "tp_size": 2}, plan):
        check(results, wanted)


@states("C2-3", "W6.2-1")
@pytest.mark.parametrize("case", ["llama", "qwen3", "opt"])
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_pipeline_parallel_2(pool, gen, case):
    plan, wanted = plan_of(case)
    layout = {"world_size": 2, "pp_size": 2}
    first, last = pool.run(generate, gen, case, "TRTLLM", layout, plan)
    check(last, wanted)
    assert not torch.allclose(torch.from_numpy(first[0]), wanted[0])


@states("A13-8", "W2.7-1")
@pytest.mark.parametrize("mapper", [False, True])
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_one_key_value_head_over_two_ranks(pool, gen, mapper):
    plan, wanted = plan_of("llama", {"num_key_value_heads": 1})
    plan["mapper"] = mapper
    layout = {"world_size": 2, "tp_size": 2}
    for results in pool.run(generate, gen, "llama", "TRTLLM", layout, plan):
        check(results, wanted)
