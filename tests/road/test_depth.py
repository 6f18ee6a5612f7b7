"""Residuals mixed by depth, growing queries and a bias per head of the gate: proof and faults."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from zoo_specs import ENTRIES

from trtllm_scaffold import standin
from trtllm_scaffold.pipeline import NewResult, new_port
from trtllm_scaffold.sources import load_path
from trtllm_scaffold.verify.port_module import forget_port, import_port
from trtllm_scaffold.verify.prove import prove_port

beam = pytest.importorskip("transformers.models.beam.modeling_beam")

#: What stands in the modeling file, and the mistake.
FAULTS = (
    ("gate + self.gate_bias[:, None]", "gate"),
    ("self.mlp_residual = (1 - 1 / (2 * layer_idx + 3))", "self.mlp_residual = (1 - 1 / 3)"),
    ("if not self.has_rope:", "if False:"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> NewResult:
    folder = tmp_path_factory.mktemp("depth")
    source = folder / "config.json"
    plain = {"architectures": ["BeamForCausalLM"], "model_type": "beam"}
    source.write_text(json.dumps({**plain, **ENTRIES["beam"].overrides}))
    return new_port(load_path(source), folder / "port", trtllm="1.2", prove=True)


@pytest.mark.slow
def test_the_port_is_proven_and_faults_are_found(made: NewResult) -> None:
    assert made.passed, [c.to_json() for c in made.checks if c.status == "failed"]
    path = made.port / "beam_trtllm" / "modeling_beam.py"
    text = path.read_text()
    for right, wrong in FAULTS:
        assert text.count(right) == 1, right
        path.write_text(text.replace(right, wrong))
        report = prove_port(made.port, tp=(1,), dtype="float32", runtime="standin")
        path.write_text(text)
        failed = {item.name for item in report.checks if item.status == "failed"}
        assert any(item.startswith("parity fp32") for item in failed), (wrong, failed)


@pytest.mark.slow
def test_queries_grow_as_hfs_far_beyond_the_lengths_of_the_proof(made: NewResult) -> None:
    standin.install("1.2")
    try:
        package = made.port / "beam_trtllm"
        import_port(package)
        modeling = importlib.import_module("beam_trtllm.modeling_beam")
        config = beam.BeamConfig(**ENTRIES["beam"].overrides)
        modeling.canonicalize(config)
        config.torch_dtype = torch.float32
        bare = config.layer_types.index("full_attention")
        port = modeling.BeamAttention(modeling.ModelConfig(pretrained_config=config), bare)
        forget_port(package)
    finally:
        standin.uninstall()
    torch.manual_seed(0)
    weight = torch.rand(config.head_dim) + 0.5
    port.q_norm.weight.data.copy_(weight)
    port.k_norm.weight.data.fill_(1.0)
    positions = torch.tensor([0, 1, 2047, 2048, 9000, 131_071])
    heads, width = config.num_attention_heads, config.head_dim
    rows = (heads + 2 * config.num_key_value_heads) * width
    fused = torch.randn(len(positions), rows)
    found, _, _ = port.apply_rope(fused, None, None, positions[None])

    norm = beam.BeamRMSNorm(width, config.rms_norm_eps)
    norm.weight.data.copy_(weight)
    normed = norm(fused[:, : heads * width].view(1, len(positions), heads, width))
    scaling = beam.compute_attention_scaling(positions[None])  # [1, 1, positions, 1]
    expected = (normed.transpose(1, 2) * scaling).transpose(1, 2).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-6)
    assert float(scaling.amax()) > 1.4
