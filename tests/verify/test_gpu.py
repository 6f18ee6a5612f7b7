from __future__ import annotations

import faults
import pytest
import torch

from trtllm_scaffold.verify.prove import prove_port

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("generation", ["1.2", "1.4"])
def test_the_sample_port_is_proven_on_a_gpu(generation):
    proof = prove_port(faults.SAMPLE, runtime="standin", trtllm=generation, device="cuda")
    assert proof.passed, [check.reason for check in proof.checks if check.status == "failed"]
    assert all(check.status == "passed" for check in proof.checks)
    checks = {check.name: check for check in proof.checks}
    assert checks["CUDA graph"].measured["replays"] == 16


def test_a_captured_constant_is_caught(tmp_path, pool):
    port = faults.copy_sample(tmp_path)
    faults.edit(
        port / faults.MODELING,
        "        hidden_states, residual = inputs_embeds, None",
        "        if torch.cuda.is_current_stream_capturing():\n"
        "            inputs_embeds = torch.ones_like(inputs_embeds)\n"
        "        hidden_states, residual = inputs_embeds, None",
    )
    proof = prove_port(port, runtime="standin", device="cuda", pool=pool)
    failed = {check.name: check.reason for check in proof.checks if check.status == "failed"}
    assert list(failed) == ["CUDA graph"]
    assert "captured as a constant" in failed["CUDA graph"]
