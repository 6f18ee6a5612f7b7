"""Latent attention to chosen keys, from a configuration to a proven port, and faults in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from latent_sizes import YARN
from sparse_sizes import SHARED, SPARSE

from trtllm_scaffold.pipeline import NewResult, new_port
from trtllm_scaffold.sources import load_path
from trtllm_scaffold.verify.prove import prove_port
from trtllm_scaffold.zoo.entries import load_entries

#: Few layers; YaRN's two magnitudes differ.
SMALL = {"num_hidden_layers": 2, "mlp_layer_types": ["dense"] * 2, "rope_parameters": YARN}

#: File of the port, what stands there, and the mistake.
FAULTS = (
    # every earlier key is seen, whatever the indexer says
    ("sparse_attention.py", "chosen, False) | later", "chosen, False) & later"),
    # the index queries and keys turn neighbours, as the attention's own do
    ("modeling_deepseek_v32.py", "rotate_halves(", "rotate_pairs("),
    ("modeling_deepseek_v32.py", "min(self.top_k, ", "min(self.top_k + 1, "),
    ("sparse_attention.py", "products.relu()", "products"),
    ("sparse_attention.py", "cache[..., -index_k.shape[-1] :]", "cache[..., : index_k.shape[-1]]"),
)

#: The same for layers of two sizes, half of which have a window and choose no keys.
UNEVEN_FAULTS = (
    ("sparse_attention.py", "positions <= positions[past:", "positions < positions[past:"),
    # rows of the cache without room for index keys, which then lie over rotated keys
    ("configuration_uneven.py", "+ config.index_head_dim * (", "+ 0 * ("),
    ("modeling_uneven.py", "k_rope = self.k_rope_layernorm(k_rope)", "k_rope = k_rope.clone()"),
)


def make(folder: Path, name: str, model_type: str, **given: Any) -> NewResult:
    source = folder / "source" / "config.json"
    source.parent.mkdir()
    plain = {"architectures": [f"{name}ForCausalLM"], "model_type": model_type}
    source.write_text(json.dumps({**plain, **given}))
    return new_port(load_path(source), folder / "port", trtllm="1.2", prove=True)


def check(result: NewResult) -> None:
    assert result.passed, [c.to_json() for c in result.checks if c.status == "failed"]
    passed = {item.name: item.measured for item in result.checks if item.status == "passed"}
    assert {"load", "parity fp32 decode", "parity fp32 chunked prefill", "parity bf16"} <= set(
        passed
    )
    assert {"parallel TP 2", "parallel PP 2", "meta initialisation"} <= set(passed)
    tiny = json.loads((result.port / "tests/configs/odd.json").read_text())
    longest = passed["parity fp32 prefill"]["longest_sequence"]
    assert longest >= 4 * tiny["index_topk"], "sequences must be well beyond what is chosen"
    assert result.support.level.name == "reference"


def faulty(result: NewResult, name: str, right: str, wrong: str) -> set[str]:
    """Names of the checks that fail with the mistake."""
    path = result.port / result.package / name
    text = path.read_text()
    assert right in text, right
    path.write_text(text.replace(right, wrong))
    report = prove_port(result.port, tp=(1,), dtype="float32", runtime="standin")
    path.write_text(text)
    return {item.name for item in report.checks if item.status == "failed"}


@pytest.mark.slow
def test_an_indexer_is_proven_and_faults_in_it_are_found(tmp_path: Path) -> None:
    result = make(tmp_path, "DeepseekV32", "deepseek_v32", **{**SPARSE, **SMALL})
    check(result)
    for fault in FAULTS:
        failed = faulty(result, *fault)
        assert any(item.startswith("parity fp32") for item in failed), (fault, failed)


@pytest.mark.slow
def test_layers_without_an_indexer_share_a_choice(tmp_path: Path) -> None:
    result = make(tmp_path, "GlmMoeDsa", "glm_moe_dsa", **SHARED)
    check(result)
    right = "choice = layer.self_attn.choice if layer.self_attn.indexer else choice"
    wrong = right.replace("else choice", "else self.layers[0].self_attn.choice")
    failed = faulty(result, "modeling_glm_moe_dsa.py", right, wrong)
    assert any(item.startswith("parity fp32") for item in failed), failed


@pytest.mark.slow
def test_faults_in_layers_of_two_sizes_are_found(tmp_path: Path) -> None:
    entry = next(item for item in load_entries() if item.name == "dots3_note_text")
    source = tmp_path / "config.json"
    named = {"architectures": [entry.architecture], "model_type": entry.model_type}
    source.write_text(json.dumps({**entry.overrides, **named}))
    result = new_port(load_path(source), tmp_path / "port", name="uneven", prove=False)
    assert not faulty(result, "modeling_uneven.py", "self.window = ", "self.window = ")
    for fault in UNEVEN_FAULTS:
        failed = faulty(result, *fault)
        assert any(item.startswith("parity fp32") for item in failed), (fault, failed)


#: The same of a model whose norms, and whose attention, are gated from what they compute.
GATED_FAULTS = (
    ("torch.cat([q_latent, raw_latent]", "torch.cat([raw_latent, q_latent]"),
    ("output * torch.sigmoid(gate.float())", "output * torch.sigmoid(gate.float().roll(1, -1))"),
    ("F.silu(self.down(normed))", "F.gelu(self.down(normed))"),
)


@pytest.mark.slow
def test_gated_norms_and_a_gate_beside_queries(tmp_path: Path) -> None:
    layers = {"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"]}
    groups = {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
    sizes = {**{k: v for k, v in SPARSE.items() if k not in layers}, **layers, **groups}
    result = make(tmp_path, "AXK2", "axk2", **sizes, gated_norm_rank=24)
    check(result)
    for right, wrong in GATED_FAULTS:
        failed = faulty(result, "modeling_axk2.py", right, wrong)
        assert any(item.startswith("parity fp32") for item in failed), (right, failed)
