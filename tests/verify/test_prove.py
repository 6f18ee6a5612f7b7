from __future__ import annotations

import json
import subprocess
import sys

import faults
import pytest

from trtllm_scaffold.errors import EnvironmentProblem, InputError, UsageError
from trtllm_scaffold.verify.prove import prove_port

PARITY = [f"parity fp32 {name}" for name in ("prefill", "decode", "mixed batch", "chunked prefill")]
NAMES = [
    "load",
    "registration",
    *PARITY,
    "parity bf16",
    "meta initialisation",
    "LoRA threading",
    "CUDA graph",
    "parallel TP 2",
    "parallel PP 2",
]


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module", params=["1.2", "1.4"])
def report(request, pools, told):
    from trtllm_scaffold.verify.pool import WorkerPool

    pools.setdefault(3, WorkerPool(3))
    return request.param, prove_port(
        faults.SAMPLE,
        runtime="standin",
        trtllm=request.param,
        pool=pools[3],
        progress=told.append,
    )


def test_the_sample_port_is_proven(report):
    generation, proof = report
    assert [check.name for check in proof.checks] == [f"contract {generation}", *NAMES]
    skipped = [check for check in proof.checks if check.status == "skipped"]
    assert [check.name for check in skipped] == ["CUDA graph"] and skipped[0].reason
    assert proof.passed, [check.reason for check in proof.checks if check.status == "failed"]
    assert proof.runtime["name"] == "standin"
    assert proof.runtime["version"].endswith("+standin")


def test_the_report_is_the_documented_json(report):
    _, proof = report
    document = json.loads(json.dumps(proof.to_json(), allow_nan=False))
    assert set(document) == {"port", "runtime", "device", "reference", "checks", "passed"}
    assert set(document["reference"]) >= {"transformers", "torch"}
    for check in document["checks"]:
        assert set(check) == {"name", "status", "measured", "bound", "reason"}


def test_parity_reaches_past_the_window_in_both_backends(report):
    _, proof = report
    checks = {check.name: check for check in proof.checks}
    for name in PARITY:
        measured = checks[name].measured
        assert measured["longest_sequence"] > 2 * 6
        assert len(measured["by_run"]) == 4
        assert 0 < measured["relative_error"] <= 1e-4
    assert checks["parity fp32 decode"].measured["positions"] == 8 * 4


def test_splitting_covers_fewer_heads_than_ranks_and_tied_embeddings(report):
    _, proof = report
    checks = {check.name: check for check in proof.checks}
    for name in ("parallel TP 2", "parallel PP 2"):
        assert set(checks[name].measured["by_config"]) == {"tiny.json", "tiny_mqa_tied.json"}


def test_layers_are_compared_for_the_plot(report):
    _, proof = report
    assert len(proof.layers) == 2
    for layers in proof.layers:
        assert layers.stages[0] == "model.embed_tokens" and layers.stages[-1] == "logits"
        assert "model.layers.1.post_attention_layernorm" in layers.stages
        assert max(layers.errors) <= layers.bound


def test_progress_is_told(report, told):
    assert "parallel PP 2" in told


@pytest.mark.parametrize("fault", faults.DYNAMIC, ids=lambda fault: fault.name)
def test_a_fault_is_caught_and_located(fault, tmp_path, pool):
    dtype = "both" if "bf16" in fault.caught_by else "float32"
    proof = prove_port(faults.seed(fault, tmp_path), runtime="standin", pool=pool, dtype=dtype)
    failed = {check.name: check.reason for check in proof.checks if check.status == "failed"}
    assert not proof.passed
    assert fault.caught_by in failed, failed
    assert fault.says in failed[fault.caught_by]
    assert not any("Traceback" in reason or "\n" in reason for reason in failed.values())


def test_heads_that_do_not_split_are_skipped_with_its_reason(pools):
    from trtllm_scaffold.verify.parallel import check_parallel, jobs_for
    from trtllm_scaffold.verify.parity import make_case
    from trtllm_scaffold.verify.port_module import import_port
    from trtllm_scaffold.verify.runtime import start_runtime
    from trtllm_scaffold.verify.split import Split

    start_runtime("standin", "1.2")
    package = faults.SAMPLE / "mistral_port"
    import_port(package)
    with make_case(faults.SAMPLE / "tests/configs/tiny.json", package) as case:
        jobs = jobs_for([case], "standin", "1.2")
        check = check_parallel(None, jobs, Split(tp_size=8))
        assert check.status == "skipped" and "4 heads cannot be split 8 ways" in check.reason


def test_tensor_parallel_4_repeats_key_value_heads(pools):
    from trtllm_scaffold.verify.pool import WorkerPool

    pools[5] = WorkerPool(5)
    proof = prove_port(faults.SAMPLE, runtime="standin", pool=pools[5], tp=(4,), dtype="float32")
    checks = {check.name: check for check in proof.checks}
    assert checks["parallel TP 4"].status == "passed", checks["parallel TP 4"].reason
    assert checks["parity bf16"].status == "skipped"


def test_a_port_without_tiny_configurations_fails(tmp_path, pool):
    port = faults.copy_sample(tmp_path)
    for path in (port / "tests/configs").glob("*.json"):
        path.unlink()
    proof = prove_port(port, runtime="standin", pool=pool)
    assert not proof.passed
    assert "tests/configs" in proof.checks[-1].reason


def test_a_tiny_configuration_too_short_for_a_proof_fails(tmp_path, pool):
    port = faults.copy_sample(tmp_path)
    faults.edit_json(port / "tests/configs/tiny.json", max_position_embeddings=12)
    proof = prove_port(port, runtime="standin", pool=pool, dtype="float32")
    assert not proof.passed
    assert "max_position_embeddings 12 is too short" in proof.checks[-1].reason


@pytest.mark.parametrize(
    ("text", "error"),
    [("[]", InputError), ("{", InputError), ('{"model_type": "nothing"}', EnvironmentProblem)],
)
def test_a_broken_tiny_configuration_is_one_clear_error(text, error, tmp_path, pool):
    port = faults.copy_sample(tmp_path)
    (port / "tests/configs/tiny.json").write_text(text)
    if error is InputError:
        proof = prove_port(port, runtime="standin", pool=pool)
        failed = [check for check in proof.checks if check.status == "failed"]
        assert "tiny.json" in failed[-1].reason
    else:
        with pytest.raises(error, match="nothing"):
            prove_port(port, runtime="standin", pool=pool)


def test_options_that_make_no_sense():
    with pytest.raises(InputError, match="no folder"):
        prove_port(faults.SAMPLE / "absent")
    with pytest.raises(InputError, match="float8"):
        prove_port(faults.SAMPLE, dtype="float8")
    with pytest.raises(UsageError, match="2.0"):
        prove_port(faults.SAMPLE, trtllm="2.0")
    with pytest.raises(InputError, match="_trtllm.py"):
        prove_port(faults.SAMPLE.parent)


def test_the_real_runtime_is_asked_for_but_absent(pool):
    with pytest.raises(EnvironmentProblem, match="not installed"):
        prove_port(faults.SAMPLE, runtime="tensorrt_llm", pool=pool)


@pytest.mark.slow
def test_a_script_without_a_main_guard_can_prove(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from trtllm_scaffold.verify.prove import prove_port\n"
        f"proof = prove_port(Path({str(faults.SAMPLE)!r}), runtime='standin', dtype='float32')\n"
        "print(proof.passed)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr
    assert done.stderr == ""
