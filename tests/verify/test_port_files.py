from __future__ import annotations

import json

import faults
import pytest

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.verify.check import check_port
from trtllm_scaffold.verify.port_files import read_port


def test_the_parts_of_a_port():
    port = read_port(faults.SAMPLE)
    assert port.package.name == "mistral_port" and port.name == "mistral"
    assert port.generation == "1.2"
    assert [path.name for path in port.tiny_configs] == ["tiny.json", "tiny_mqa_tied.json"]
    assert port.modeling_module.is_file() and port.weights_module.is_file()
    assert port.tensors[1].layers == 22 and port.tensors[0].layers is None


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (".copier-answers.yml", "a: [", "not YAML"),
        (".copier-answers.yml", "- 1", "expected a mapping"),
        ("config.json", "[1]", "expected a JSON object"),
        ("config.json", "{", "not JSON"),
        ("checkpoint.json", "{}", "no list 'tensors'"),
        ("checkpoint.json", '{"tensors": [1]}', "without a name"),
        ("checkpoint.json", '{"tensors": [{"name": "a", "shape": "x"}]}', "shape of 'a'"),
        ("checkpoint.json", '{"tensors": [{"name": "a", "shape": [-1]}]}', "shape of 'a'"),
        ("checkpoint.json", '{"tensors": [{"name": "a", "shape": [true]}]}', "shape of 'a'"),
        ("checkpoint.json", json.dumps({"tensors": [{"name": "a", "shape": [2**30] * 3}]}), "'a'"),
        ("checkpoint.json", '{"tensors": [{"name": "a", "shape": [2], "layers": 2}]}', "'a'"),
        (
            "checkpoint.json",
            '{"tensors": [{"name": "a{i}", "shape": [2], "layers": 99999999}]}',
            "layers of 'a{i}'",
        ),
        (
            "checkpoint.json",
            '{"tensors": [{"name": "a{i}", "shape": [2], "layers": 2, "shapes": [[2]]}]}',
            "shapes of 'a{i}' is a list of 1, not one for each layer",
        ),
    ],
)
def test_a_broken_data_file_is_one_clear_error(file, text, says, tmp_path):
    port = faults.copy_sample(tmp_path)
    (port / file).write_text(text)
    with pytest.raises(InputError, match=file.replace(".", r"\.")) as caught:
        read_port(port)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "block_norms: [input_layernorm, post_attention_layernorm]",
            "block_norms: 3",
            "block_norms",
        ),
        ("num_hidden_layers: 22", "num_hidden_layers: 1000000", "1000000 layers"),
        ("position_kind: rope", "position_kind: learned\nlearned_offset: x", "learned_offset"),
        ("position_kind: rope", "position_kind: rope\nlayer_kv_heads: [2]", "layer_kv_heads"),
    ],
)
def test_a_hostile_answer_is_one_clear_error(old, new, says, tmp_path):
    port = faults.copy_sample(tmp_path)
    faults.edit(port / ".copier-answers.yml", old, new)
    with pytest.raises(InputError, match=says):
        check_port(port)


def test_a_folder_with_two_packages_is_not_a_port(tmp_path):
    port = faults.copy_sample(tmp_path)
    (port / "other").mkdir()
    (port / "other/_trtllm.py").write_text("")
    with pytest.raises(InputError, match="mistral_port, other"):
        read_port(port)


def test_code_nested_too_deep_is_an_input_error(tmp_path):
    port = faults.copy_sample(tmp_path)
    path = port / faults.MODELING
    path.write_text(path.read_text() + "\nx = a" + ".b" * 5000 + "\n")
    with pytest.raises(InputError, match=r"deep|not Python"):
        check_port(port)
