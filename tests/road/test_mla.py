"""Latent attention from a configuration to a proven port, and faults that the proof must find."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from latent_sizes import SIZES, YARN

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.pipeline import NewResult, new_port
from trtllm_scaffold.sources import load_path
from trtllm_scaffold.verify.prove import prove_port

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0 + 0.1 * j for j in range(12)],
    "long_factor": [1.0 + 0.3 * j for j in range(12)],
}


def make(
    folder: Path, trtllm: str, architecture: str, model_type: str, **changes: Any
) -> NewResult:
    source = folder / "source" / "config.json"
    source.parent.mkdir()
    plain = {"architectures": [architecture], "model_type": model_type}
    source.write_text(json.dumps({**plain, **SIZES, **changes}))
    return new_port(load_path(source), folder / "port", trtllm=trtllm, prove=True)


def check(result: NewResult) -> None:
    assert result.passed, [c.to_json() for c in result.checks if c.status == "failed"]
    names = {item.name for item in result.checks if item.status == "passed"}
    assert {"load", "parity fp32 decode", "parity fp32 chunked prefill"} <= names
    assert {"parallel TP 2", "parallel PP 2", "meta initialisation", "LoRA threading"} <= names


@pytest.mark.slow
def test_longrope_without_a_query_latent_on_1_4_alone(tmp_path: Path) -> None:
    given = {"q_lora_rank": None, "rope_parameters": LONGROPE}
    with pytest.raises(Refused, match="attention.latent_scaling: 'longrope'"):
        make(tmp_path, "1.2", "MiniCPM3ForCausalLM", "minicpm3", **given)
    (tmp_path / "source" / "config.json").unlink()
    (tmp_path / "source").rmdir()
    check(make(tmp_path, "1.4", "MiniCPM3ForCausalLM", "minicpm3", **given))


@pytest.mark.slow
def test_latents_beside_layers_of_experts(tmp_path: Path) -> None:
    experts = {
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 112,
        "routed_scaling_factor": 1.7,
    }
    given = {"rope_parameters": YARN, **experts}
    result = make(tmp_path, "1.2", "DeepseekV3ForCausalLM", "deepseek_v3", **given)
    check(result)
    names = {item.name for item in result.checks if item.status == "passed"}
    assert {"parallel EP 2", "parallel attention DP 2"} <= names


#: File of the port, what stands there, and the mistake.
FAULTS = (
    ("weights_youtu.py", "for second in (0, 1)]", "for second in (1, 0)]"),
    ("weights_youtu.py", "mine.transpose(1, 2)", "mine.flip(0).transpose(1, 2)"),
    ("modeling_youtu.py", "self.kv_a_layernorm.variance_epsilon = 1e-06", "pass"),
    ("configuration_youtu.py", '("mscale", "mscale_all_dim")', '("mscale",)'),
)


@pytest.mark.slow
def test_yarn_is_proven_and_faults_are_found(tmp_path: Path) -> None:
    given = {"rope_interleave": False, "rope_parameters": YARN}
    result = make(tmp_path, "1.2", "YoutuForCausalLM", "youtu", **given)
    check(result)
    for name, right, wrong in FAULTS:
        path = result.port / "youtu_trtllm" / name
        text = path.read_text()
        assert text.count(right) == 1, right
        path.write_text(text.replace(right, wrong))
        report = prove_port(result.port, tp=(1,), dtype="float32", runtime="standin")
        path.write_text(text)
        failed = {item.name for item in report.checks if item.status == "failed"}
        assert any(item.startswith("parity fp32") for item in failed), (wrong, failed)
