"""Latent attention is read by what it computes, or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import mla_fork
import pytest
import torch
from latent_sizes import SIZES, YARN
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer import infer
from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import MlaSpec, ModelSpec
from trtllm_scaffold.spec.describe import describe

torch.set_num_threads(1)


def spec_of(model_type: str, **changes: Any) -> ModelSpec:
    config_class = CONFIG_MAPPING[model_type]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    raw = {"architectures": [model_class.__name__], "model_type": model_type, **SIZES, **changes}
    return infer(Sources(raw, "here", None, None, Path()), HFClasses(config_class, model_class))


def latents(spec: ModelSpec) -> MlaSpec:
    found = spec.layer.attention.mla
    assert found is not None and spec.layer.attention.kind == "MLA"
    return found


def roles(spec: ModelSpec) -> dict[str, tuple[tuple[str, ...], str]]:
    return {tensor.name: (tensor.roles, tensor.layout) for tensor in spec.checkpoint.tensors}


def test_yarn_with_two_magnitudes_and_both_latents() -> None:
    spec = spec_of("deepseek_v3", rope_parameters=YARN, first_k_dense_replace=4)
    mla, attention = latents(spec), spec.layer.attention
    for name in ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim"):
        assert (getattr(mla, name).value, getattr(mla, name).expr) == (
            SIZES[name],
            f"config.{name}",
        )
    assert (mla.v_head_dim.value, attention.head_dim.value) == (48, 64)
    assert mla.magnitude == pytest.approx(0.13 * math.log(4.0) + 1)
    assert attention.scale.value == pytest.approx(mla.magnitude**2 / 8)
    assert mla.q_norm is not None and mla.biases == ()
    assert (mla.q_norm.label, mla.q_norm.eps.expr, mla.kv_norm.eps.expr) == (
        "rmsnorm", "1e-06", "1e-06",
    )  # fmt: skip
    rope = spec.position.rope
    assert rope is not None and rope.dim.expr == "config.qk_rope_head_dim"
    assert (rope.style, rope.scaling and rope.scaling.kind) == ("interleaved", "yarn")
    found = roles(spec)
    layer = "model.layers.{i}.self_attn"
    assert found[f"{layer}.kv_a_proj_with_mqa.weight"] == (
        ("attention.kv_a.weight", "attention.k_rope.weight"), "rows",
    )  # fmt: skip
    assert found[f"{layer}.kv_b_proj.weight"] == (
        ("attention.k_b.weight", "attention.v_b.weight"), "per_head",
    )  # fmt: skip
    assert found[f"{layer}.q_b_proj.weight"] == (("attention.q_b.weight",), "whole")
    said = describe(spec)["attention"]
    assert (said["kind"], said["latent"]["kv_lora_rank"]) == ("MLA", 72)
    assert json.loads(json.dumps(said)) == said


@pytest.mark.parametrize(
    ("model_type", "changes", "style"),
    [
        ("deepseek_v2", {"q_lora_rank": None, "first_k_dense_replace": 4}, "interleaved"),
        ("youtu", {"rope_interleave": False}, "neox"),
        ("minicpm3", {"attention_bias": True}, "neox"),
    ],
)
def test_other_forms(model_type: str, changes: dict[str, Any], style: str) -> None:
    spec = spec_of(model_type, **changes)
    mla = latents(spec)
    assert spec.position.rope is not None and spec.position.rope.style == style
    assert (mla.q_lora_rank is None) == (mla.q_norm is None) == ("q_lora_rank" in changes)
    assert mla.biases == (("q_a", "kv_a", "o") if "attention_bias" in changes else ())
    assert mla.magnitude == 1.0 and spec.layer.attention.has_default_scale
    if mla.biases:
        with pytest.raises(Refused, match="attention.latent_bias: 'q_a, kv_a, o'"):
            plan_port(spec, port_names(spec, None, None), "1.2")


def fork(**changes: Any) -> ModelSpec:
    return infer(Sources(mla_fork.raw(**changes), "fork", None, None, Path()), mla_fork.CLASSES)


def test_a_fork_with_names_of_its_own() -> None:
    spec = fork(style="neox")
    mla = latents(spec)
    assert mla.q_lora_rank is not None and mla.q_norm is not None
    widths = [mla.q_lora_rank, mla.kv_lora_rank, mla.qk_nope_head_dim, mla.qk_rope_head_dim]
    assert [w.value for w in (*widths, mla.v_head_dim)] == [192, 160, 48, 24, 40]
    assert mla.kv_norm.eps.expr == mla.q_norm.eps.expr == "config.latent_fuzz"
    assert roles(spec)["tower.{i}.memory.spread.weight"][1] == "per_head"
    answers = plan_port(spec, port_names(spec, None, None), "1.2").answers
    set_by_port = dict(zip(answers["canonical_names"], answers["canonical_exprs"], strict=True))
    # what the runtime reads to make the cache, and the module for the norms of the latents
    assert {"kv_lora_rank", "qk_rope_head_dim"} <= set(set_by_port)
    assert set_by_port["rms_norm_eps"] == "config.fuzz"
    assert answers["latent_q_eps"] == answers["latent_kv_eps"] == "config.latent_fuzz"
    assert "head_dim" not in set_by_port
    assert answers["weight_transforms"].count("paired_queries") == 1


@pytest.mark.parametrize(
    ("trick", "match"),
    [
        ("latent without norm", "attention: .*latent does not pass exactly one norm"),
        ("own shared key", "attention: .*have projections of their own"),
        ("spun first", "attention: .*in the order plain, rotated"),
        ("scale", "attention.scale: scores are scaled by .* make"),
    ],
)
def test_forms_without_a_label(trick: str, match: str) -> None:
    with pytest.raises(Refused, match=match):
        fork(trick=trick)


def test_what_happens_to_latents_besides_their_norms() -> None:
    spec = fork(trick="scaled latent")
    mla = latents(spec)
    assert mla.kv_scale is not None and mla.kv_scale.expr == "1.7"
    assert mla.q_scale is None and mla.rope_norm is None
    mla = latents(fork(trick="normed shared key"))
    assert mla.rope_norm is not None and mla.rope_norm.eps.expr == "config.fuzz"
    assert mla.kv_scale is None


@pytest.mark.parametrize("trick", ["shared key first", "value before key"])
def test_rows_in_another_order_have_no_transform(trick: str) -> None:
    with pytest.raises(Refused, match="checkpoint"):
        spec = fork(trick=trick)
        assert latents(spec).v_head_dim.value == 40
        plan_port(spec, port_names(spec, None, None), "1.2")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"mscale": None}, "mscale_all_dim 1.3 and mscale None"),
        ({"attention_factor": 1.1}, "attention_factor beside latent attention"),
    ],
)
def test_magnitudes_that_the_module_would_not_apply_are_refused(
    change: dict[str, Any], match: str
) -> None:
    given = {key: value for key, value in {**YARN, **change}.items() if value is not None}
    spec = spec_of("youtu", rope_parameters=given)
    with pytest.raises(Refused, match=match):
        plan_port(spec, port_names(spec, None, None), "1.2")
