"""A choice of keys by the tokens is read by what it computes, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sparse_fork
import torch
from sparse_sizes import SHARED, SPARSE
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer import infer
from trtllm_scaffold.plan import plan_port, port_names
from trtllm_scaffold.sources import Sources
from trtllm_scaffold.sources.hf_class import HFClasses
from trtllm_scaffold.spec import IndexerSpec, ModelSpec
from trtllm_scaffold.spec.describe import describe

torch.set_num_threads(1)


def spec_of(model_type: str, **given: Any) -> ModelSpec:
    config_class = CONFIG_MAPPING[model_type]
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    raw = {"architectures": [model_class.__name__], "model_type": model_type, **given}
    return infer(Sources(raw, "here", None, None, Path()), HFClasses(config_class, model_class))


def fork(**changes: Any) -> ModelSpec:
    source = Sources(sparse_fork.raw(**changes), "fork", None, None, Path())
    return infer(source, sparse_fork.CLASSES)


def indexer(spec: ModelSpec) -> IndexerSpec:
    mla = spec.layer.attention.mla
    assert mla is not None and mla.indexer is not None
    return mla.indexer


def test_what_an_indexer_computes() -> None:
    spec = spec_of("deepseek_v32", **SPARSE)
    found = indexer(spec)
    numbers = [found.num_heads, found.head_dim, found.top_k]
    assert [(n.value, n.expr) for n in numbers] == [
        (16, "config.index_n_heads"),
        (32, "config.index_head_dim"),
        (2048, "config.index_topk"),
    ]
    assert spec.position.rope is not None
    assert (found.style, spec.position.rope.style) == ("neox", "interleaved")
    assert (found.key_norm.label, found.key_norm.eps.expr) == ("layernorm", "1e-06")
    assert not spec.layer.attention.shares_choice
    told = describe(spec)["attention"]["latent"]["indexer"]
    assert told["top_k"] == 2048 and told["style"] == "neox"


def test_layers_that_share_a_choice() -> None:
    spec = spec_of("glm_moe_dsa", **SHARED)
    assert indexer(spec).style == "interleaved"
    shares = [spec.layer_kinds[kind].attention.shares_choice for kind in spec.layer_pattern]
    assert shares == [False, True, False, True]
    answers = plan_port(spec, port_names(spec, None, None), "1.2").answers
    assert answers["index_layers"] == [0, 2]
    assert answers["indexer_condition"] == 'config.indexer_types[layer_idx] == "full"'


def test_a_fork_with_names_of_its_own() -> None:
    spec = fork(pick_style="interleaved", style="neox")
    found = indexer(spec)
    assert [found.num_heads.expr, found.head_dim.expr, found.top_k.expr] == [
        "config.pick_heads",
        "config.pick_width",
        "config.pick_count",
    ]
    assert (found.style, found.key_norm.eps.expr) == ("interleaved", "config.pick_fuzz")
    answers = plan_port(spec, port_names(spec, None, None), "1.2").answers
    assert (answers["attention_base"], answers["support_level"]) == ("", "reference")
    assert answers["latent_dim"] == "config.memory_squeeze"
    set_by_port = dict(zip(answers["canonical_names"], answers["canonical_exprs"], strict=True))
    assert set_by_port["index_topk"] == "config.pick_count"
    assert "kv_lora_rank" not in set_by_port, "the port makes it of two widths"
    rows = dict(zip(answers["weight_names"], answers["weight_targets"], strict=True))
    module = "model.layers.{i}.self_attn"
    assert rows["tower.{i}.memory.picker.quiz.weight"] == f"{module}.indexer.wq_b.weight"
    assert rows["tower.{i}.memory.spread.weight"] == f"{module}.kv_b_proj.weight"


@pytest.mark.parametrize(
    ("trick", "match"),
    [
        ("unspun", "no known formula"),
        ("absolute", "no known formula"),
        ("least", "no known formula"),
        ("sigmoid", "no known formula"),
        ("bias", "has a bias"),
        ("all", "12 of 12 keys are chosen"),
        ("soft", "not 0 and -inf by the choice"),
    ],
)
def test_other_choices_have_no_label(trick: str, match: str) -> None:
    with pytest.raises(Refused, match=f"attention: keys are chosen by the tokens.*{match}"):
        fork(trick=trick, num_hidden_layers=2)


def test_queries_from_both_latents_and_a_gate_beside_them() -> None:
    spec = fork(door="both")
    attention = spec.layer.attention
    assert attention.mla is not None and attention.mla.raw_latent
    gate = attention.output_gate
    assert gate is not None and gate.beside_queries
    assert (gate.activation, gate.width) == ("sigmoid", "full")
    plan = plan_port(spec, port_names(spec, None, None), "1.2")
    assert (plan.answers["latent_raw"], plan.answers["latent_gate"]) == (True, True)
    assert plan.support.level.name == "reference"


@pytest.mark.parametrize("door", ["raw first", "raw index", "before"])
def test_other_latents_and_gates_are_refused(door: str) -> None:
    with pytest.raises(Refused) as refusal:
        spec = fork(door=door)
        plan_port(spec, port_names(spec, None, None), "1.2")
    assert refusal.value.axis.startswith("attention")
