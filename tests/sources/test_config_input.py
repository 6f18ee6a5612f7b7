"""config.json as hostile input: what is read, what is refused, and what the message says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trtllm_scaffold.errors import InputError, ScaffoldError
from trtllm_scaffold.sources import load_path, read_config, validate_config
from trtllm_scaffold.sources.config import INTEGERS, MAX_CONFIG_BYTES, REALS
from trtllm_scaffold.sources.json_file import MAX_DEPTH, parse_object, shown


def test_reads_a_file_and_its_folder_alike(write_config, llama):
    path = write_config(llama | {"unknown_key": {"kept": [1, 2]}})
    by_file, by_folder = read_config(path), read_config(path.parent)
    assert by_file == by_folder
    assert by_file.raw["unknown_key"] == {"kept": [1, 2]}
    assert by_file.path == path and by_file.where == str(path)
    validate_config(by_file.raw, by_file.where)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{not json", "not JSON: .*line 1, column 2"),
        ("", "not JSON"),
        ("[1, 2]", "expected a JSON object, found a list"),
        ('"text"', "expected a JSON object, found a string"),
        ("null", "expected a JSON object, found null"),
        ("7", "expected a JSON object, found a number"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' occurs twice"),
        ('{"a": {"x": 1, "x": 1}}', "the key 'x' occurs twice"),
        ('{"a": NaN}', "NaN is not a number that JSON allows"),
        ('{"a": -Infinity}', "-Infinity is not a number"),
        ('{"a": 1e999}', "'1e999' does not fit in a float"),
        ('{"a": ' + "9" * 5000 + "}", "a number of 5000 digits"),
        ('{"a": "\\ud800"}', "is not Unicode text"),
        ('{"\\udc00": 1}', "is not Unicode text"),
        (b'{"a": "\xff"}', "not UTF-8 text \\(byte 7\\)"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ('{"a":' * (MAX_DEPTH + 1) + "1" + "}" * (MAX_DEPTH + 1), "nested deeper than 32"),
        ('{"a":' + "[" * 400_000, "nested deeper than 32|not JSON"),
        ('{"a":' + "[" * 200_000 + "]" * 200_000 + "}", "nested deeper than 32"),
        ('{"a": "' + "x" * MAX_CONFIG_BYTES + '"}', "bytes, more than the 1048576"),
    ],
)
def test_refuses_what_is_not_a_plain_json_object(write_config, content, message):
    path = write_config(content)
    with pytest.raises(InputError, match=message) as caught:
        read_config(path)
    assert caught.value.where == str(path)


def test_accepts_nesting_up_to_the_bound():
    depth = MAX_DEPTH
    text = '{"a":' * depth + "1" + "}" * depth
    assert parse_object(text.encode(), "here")


def test_names_missing_and_unreadable_files(tmp_path, write_config):
    with pytest.raises(InputError, match="no such file"):
        read_config(tmp_path / "none.json")
    with pytest.raises(InputError, match="the folder has no config.json"):
        read_config(tmp_path)
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="cannot be read|no such file"):
        read_config(loop)
    (tmp_path / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(InputError, match="cannot be read|no such file"):
        read_config(tmp_path)
    with pytest.raises(InputError, match="null"):
        read_config("a\0b")
    with pytest.raises(InputError, match="name too long"):
        read_config("x" * 5000)
    below_a_file = write_config("{}") / "config.json"
    with pytest.raises(InputError, match="cannot be read|no such file"):
        read_config(below_a_file)


def test_does_not_hang_on_special_files(tmp_path):
    pipe = tmp_path / "config.json"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, Path("/dev/zero")):
        with pytest.raises(InputError, match="not a regular file"):
            read_config(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_names_files_without_permission(write_config):
    path = write_config("{}")
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_config(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": None}, "'architectures' is missing"),
        ({"architectures": []}, "architectures is a list of 0; it must be a list of class names"),
        ({"architectures": "LlamaForCausalLM"}, "must be a list of class names"),
        ({"architectures": ["x; import os"]}, "architectures is 'x; import os'; it must hold"),
        ({"architectures": ["Llama", "a b"]}, "architectures is 'a b'"),
        ({"architectures": ["class"]}, "architectures is 'class'"),
        ({"architectures": ["L\n"]}, "architectures is"),
        ({"architectures": ["Ｌlama"]}, "architectures is '\\\\uff2clama'"),
        ({"architectures": ["L" * 101]}, "architectures is"),
        ({"architectures": [7]}, "architectures is 7"),
        ({"model_type": None}, "'model_type' is missing"),
        ({"model_type": "../../etc"}, "model_type is '../../etc'; it must be one plain word"),
        ({"model_type": "a'b"}, "one plain word"),
        ({"model_type": 3}, "model_type is 3"),
        ({"hidden_size": "64"}, "hidden_size is '64'; it must be an integer"),
        ({"hidden_size": True}, "hidden_size is True; it must be an integer"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0; it must be an integer"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be from 1 to 262144"),
        ({"hidden_size": -64}, "hidden_size is -64"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000; it must be from 1 to 4096"),
        ({"vocab_size": 10**39}, "vocab_size is"),
        ({"num_key_value_heads": [2, True]}, "num_key_value_heads is True"),
        ({"num_key_value_heads": []}, "num_key_value_heads is a list of 0"),
        ({"vocab_size": [1]}, "vocab_size is a list of 1; it must be an integer"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'; it must be a number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": -1}, "rope_theta is -1; it must be from 0.001 to 1e\\+18"),
        ({"rope_theta": True}, "rope_theta is True; it must be a number"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; it must be true or false"),
        ({"hidden_act": "__import__('os')"}, "hidden_act is .*; it must be one plain word"),
        ({"num_attention_heads": 5}, "hidden_size 64 is not divisible by num_attention_heads 5"),
        (
            {"num_attention_heads": 8, "num_key_value_heads": 3},
            "num_attention_heads 8 is not divisible by num_key_value_heads 3",
        ),
    ],
)
def test_refuses_implausible_values(llama, change, message):
    with pytest.raises(InputError, match=message) as caught:
        validate_config(llama | change, "m/config.json")
    assert caught.value.where.startswith("m/config.json")
    assert caught.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 6, "num_key_value_heads": None, "head_dim": 16},
        {"num_key_value_heads": None, "sliding_window": None, "head_dim": None},
        {"num_key_value_heads": [1, 2], "intermediate_size": [96, None]},
        {"rope_theta": 1000000, "rope_scaling": {"rope_type": "yarn", "factor": 4}},
        {"anything": "else", "quantization_config": {"ignore": ["lm_head"]}},
    ],
)
def test_accepts_what_published_files_hold(llama, change):
    validate_config(llama | change)


def test_synonyms_are_checked_too():
    gpt2 = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_head": 7}
    with pytest.raises(InputError, match="n_embd 768 is not divisible by n_head 7"):
        validate_config(gpt2)


def test_integers_beyond_every_float_are_refused(llama):
    for key in ("rope_theta", "rms_norm_eps"):
        with pytest.raises(InputError, match=f"{key} is an integer of 1329 bits; it must be from"):
            validate_config({**llama, key: 10**400})


def test_quoted_values_are_short_and_printable():
    assert shown("a\x1b[31m\u202e") == r"'a\x1b[31m\u202e'"
    assert len(shown("x" * 10**7)) <= 80
    assert shown({"k": "v"}) == "an object of 1"
    assert "bits" in shown(1 << 100_000)


def test_neighbours_belong_to_a_file_named_config_json_only(write_config, llama):
    write_config({"quantization": {"quant_algo": "FP8"}}, "hf_quant_config.json")
    assert load_path(write_config(llama)).quant == {"quantization": {"quant_algo": "FP8"}}
    assert load_path(write_config(llama, "other.json")).quant is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
_KEYS = st.sampled_from(sorted({*INTEGERS, *REALS, "architectures", "model_type", "hidden_act"}))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(_KEYS | st.text(max_size=8), _JSON, max_size=6), st.booleans())
def test_fuzz_validate_raises_nothing_but_our_errors(changes, from_valid):
    base = {"architectures": ["A"], "model_type": "a"} if from_valid else {}
    try:
        validate_config(base | changes)
    except ScaffoldError as error:
        assert "\n" not in str(error) and str(error).isprintable()
        assert len(str(error)) < 500


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_fuzz_read_raises_nothing_but_our_errors(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    path.write_bytes(content)
    try:
        raw = read_config(path).raw
        validate_config(raw)
    except ScaffoldError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[1] / "configs").glob("*.json")),
    ids=lambda path: path.stem,
)
def test_published_files_are_accepted(path):
    assert load_path(path).raw["architectures"]
