"""Ports whose layers differ in heads, or whose values are narrow: proven, and faults caught."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from trtllm_scaffold.pipeline import new_port
from trtllm_scaffold.sources import load_path
from trtllm_scaffold.verify.load import check_load
from trtllm_scaffold.verify.parity import check_scenario, make_case
from trtllm_scaffold.verify.port_files import read_port
from trtllm_scaffold.verify.port_module import forget_port, import_port
from trtllm_scaffold.verify.runtime import start_runtime

SLIDING = ["full_attention", *["sliding_attention"] * 3]
LAGUNA = {
    "num_hidden_layers": 8,
    "layer_types": SLIDING * 2,
    "num_attention_heads_per_layer": [48, 64, 64, 64] * 2,
    "moe_routed_scaling_factor": 2.5,
    "rope_parameters": {
        "full_attention": {
            "rope_type": "yarn",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 64.0,
            "attention_factor": 1.1,
            "partial_rotary_factor": 0.5,
        },
        "sliding_attention": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
        },
    },
}
MIMO = {"num_hidden_layers": 7, "attention_value_scale": 0.707}


def source(folder: Path, model_type: str, architecture: str, keys: dict):
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **keys).to_dict()
    path = folder / "config.json"
    named = {"architectures": [architecture], "model_type": model_type}
    path.write_text(json.dumps({**config, **named}, default=str))
    return load_path(path)


@pytest.mark.slow
def test_query_heads_by_layer_become_a_proven_port(tmp_path: Path) -> None:
    # Beside the heads: yarn over half of each head in some layers, all of it rotated in others.
    found = source(tmp_path, "laguna", "LagunaForCausalLM", LAGUNA)
    result = new_port(found, tmp_path / "port", trtllm="1.4")
    failed = [check.to_json() for check in result.checks if check.status == "failed"]
    assert result.passed, failed

    answers = tmp_path / "port" / ".copier-answers.yml"
    text = answers.read_text()
    before, behind = text.split("layer_heads:\n- 48\n- 64\n")
    answers.write_text(f"{before}layer_heads:\n- 64\n- 64\n{behind}")
    check = check_load(read_port(tmp_path / "port"))
    assert check.status == "failed"
    assert "layers.0.self_attn.q_proj.weight becomes [6144, 2048]" in check.reason


@pytest.fixture(scope="module")
def port(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mimo")
    found = source(folder, "mimo_v2_flash", "MiMoV2FlashForCausalLM", MIMO)
    return new_port(found, folder / "port", prove=False).port


def prefill(port: Path):
    """The check of one forward over whole sequences, on one configuration."""
    start_runtime("standin", "1.2")
    files = read_port(port)
    import_port(files.package)
    try:
        with make_case(files.tiny_configs[1], files.package) as case:
            case.backends = ("TRTLLM",)
            return check_scenario([case], "prefill")
    finally:
        forget_port(files.package)


def test_narrow_values_and_key_value_heads_by_layer(port: Path) -> None:
    config = json.loads(read_port(port).tiny_configs[1].read_text())
    assert config["v_head_dim"] < config["head_dim"] and config["num_key_value_heads"] > 1
    assert prefill(port).status == "passed" and check_load(read_port(port)).status == "passed"


@pytest.mark.parametrize(
    ("file", "old", "new", "says"),
    [
        ("modeling", "attention_sinks=self.sinks", "attention_sinks=None", "layers.1.self_attn"),
        ("modeling", "inputs[0] * self.value_scale", "inputs[0]", "layers.0.self_attn"),
        ("weights", "heads.repeat_interleave(wanted // num_heads, dim=0)",
         "heads.repeat(wanted // num_heads, *[1] * (heads.dim() - 1))", "layers.0.self_attn"),
        ("weights", 'widen_values(parts[0]["weight"], 1, config)',
         'widen_values(parts[0]["weight"].flip(1), 1, config).flip(1)', "layers.0.self_attn"),
        ("configuration", "2 * config.num_key_value_heads", "config.num_key_value_heads",
         "the parameter has shape"),
    ],
)  # fmt: skip
def test_a_wrong_arrangement_is_caught(port: Path, tmp_path: Path, file, old, new, says) -> None:
    copy = shutil.copytree(port, tmp_path / "port")
    (path,) = copy.glob(f"mimo*/{file}_*.py")
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    check = prefill(copy)
    assert check.status == "failed" and says in check.reason
