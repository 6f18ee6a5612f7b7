"""Models written like the built-in ones: fused all-reduces, wired norms, mappers, placement."""

from __future__ import annotations

import copy
import importlib
import sys

import pytest
import torch
from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

from trtllm_scaffold.errors import UsageError
from trtllm_scaffold.standin.host_streams import host_streams
from trtllm_scaffold.standin.install import install, uninstall
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.placing import place

from ..runtime.harness import Driver, close, hf_logits, randomise, tokens
from ..runtime.workers import Pool

MODELS = f"{__package__}.models"
NAME = "HandSharedMoeForCausalLM"
T = "tensorrt_llm._torch"


def family() -> torch.nn.Module:
    return randomise(
        Qwen2MoeForCausalLM(
            Qwen2MoeConfig(
                vocab_size=97,
                hidden_size=48,
                intermediate_size=88,
                moe_intermediate_size=24,
                shared_expert_intermediate_size=40,
                num_experts=6,
                num_experts_per_tok=3,
                norm_topk_prob=False,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                rope_parameters={"rope_type": "default", "rope_theta": 1234.0},
                attn_implementation="eager",
                torch_dtype=torch.float32,
                tie_word_embeddings=False,
                eos_token_id=None,
            )
        )
    )


def checkpoint(hf: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Names as they are on disk: one tensor per expert; norms minus 1, for the mapper."""
    found = {}
    for name, value in hf.state_dict().items():
        above, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for e, both in enumerate(value):
                for part, rows in zip(("gate_proj", "up_proj"), both.chunk(2), strict=True):
                    found[f"{above}.{e}.{part}.weight"] = rows
        elif last == "down_proj":
            found |= {f"{above}.{e}.down_proj.weight": rows for e, rows in enumerate(value)}
        else:
            found[name] = value - 1 if "norm" in name else value
    return found


def build(generation: str, backend: str, mapping: Mapping | None = None):
    install(generation, force=True)
    for module in [item for item in sys.modules if item.startswith(MODELS)]:
        del sys.modules[module]
    cls = getattr(importlib.import_module(f"{MODELS}.shared"), NAME)
    from tensorrt_llm._torch.model_config import ModelConfig
    from tensorrt_llm._torch.models.checkpoints.auto_mapper import AutoCheckpointMapper

    hf = family()
    config = copy.deepcopy(hf.config)
    config.torch_dtype = torch.float32
    model_config = ModelConfig(
        pretrained_config=config, attn_backend=backend, mapping=mapping or Mapping()
    )
    with host_streams():
        model = cls(model_config)
    mapper = AutoCheckpointMapper.get("HF", NAME)
    mapper.init_model_and_config(model, model_config)
    model.load_weights(checkpoint(hf), mapper)
    model.post_load_weights()
    return model.eval(), hf


def drive(model) -> list[torch.Tensor]:
    """Prefill of two, decoding, a third that joins: logits of every step."""
    driver = Driver(model, model.model_config.attn_backend)
    driver.add(*[(request, 40) for request in range(3)])
    a, b, c = (tokens(n, 97, n) for n in (17, 13, 11))
    steps = [
        ([(0, a[:9]), (1, b[:6])], []),
        ([], [(0, a[9:10]), (1, b[6:7])]),
        ([(2, c[:8])], [(0, a[10:11]), (1, b[7:8])]),
        ([], [(0, a[11:12]), (1, b[8:9]), (2, c[8:9])]),
    ]
    return [driver.step(*step, all_logits=True) for step in steps]


def wanted(hf) -> list[torch.Tensor]:
    a, b, c = (hf_logits(hf, tokens(n, 97, n)) for n in (17, 13, 11))
    return [
        torch.cat([a[:9], b[:6]]),
        torch.stack([a[9], b[6]]),
        torch.cat([c[:8], a[10:11], b[7:8]]),
        torch.stack([a[11], b[8], c[8]]),
    ]


@pytest.mark.parametrize("backend", ["VANILLA", "TRTLLM"])
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_one_rank(gen, backend):
    model, hf = build(gen, backend)
    for got, expected in zip(drive(model), wanted(hf), strict=True):
        close(got, expected)


def rank_of(rank: int, gen: str, layout: dict):
    """Job of one process: the logits of its steps."""
    mapping = Mapping(world_size=2, rank=rank, tp_size=2, **layout)
    model, _ = build(gen, "TRTLLM", mapping)
    if not mapping.enable_attention_dp:
        return [item.numpy() for item in drive(model)]
    mine = tokens(9, 97, 9)[: 9 - 4 * rank]  # the ranks have different requests and lengths
    driver = Driver(model, "TRTLLM")
    driver.metadata.all_rank_num_tokens = [9, 5]
    driver.add((0, 20))
    return [driver.step([(0, mine)], all_logits=True).numpy()]


@pytest.fixture(scope="module")
def pool():
    made = Pool(2)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{}, {"moe_ep_size": 2, "moe_tp_size": 1}], ids=["tp", "ep"])
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_two_ranks_with_fused_all_reduces(pool, gen, layout):
    expected = wanted(family())
    for results in pool.run(rank_of, gen, layout):
        for got, one in zip(results, expected, strict=True):
            close(torch.from_numpy(got), one)


@pytest.mark.slow
@pytest.mark.parametrize("experts", [1, 2])
@pytest.mark.parametrize("gen", ["1.2", "1.4"])
def test_attention_data_parallel_ranks_share_the_experts(pool, gen, experts):
    layout = {"enable_attention_dp": True, "moe_ep_size": experts, "moe_tp_size": 2 // experts}
    whole = hf_logits(family(), tokens(9, 97, 9))
    first, second = pool.run(rank_of, gen, layout)
    close(torch.from_numpy(first[0]), whole)
    close(torch.from_numpy(second[0]), whole[:5])


SOURCE = """
from __future__ import annotations
from {old}.modules.linear import Linear
from ..modules.rms_norm import RMSNorm
from .modeling_utils import DecoderModel, ModelConfig, register_auto_model
{extra}
@register_auto_model("PlacedForCausalLM")
class Placed(DecoderModel):
    pass
"""


def test_a_file_is_placed_in_the_package_and_forgotten_with_it(generation, tmp_path):
    file, name = tmp_path / "model.py", f"{T}.models.modeling_placed"
    file.write_text(SOURCE.format(old=T, extra=""))
    module = place(file, name)
    assert module.Placed.__module__ == name and sys.modules[name] is module
    other = tmp_path / "other.py"
    other.write_text("from .modeling_placed import Placed")
    assert place(other, f"{T}.models.modeling_other").Placed is module.Placed
    install(generation, force=True)
    assert name not in sys.modules


def test_a_file_of_the_other_generation_says_so(generation, tmp_path):
    file, name = tmp_path / "model.py", f"{T}.models.modeling_placed"
    path, home = {
        "1.2": ("attention.attention", "1.4"),
        "1.4": ("modules.attention", "1.2"),
    }[generation]
    file.write_text(SOURCE.format(old=T, extra=f"from ..{path} import Attention"))
    with pytest.raises(ImportError, match=f"it is a path of {home}"):
        place(file, name)
    assert name not in sys.modules


def test_placing_needs_the_stand_in_and_a_name_inside(tmp_path):
    file = tmp_path / "model.py"
    file.write_text("")
    uninstall()
    with pytest.raises(UsageError, match="not installed"):
        place(file, f"{T}.models.modeling_x")
    install("1.2", force=True)
    with pytest.raises(UsageError, match="must start with tensorrt_llm"):
        place(file, "models.modeling_x")


def test_speculation_is_refused(generation):
    from tensorrt_llm._torch.models.modeling_speculative import SpecDecOneEngineForCausalLM

    model, _ = build(generation, "TRTLLM")
    model.model_config.spec_config = object()
    with pytest.raises(NotImplementedError, match="does not speculate"):
        SpecDecOneEngineForCausalLM(model.model, model.model_config)


def test_streams_without_cuda_are_inert():
    if torch.cuda.is_available():
        pytest.skip("for machines without CUDA")
    before = torch.cuda.Stream
    with host_streams():
        stream, event = torch.cuda.Stream(), torch.cuda.Event()
        event.record()
        event.wait()
        stream.wait_event(event)
    assert torch.cuda.Stream is before


def test_the_matrix_product_that_gates_call(generation):
    importlib.import_module(T)
    x, w = torch.randn(3, 4), torch.randn(5, 4)
    got = torch.ops.trtllm.cublas_mm(x, w.t(), bias=None, out_dtype=torch.float64)
    torch.testing.assert_close(got, (x @ w.t()).double())
