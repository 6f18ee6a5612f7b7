"""Bad input through the real command line: one line, the right exit code, nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

T5 = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "is_encoder_decoder": True,
    "d_model": 512,
    "d_kv": 64,
    "num_heads": 8,
    "num_layers": 6,
    "vocab_size": 32128,
}


def refused(cli, code, message, *arguments, **env):
    """Run a command line that must be refused, with and without --json."""
    done = cli(*arguments, **env)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert len(errors) == 1 and errors[0].startswith("error: "), done.stderr
    assert message in errors[0]
    assert "Traceback" not in done.stderr
    as_json = cli(*arguments, "--json", **env)
    assert as_json.returncode == code
    error = json.loads(as_json.stdout)["error"]
    assert message in error["message"] + error["where"] + error["hint"]
    assert list(cli.folder.iterdir()) == []
    return error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not JSON"),
        ("[1]", "expected a JSON object, found a list"),
        ('{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "nested deeper than 32 levels"),
        ('{"model_type": "llama"}', "the key 'architectures' is missing"),
        ('{"architectures": ["x; import os"], "model_type": "llama"}', "'x; import os'"),
        ('{"architectures": ["__import__(\'os\')"], "model_type": "llama"}', "class names only"),
        ('{"architectures": ["A"], "model_type": "a/../b"}', "model_type is 'a/../b'"),
    ],
)
def test_malformed_configs(call_cli, write_config, content, message):
    path = write_config(content)
    assert refused(call_cli, 3, message, "new", "port", "--config", path)["kind"] == "input"
    refused(call_cli, 3, message, "inspect", path)


def test_missing_files(run_cli, tmp_path):
    refused(run_cli, 3, "no such file", "new", "port", "--config", tmp_path / "none.json")
    refused(run_cli, 3, "the folder has no config.json", "new", "port", "--config", tmp_path)
    refused(run_cli, 3, "no such file", "inspect", "./none")


def test_heads_that_do_not_divide(run_cli, write_config, llama):
    path = write_config(llama | {"num_attention_heads": 5})
    message = "hidden_size 64 is not divisible by num_attention_heads 5"
    error = refused(run_cli, 3, message, "new", "port", "--config", path)
    assert error["where"] == f"{path}: num_attention_heads"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (T5, "encoder-decoder: is_encoder_decoder is true"),
        ({"architectures": ["ZorkForCausalLM"], "model_type": "zork"}, "zork"),
        (
            {"architectures": ["Z"], "model_type": "zork", "auto_map": {"AutoConfig": "z.Z"}},
            "--trust-remote-code",
        ),
        (
            {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"},
            "Gemma3ForCausalLM",
        ),
    ],
)
def test_families_out_of_reach(call_cli, write_config, config, message):
    path = write_config(config)
    assert refused(call_cli, 4, message, "new", "port", "--config", path)["kind"] == "refused"
    refused(call_cli, 4, message, "inspect", path)


def test_names_that_disagree(call_cli, write_config, llama):
    path = write_config(llama | {"architectures": ["MistralForCausalLM"]})
    refused(call_cli, 3, "is LlamaForCausalLM", "new", "port", "--config", path)


def test_a_destination_that_is_taken(call_cli, write_config, llama, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("keep")
    path = write_config(llama)
    refused(call_cli, 3, "is not empty", "new", taken, "--config", path)
    refused(call_cli, 3, "is not a folder", "new", taken / "mine.txt", "--config", path)
    assert [entry.name for entry in taken.iterdir()] == ["mine.txt"]
    assert (taken / "mine.txt").read_text() == "keep"


@pytest.mark.parametrize(
    "arguments",
    [
        ["new", "port"],
        ["new", "port", "--config", "c", "--hf-id", "a/b"],
        ["new", "port", "--config", "c", "--revision", "main"],
        ["new", "port", "--config", "c", "--trtllm", "2.0"],
        ["new", "port", "--nme", "x"],
        ["new", "port", "more", "--config", "c"],
        ["inspect"],
        ["inspect", "a", "--no-such-option"],
        ["check"],
        ["check", "p", "--trtllm", "x"],
        ["prove", "p", "--tp", "x"],
        ["prove", "p", "--device", "tpu"],
        ["prove", "p", "--runtime", "vllm"],
        ["no-such-command"],
        ["--no-such-option"],
    ],
)
def test_usage_errors(call_cli, arguments):
    assert refused(call_cli, 2, "", *arguments)["kind"] == "usage"


@pytest.mark.parametrize("command", ["check", "prove"])
def test_a_folder_that_is_no_port(call_cli, command, tmp_path):
    refused(call_cli, 3, "", command, tmp_path / "none")
    refused(call_cli, 3, "", command, tmp_path)


@pytest.mark.parametrize("hf_id", ["../../etc", "a/b/c", "a b", "", "https://x/y", "a\x1b[31m/b"])
def test_malformed_hub_ids(run_cli, hf_id):
    refused(run_cli, 3, "is not a model's id", "new", "port", "--hf-id", hf_id)


def test_no_network(run_cli):
    error = refused(run_cli, 5, "the hub cannot be reached", "new", "port", "--hf-id", "org/model")
    assert error["kind"] == "environment"
    refused(run_cli, 5, "HF_HUB_OFFLINE", "inspect", "org/model", HF_HUB_OFFLINE="1")


def test_a_hub_id_goes_the_whole_way(run_cli, hub, llama):
    hub.add("org/zork", {"config.json": json.dumps(llama | {"model_type": "zork"}).encode()})
    arguments = ("new", "port", "--hf-id", "org/zork")
    error = refused(run_cli, 4, "zork", *arguments, HF_ENDPOINT=hub.endpoint)
    assert error["where"].startswith("org/zork@")
    refused(run_cli, 3, "no such model", "inspect", "org/none", HF_ENDPOINT=hub.endpoint)
    wrong = ("inspect", "org/zork", "--revision", "v9")
    refused(run_cli, 3, "no such revision", *wrong, HF_ENDPOINT=hub.endpoint)


def test_a_token_is_never_printed(run_cli, hub, llama):
    hub.add("org/gated", {"config.json": json.dumps(llama).encode()}, gated=True)
    env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "hf_secret_of_mine"}
    done = run_cli("new", "port", "--hf-id", "org/gated", **env)
    assert done.returncode == 3
    assert "hf_secret_of_mine" not in done.stdout + done.stderr
    assert any(authorization == "Bearer hf_secret_of_mine" for *_, authorization in hub.requests)


def test_names_from_the_command_line_are_checked(call_cli, write_config, llama):
    path = write_config(llama)
    for option in ("--name", "--package"):
        for value in ("a b", "x; import os", "../up", "class", "1a"):
            done = call_cli("new", "port", "--config", path, option, value, "--no-prove")
            assert done.returncode in (2, 3), (option, value, done.stderr)
            assert len(done.stderr.strip().splitlines()) <= 3
            assert list(call_cli.folder.iterdir()) == []


def test_stdout_closed_early_is_quiet(run_cli, tmp_path):
    import subprocess
    import sys

    command = f"{sys.executable} -m trtllm_scaffold.cli doctor | true"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=Path(tmp_path))
    assert "Traceback" not in done.stderr
