"""Blocks of keys chosen by the tokens, and bounds in feed-forwards: proof and faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from zoo_specs import ENTRIES

from trtllm_scaffold.pipeline import new_port
from trtllm_scaffold.sources import load_path
from trtllm_scaffold.verify.prove import prove_port

pytest.importorskip("transformers.models.minimax_m3_vl")

#: File of the port, what stands there, and the mistake.
FAULTS = (
    ("modeling", "min(self.top_k, scores.shape[-1])", "min(self.top_k + 1, scores.shape[-1])"),
    ("modeling", "device=q.device) // group", "device=q.device) % self.indexer.num_heads"),
    ("reference", "kv_heads : kv_heads + 1", "kv_heads - 1 : kv_heads"),
)


@pytest.mark.slow
def test_the_port_is_proven_and_faults_are_found(tmp_path: Path) -> None:
    plain = {"architectures": ["MiniMaxM3VLForCausalLM"], "model_type": "minimax_m3_vl_text"}
    source = tmp_path / "config.json"
    source.write_text(json.dumps({**plain, **ENTRIES["minimax_m3_vl_text"].overrides}))
    result = new_port(load_path(source), tmp_path / "port", trtllm="1.4", prove=True)
    assert result.passed, [c.to_json() for c in result.checks if c.status == "failed"]
    for name, right, wrong in FAULTS:
        (path,) = result.port.glob(f"*/{name}_*.py")
        text = path.read_text()
        assert text.count(right) == 1, right
        path.write_text(text.replace(right, wrong))
        report = prove_port(result.port, tp=(1,), dtype="float32", runtime="standin")
        path.write_text(text)
        failed = {item.name for item in report.checks if item.status == "failed"}
        assert any(item.startswith("parity fp32") for item in failed), (wrong, failed)
