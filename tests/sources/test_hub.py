"""Models on the hub, against a hub on loopback: what is fetched, what is refused, what leaks."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys

import pytest
from hub_server import COMMIT

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.hub import check_hub_id

_LOAD = """
import json, sys
from trtllm_scaffold.errors import ScaffoldError
from trtllm_scaffold.sources import load_sources
try:
    found = load_sources(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
except ScaffoldError as error:
    print(json.dumps({"code": error.exit_code, "message": str(error)}))
else:
    tensors = found.header and {n: [i.dtype, i.shape] for n, i in found.header.tensors.items()}
    print(json.dumps({"where": found.where, "commit": found.commit, "tensors": tensors,
                      "hidden_size": found.raw["hidden_size"], "quant": found.quant}))
"""


@pytest.fixture
def load(hub, tmp_path):
    """Load a model in a process of its own, with a hub and a cache of its own."""

    def run(*arguments, **env):
        keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        base = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(
            [sys.executable, "-c", _LOAD, *arguments],
            capture_output=True,
            text=True,
            env=keep | base | env,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert env.get("HF_TOKEN", "hf_right_token") not in done.stdout + done.stderr
        return json.loads(done.stdout)

    return run


def safetensors(shape=(4, 2)):
    size = 4 * shape[0] * shape[1]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": {"format": "pt"}, "w": entry}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(size)


def test_fetches_the_small_files_and_only_the_header_of_the_weights(hub, load, llama):
    weights = safetensors((64, 1024))
    quant = {"quantization": {"quant_algo": "FP8"}}
    files = {
        "config.json": json.dumps(llama).encode(),
        "hf_quant_config.json": json.dumps(quant).encode(),
        "model.safetensors": weights,
        "tokenizer.json": b"{}",
        "modeling_x.py": b"raise SystemExit",
    }
    hub.add("org/model", files)
    found = load("org/model")
    assert found == {
        "where": f"org/model@{COMMIT}: config.json",
        "commit": COMMIT,
        "hidden_size": 64,
        "quant": quant,
        "tensors": {"w": ["F32", [64, 1024]]},
    }
    wanted = {"config.json", "hf_quant_config.json", "model.safetensors bytes=0-100000"}
    assert set(hub.fetched()) == wanted
    assert load("org/model", HF_HUB_OFFLINE="1") == found | {"tensors": None}


def test_a_long_header_takes_a_second_request(hub, load, llama):
    entries, stop = {}, 0
    for number in range(2000):
        entries[f"model.layers.{number}.weight"] = {
            "dtype": "U8",
            "shape": [1],
            "data_offsets": [stop, stop + 1],
        }
        stop += 1
    text = json.dumps(entries).encode()
    assert len(text) > 100_001
    weights = struct.pack("<Q", len(text)) + text + bytes(stop)
    hub.add("m", {"config.json": json.dumps(llama).encode(), "model.safetensors": weights})
    assert len(load("m")["tensors"]) == 2000
    assert f"model.safetensors bytes=8-{len(text) + 7}" in hub.fetched()


def test_an_index_gives_names_without_touching_the_weights(hub, load, llama):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {
        "config.json": json.dumps(llama).encode(),
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": safetensors(),
    }
    hub.add("org/model", files)
    assert load("org/model", "main")["tensors"] == {"a": [None, None], "b": [None, None]}
    assert set(hub.fetched()) == {"config.json", "model.safetensors.index.json"}


def test_bare_names_are_models_too(hub, load, llama):
    hub.add("gpt2", {"config.json": json.dumps(llama).encode()})
    assert load("gpt2")["tensors"] is None


def test_the_token_opens_gated_models(hub, load, llama):
    hub.add("org/gated", {"config.json": json.dumps(llama).encode()}, gated=True)
    for env in ({}, {"HF_TOKEN": "hf_wrong_token"}):
        refused = load("org/gated", **env)
        assert refused["code"] == 3
        assert "the model is gated" in refused["message"] and "HF_TOKEN" in refused["message"]
    assert load("org/gated", HF_TOKEN="hf_right_token")["hidden_size"] == 64


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["org/none"], 3, "no such model on the hub (read from org/none)"),
        (["org/model", "v9"], 3, "the model has no such revision (read from org/model@v9)"),
        (["org/empty"], 3, "org/empty has no config.json"),
        (["org/huge"], 3, "config.json has 1048577 bytes, more than the 1048576"),
        (["org/broken"], 3, "not JSON"),
        (["org/weights"], 3, "'w' has no valid data_offsets"),
        (["org/model", "../x"], 3, "'../x' is not a revision"),
        (["org/model", "-x"], 3, "'-x' is not a revision"),
        (["a/b/c"], 3, "no such file"),
        (["../org"], 3, "no such file"),
        (["a--b"], 3, "'a--b' is not a model's id"),
        (["missing.json"], 3, "no such file"),
    ],
)
def test_refusals(hub, load, llama, arguments, code, message):
    config = json.dumps(llama).encode()
    hub.add("org/model", {"config.json": config})
    hub.add("org/empty", {"README.md": b""})
    hub.add("org/huge", {"config.json": config}).claimed_sizes["config.json"] = 1048577
    hub.add("org/broken", {"config.json": b"{"})
    bad = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[9,5]}}'
    weights = struct.pack("<Q", len(bad)) + bad
    hub.add("org/weights", {"config.json": config, "model.safetensors": weights})
    found = load(*arguments)
    assert found["code"] == code
    assert message in found["message"]
    assert "\n" not in found["message"]


def test_trouble_with_the_network_is_the_environments(hub, load, llama):
    hub.add("org/model", {"config.json": json.dumps(llama).encode()})
    gone = load("org/model", HF_ENDPOINT="http://user:secret@127.0.0.1:9")
    assert gone["code"] == 5 and "the hub cannot be reached" in gone["message"]
    assert "secret" not in gone["message"]
    offline = load("org/model", HF_HUB_OFFLINE="1")
    assert offline["code"] == 5 and "HF_HUB_OFFLINE is set" in offline["message"]
    hub.status = 418
    odd = load("org/model")
    assert odd["code"] == 5 and "HTTP status 418" in odd["message"]


@pytest.mark.parametrize("good", ["gpt2", "Qwen/Qwen3-0.6B", "a.b/c_d", "0/1"])
def test_ids_as_the_hub_spells_them(good):
    assert check_hub_id(good) == good


@pytest.mark.parametrize(
    "bad",
    ["", "/", "a/", "/a", "a//b", "a/b/c", "..", "a/..", "a/.b", "a..b/c", "a/b.git", "a b", "a\n"]
    + ["a/b?x=1", "a/b#c", "a@b", "https://x/y", "a/" + "b" * 97, "Ａ/b", "a/-b", "a\\b", "a--b"],
)
def test_ids_that_are_refused(bad):
    with pytest.raises(InputError, match="is not a model's id"):
        check_hub_id(bad)
