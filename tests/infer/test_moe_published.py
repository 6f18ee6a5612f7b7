"""Published configurations of mixtures of experts, at their real sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from published_configs import FOLDER
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from trtllm_scaffold.infer import infer
from trtllm_scaffold.sources import Sources, read_config
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import ModelSpec, Quantity


def spec_of(name: str, depth: int = 0) -> ModelSpec:
    raw = read_config(FOLDER / f"{name}.json").raw
    raw.pop("quantization_config", None)
    if depth:  # the widths and counts are what is looked at
        raw["num_hidden_layers"] = depth
        raw["layer_types"] = raw.get("layer_types", [])[:depth] or None
    config_class = CONFIG_MAPPING[raw["model_type"]]
    classes = HFClasses(config_class, MODEL_FOR_CAUSAL_LM_MAPPING[config_class])
    return infer(Sources(raw, name, None, None, Path()), classes)


@pytest.mark.parametrize(
    ("name", "router", "expert", "stored"),
    [
        ("mistralai__Mixtral-8x7B-v0.1",
         ("softmax", True, 8, "config.num_local_experts", 2),
         (14336, "config.intermediate_size"),
         {"block_sparse_moe.experts.{e}.w2.weight": (4096, 14336)}),
        ("Qwen__Qwen3-30B-A3B",
         ("softmax", True, 128, "config.num_experts", 8),
         (768, "config.moe_intermediate_size"),
         {"mlp.experts.{e}.gate_proj.weight": (768, 2048)}),
        ("openai__gpt-oss-20b",
         ("topk_softmax", False, 32, "config.num_local_experts", 4),
         (2880, "config.intermediate_size"),
         {"mlp.experts.gate_up_proj": (32, 2880, 5760),
          "mlp.experts.gate_up_proj_bias": (32, 5760)}),
    ],
)  # fmt: skip
def test_real_sizes(
    name: str,
    router: tuple[Any, ...],
    expert: tuple[int, str],
    stored: dict[str, tuple[int, ...]],
) -> None:
    spec = spec_of(name, 0 if "Qwen" in name else 4)
    (kind,) = {(k.mlp, k.moe) for k in spec.layer_kinds}
    mlp, moe = kind
    assert moe is not None
    found = moe.router
    assert router == (
        found.scores,
        found.renormalised,
        found.num_experts.value,
        found.num_experts.expr,
        found.top_k.value,
    )
    assert mlp.intermediate_size == Quantity(*expert)
    shapes = {t.name.removeprefix("model.layers.{i}."): t.shape for t in spec.checkpoint.tensors}
    assert stored.items() <= shapes.items()
    if name.startswith("openai"):
        assert mlp.clamp == Quantity(7.0, "config.swiglu_limit")
        assert mlp.swish_beta is not None and mlp.swish_beta.value == 1.702
        assert (mlp.up_offset, found.logit_bias, mlp.up_bias, mlp.down_bias) == (1.0,) + (True,) * 3
        layouts = {t.roles: (t.layout, t.transposed) for t in spec.checkpoint.tensors}
        assert layouts["moe.gate.weight", "moe.up.weight"] == ("alternating", True)
        assert layouts["moe.gate.bias", "moe.up.bias"] == ("alternating", False)
