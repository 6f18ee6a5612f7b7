from __future__ import annotations

import json
import subprocess
import sys

import faults
import numpy as np
import pytest
from safetensors.numpy import save_file

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.verify.expected import (
    Parameter,
    expected_parameters,
    obstacle,
    read_sizes,
    shard,
    small_sizes,
    tiling_problems,
)
from trtllm_scaffold.verify.load import check_load
from trtllm_scaffold.verify.port_files import read_port

LOAD = [fault for fault in faults.STATIC if fault.caught_by == "load"]


def test_the_sample_port_loads():
    check = check_load(read_port(faults.SAMPLE))
    assert check.status == "passed", check.reason
    assert check.measured["stored_tensors"] == check.measured["parameters"] == 3 + 9 * 22
    assert check.measured["largest_tp"] == 8


@pytest.mark.parametrize("fault", LOAD, ids=lambda fault: fault.name)
def test_a_fault_is_caught_and_named(fault, tmp_path):
    check = check_load(read_port(faults.seed(fault, tmp_path)))
    assert check.status == "failed"
    assert fault.says in check.reason
    assert len(check.reason) < 1000, "one line per problem, not per layer"


def test_what_the_checkpoint_stores_beyond_the_table(tmp_path):
    port = faults.copy_sample(tmp_path)
    path = port / "checkpoint.json"
    tensors = json.loads(path.read_text())["tensors"]
    extra = {"name": "model.layers.{i}.self_attn.sink", "shape": [32], "layers": 22}
    faults.edit_json(path, tensors=[*tensors, extra])
    check = check_load(read_port(port))
    assert "sink, which is neither in WEIGHTS nor in DROPPED" in check.reason


def test_a_dropped_tensor_needs_no_parameter(tmp_path):
    port = faults.copy_sample(tmp_path)
    path = port / "checkpoint.json"
    tensors = json.loads(path.read_text())["tensors"]
    dropped = {
        "name": "model.layers.{i}.self_attn.rotary_emb.inv_freq",
        "shape": [32],
        "layers": 22,
    }
    faults.edit_json(path, tensors=[*tensors, dropped])
    check = check_load(read_port(port))
    assert check.status == "passed", check.reason


QKV = (
    "model.layers.{i}.self_attn.q_proj.weight",
    "model.layers.{i}.self_attn.k_proj.weight",
    "model.layers.{i}.self_attn.v_proj.weight",
)
SPLITS = {
    "rows": """
    rest = tensor.shape[1:]
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    return tensor[:q], tensor[q : q + kv], tensor[q + kv :]
""",
    "transposed rows": """
    tensor = tensor.T
    q = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    return tensor[:q], tensor[q : q + kv], tensor[q + kv :]
""",
    "per group": """
    rest = tensor.shape[1:]
    groups = tensor.reshape(config.num_key_value_heads, -1, config.head_dim, *rest)
    q, k, v = groups[:, :-2], groups[:, -2], groups[:, -1]
    return q.reshape(-1, *rest), k.reshape(-1, *rest), v.reshape(-1, *rest)
""",
}


def fuse(port, layout, body):
    """Make the sample port read one fused tensor per layer instead of q, k and v."""
    weights = port / faults.WEIGHTS
    for name in QKV:
        faults.edit(weights, f'    "{name}": ("{name}",),\n', "")
    faults.edit(
        weights,
        "    return (tensor,)",
        f"    if 'qkv' not in name:\n        return (tensor,){body}",
    )
    row = f'    "model.layers.{{i}}.self_attn.qkv.weight": {QKV!r},\n    "model.norm.weight"'
    faults.edit(weights, '    "model.norm.weight"', row)
    path = port / "checkpoint.json"
    tensors = [item for item in json.loads(path.read_text())["tensors"] if item["name"] not in QKV]
    shape = [2048 + 2 * 256, 2048]
    fused = {
        "name": "model.layers.{i}.self_attn.qkv.weight",
        "shape": shape[::-1] if "transposed" in layout else shape,
        "layers": 22,
    }
    faults.edit_json(path, tensors=[*tensors, fused])
    return read_port(port)


@pytest.mark.parametrize("layout", SPLITS)
def test_fused_tensors_are_followed_element_by_element(layout, tmp_path):
    port = fuse(faults.copy_sample(tmp_path), layout, SPLITS[layout])
    check = check_load(port)
    assert check.status == "passed", check.reason


def test_a_split_that_loses_rows_is_caught(tmp_path):
    body = SPLITS["rows"].replace("tensor[q + kv :]", "tensor[q : q + kv]")
    check = check_load(fuse(faults.copy_sample(tmp_path), "rows", body))
    assert "reach no parameter" in check.reason and "used twice" in check.reason


def test_a_stored_shape_that_fits_no_layout(tmp_path):
    port = faults.copy_sample(tmp_path)
    path = port / "checkpoint.json"
    tensors = json.loads(path.read_text())["tensors"]
    tensors[0]["shape"] = [32001, 2048]
    faults.edit_json(path, tensors=tensors)
    reason = check_load(read_port(port)).reason
    assert "[32001, 2048]" in reason and "[32000, 2048]" in reason


def test_headers_of_a_real_checkpoint(tmp_path):
    port = read_port(faults.SAMPLE)
    sizes = {**read_sizes(port.answers), "num_hidden_layers": 2, "vocab_size": 11}
    tensors = {
        name.replace("{i}", str(layer)): np.zeros(item.shape, dtype=np.float16)
        for name, item in expected_parameters(port.answers, sizes).items()
        for layer in range(2 if "{i}" in name else 1)
    }
    save_file(tensors, tmp_path / "model.safetensors")
    check = check_load(port, tmp_path, sizes)
    assert check.status == "passed", check.reason
    assert check.measured["source"] == "checkpoint headers"
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    check = check_load(port, tmp_path, sizes)
    assert "leaves model.layers.1.mlp.down_proj.weight unfilled" in check.reason


def test_a_folder_without_weights_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no safetensors"):
        check_load(read_port(faults.SAMPLE), tmp_path)


@pytest.mark.parametrize("value", ["0", "-1", "true", "x", "99999999999999999999", "1.5", "null"])
def test_a_hostile_size_is_an_input_error(value, tmp_path):
    port = faults.copy_sample(tmp_path)
    faults.edit(port / ".copier-answers.yml", "head_dim: 64", f"head_dim: {value}")
    with pytest.raises(InputError, match="head_dim"):
        check_load(read_port(port))


@pytest.mark.parametrize("tp_size", [1, 2, 4, 8])
def test_shards_tile(tp_size):
    answers = read_port(faults.SAMPLE).answers
    parameters = expected_parameters(answers, read_sizes(answers))
    assert obstacle(parameters, tp_size) == ""
    assert tiling_problems(parameters, tp_size) == []


def test_key_value_heads_are_repeated_or_refused():
    few = Parameter((2 * 4, 16), split=0, heads=2)
    slices = [shard(few, 8, rank) for rank in range(8)]
    assert slices == [(0, 4)] * 4 + [(4, 8)] * 4
    names = {"model.layers.{i}.self_attn.k_proj.weight": Parameter((12, 16), split=0, heads=3)}
    assert obstacle(names, 3) == "" and obstacle(names, 6) == ""
    assert "3 heads" in obstacle(names, 4)
    odd = {"model.layers.{i}.mlp.up_proj.weight": Parameter((10, 16), split=0)}
    assert "10" in obstacle(odd, 4)


@pytest.mark.parametrize(("heads", "kv_heads"), [(32, 32), (32, 8), (71, 1)])
def test_small_sizes_keep_what_is_equal(heads, kv_heads):
    real = dict.fromkeys(read_sizes(read_port(faults.SAMPLE).answers), 1) | {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "hidden_size": heads * 64,
        "embedding_size": heads * 64,
        "intermediate_size": 4 * heads * 64,
    }
    small = small_sizes(real)
    assert (small["num_attention_heads"] == small["num_key_value_heads"]) == (heads == kv_heads)
    assert small["hidden_size"] == small["num_attention_heads"] * small["head_dim"]
    assert len({small[name] for name in ("hidden_size", "intermediate_size", "vocab_size")}) == 3


BUDGET = """
import json, sys, time
start = time.perf_counter()
from pathlib import Path
from trtllm_scaffold.verify.check import check_port
checks = check_port(Path(sys.argv[1]), trtllm="all")
assert all(check.status == "passed" for check in checks), [check.reason for check in checks]
heavy = [name for name in ("torch", "transformers", "copier") if name in sys.modules]
status = Path("/proc/self/status").read_text()  # ru_maxrss would remember the parent's
peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
print(json.dumps([time.perf_counter() - start, peak, heavy]))
"""


def test_check_of_a_405b_header_fits_its_budget(tmp_path):
    port = faults.copy_sample(tmp_path)
    sizes = {
        "hidden_size": 16384, "num_hidden_layers": 126, "vocab_size": 128256, "head_dim": 128,
        "num_attention_heads": 128, "num_key_value_heads": 8, "intermediate_size": 53248,
        "embedding_size": 16384,
    }  # fmt: skip
    answers = port / ".copier-answers.yml"
    kept = [line for line in answers.read_text().splitlines() if line.split(":")[0] not in sizes]
    answers.write_text("\n".join([*kept, *(f"{key}: {value}" for key, value in sizes.items())]))
    read = read_port(port)
    tensors = [
        {"name": name, "shape": list(item.shape), "layers": 126 if "{i}" in name else None}
        for name, item in expected_parameters(read.answers, read_sizes(read.answers)).items()
    ]
    faults.edit_json(port / "checkpoint.json", tensors=tensors)
    done = subprocess.run(
        [sys.executable, "-c", BUDGET, str(port)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seconds, peak, heavy = json.loads(done.stdout)
    assert heavy == []
    assert peak <= 200
    assert seconds <= 2
