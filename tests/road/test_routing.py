"""Each port's routing method against HF's router on 10,000 random rows: choice and weights."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sample_moe import MOE_SPECS

from trtllm_scaffold import standin
from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.render import rendered_aside
from trtllm_scaffold.verify.close_calls import is_close
from trtllm_scaffold.verify.port_module import forget_port, import_port

ROWS, HIDDEN = 10_000, 40

#: Spec -> HF's module and router, and what its configuration says besides.
ROUTERS: dict[str, tuple[str, str, dict[str, object]]] = {
    "mixtral": ("mixtral", "MixtralTopKRouter", {}),
    "qwen2_moe": ("qwen2_moe", "Qwen2MoeTopKRouter", {}),
    "granitemoe": ("granitemoe", "GraniteMoeTopKRouter", {}),
    "gpt_oss": ("gpt_oss", "GptOssTopKRouter", {}),
    "glm4_moe": ("glm4_moe", "Glm4MoeTopkRouter", {"n_group": 1, "topk_group": 1}),
    "deepseek_v3": ("glm4_moe", "Glm4MoeTopkRouter", {}),
    "deepseek_v2": ("deepseek_v2", "DeepseekV2TopkRouter", {}),
    "ernie4_5_moe": ("ernie4_5_moe", "Ernie4_5_MoeTopKRouter", {}),
    "flint": ("flint", "FlintTopKRouter", {}),
    "llama4": ("llama4", "Llama4Router", {"num_experts_per_tok": 1}),
    "phimoe": ("phimoe", "PhimoeTopKRouter", {"num_experts_per_tok": 2}),
}


def configuration(name: str, **more: object) -> SimpleNamespace:
    """What the routers and the port read, under all their names."""
    experts = 24
    values = {
        "hidden_size": HIDDEN,
        "num_experts": experts,
        "num_local_experts": experts,
        "moe_num_experts": experts,
        "num_experts_per_tok": 5,
        "n_group": 4,
        "topk_group": 2,
        "norm_topk_prob": name not in ("qwen2_moe",),
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 2.5,
        "moe_norm_min": 0.3,
        "router_jitter_noise": 0.2,
        "input_jitter_noise": 0.0,
        "swiglu_limit": 7.0,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
        "torch_dtype": torch.float32,
    }
    return SimpleNamespace(**{**values, **more})


def hf_routing(
    name: str, config: SimpleNamespace
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logits, weights of all experts with 0 for those not chosen, whether chosen, bias)."""
    module, router_name, _ = ROUTERS[name]
    home = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    torch.manual_seed(1)
    router = getattr(home, router_name)(config).eval()
    bias = torch.zeros(config.num_experts)
    with torch.no_grad():
        router.weight.copy_(torch.randn(router.weight.shape) * 1.5 * HIDDEN**-0.5)
        for key, tensor in router.state_dict().items():
            if key.endswith("bias"):
                tensor.copy_(torch.randn(tensor.shape) * 0.4)
                bias = tensor.reshape(-1)
        output = router(torch.randn(ROWS, HIDDEN))
    if name == "llama4":
        scores, logits = output
        return logits, scores, scores > 0, bias
    logits, weights, chosen = output
    everything = torch.zeros_like(logits)
    taken = torch.zeros_like(logits, dtype=torch.bool).scatter(1, chosen, True)
    return logits, everything.scatter(1, chosen, weights), taken, bias


@pytest.fixture(autouse=True)
def runtime():
    standin.install("1.2")
    yield
    standin.uninstall()


def port_layer(name: str, config: SimpleNamespace, folder: Path):
    """The layer of experts of the rendered port."""
    spec = MOE_SPECS[name]
    answers = plan_port(spec, port_names(spec, None, None), "1.2").answers
    with rendered_aside(answers, {}, folder / "port") as port:
        package = port / "llama_trtllm"
        modeling = import_port(package) and importlib.import_module("llama_trtllm.modeling_llama")
        layer = modeling.LlamaMoE(modeling.ModelConfig(pretrained_config=config), 0)
        forget_port(package)
    return layer


@pytest.mark.parametrize("name", ROUTERS)
def test_choice_and_weights_are_hfs(name: str, tmp_path: Path) -> None:
    config = configuration(name, **ROUTERS[name][2])
    logits, weights, taken, bias = hf_routing(name, config)
    layer = port_layer(name, config, tmp_path)
    if MOE_SPECS[name].layer_kinds[-1].moe.router.selection_bias:
        layer.e_score_correction_bias.data.copy_(bias)
    method = layer.experts.routing_method

    chosen, found = method.apply(logits)
    assert (chosen.dtype, found.dtype) == (torch.int32, torch.float32)
    assert method.experts_per_token == chosen.shape[1] == config.num_experts_per_tok
    # Rounding may turn a close call; there are few, and none of them is compared.
    clear = ~is_close(method, logits, 1e-6)
    assert clear.sum() >= ROWS - 20
    ours = torch.zeros_like(logits).scatter(1, chosen.long(), found)
    own_choice = torch.zeros_like(taken).scatter(1, chosen.long(), True)
    assert torch.equal(own_choice[clear], taken[clear])
    torch.testing.assert_close(ours[clear], weights[clear], rtol=2e-6, atol=2e-6)
