"""Checkpoint headers as hostile input, and their cost at the size of the largest models."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from math import prod

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trtllm_scaffold.errors import InputError, ScaffoldError
from trtllm_scaffold.sources.checkpoint import TensorInfo, read_header


def header(tensors, data=None):
    """Return a safetensors file with the given header; the data is zeros, or `data` bytes."""
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    if data is None:
        data = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
    return struct.pack("<Q", len(text)) + text + bytes(data)


def entry(dtype="F32", shape=(2, 3), start=0, stop=24):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


def index(weight_map):
    return json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map})


def test_reads_a_single_file_written_by_safetensors(tmp_path):
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    tensors = {"a.weight": numpy.ones((3, 4), "float32"), "b": numpy.zeros((5,), "float16")}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    found = read_header(tmp_path)
    assert found.tensors == {
        "a.weight": TensorInfo("F32", (3, 4), "model.safetensors"),
        "b": TensorInfo("F16", (5,), "model.safetensors"),
    }
    assert found.complete


def test_none_without_weights(tmp_path):
    assert read_header(tmp_path) is None
    assert read_header(tmp_path / "missing") is None


def test_reads_shards_by_their_index(tmp_path):
    (tmp_path / "m-1.safetensors").write_bytes(header({"a": entry()}))
    (tmp_path / "m-2.safetensors").write_bytes(header({"b": entry("BF16", (12,))}))
    (tmp_path / "stray.safetensors").write_bytes(b"not read")
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index({"a": "m-1.safetensors", "b": "m-2.safetensors"}))
    found = read_header(tmp_path)
    assert found.tensors["b"] == TensorInfo("BF16", (12,), "m-2.safetensors")
    assert found.complete and set(found.tensors) == {"a", "b"}


def test_an_index_alone_gives_names(tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index({"a": "m-1.safetensors"}))
    found = read_header(tmp_path)
    assert found.tensors == {"a": TensorInfo(None, None, "m-1.safetensors")}
    assert not found.complete
    path.rename(tmp_path / "pytorch_model.bin.index.json")
    (tmp_path / "pytorch_model.bin.index.json").write_text(index({"a": "pytorch_model-1.bin"}))
    assert read_header(tmp_path).tensors["a"].file == "pytorch_model-1.bin"


def test_without_an_index_second_copies_and_adapters_are_left_out(tmp_path):
    for name in ("weights-1", "consolidated", "adapter_model"):
        (tmp_path / f"{name}.safetensors").write_bytes(header({"a": entry()}))
    assert read_header(tmp_path).tensors == {
        "a": TensorInfo("F32", (2, 3), "weights-1.safetensors")
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a file of 0 bytes has no header"),
        (b"\x01\x02", "a file of 2 bytes has no header"),
        (struct.pack("<Q", 1 << 60) + b"{}", "a file of 10 bytes claims a header of 11529215"),
        (struct.pack("<Q", (1 << 64) - 1), "claims a header of 18446744073709551615 bytes"),
        (header(b"[]", 0), "expected a JSON object, found a list"),
        (header(b"{}{}", 0), "not JSON"),
        (header(b"\xff\xfe", 0), "not UTF-8"),
        (header(b"[" * 100_000, 0), "nested deeper|not JSON"),
        (header(b'{"a":1,"a":1}', 0), "'a' occurs twice"),
        (header({"a": 1}, 0), "'a' has the unknown dtype None"),
        (header({"a": entry("F33")}), "unknown dtype 'F33'"),
        (header({"a": entry(dtype=["F32"])}), "unknown dtype a list of 1"),
        (header({"a": entry(shape=(-2, -3))}), "'a' has no valid shape"),
        (header({"a": entry(shape=(2.0, 3))}), "'a' has no valid shape"),
        (header({"a": entry(shape=(True, 6))}), "'a' has no valid shape"),
        (header({"a": entry(shape=[1] * 9)}, 24), "'a' has no valid shape"),
        (header({"a": entry(start=24, stop=0)}, 24), "'a' has no valid data_offsets"),
        (header({"a": entry(stop=20)}), r"'a' of F32 \(2, 3\) is given 20 bytes, it needs 24"),
        (header({"a": entry(shape=[1 << 62] * 8)}, 24), "is given 24 bytes, it needs"),
        (header({"a": entry()}, 10), "describes 24 bytes of data, the file has 10"),
        (header({"a": entry()}, 30), "describes 24 bytes of data, the file has 30"),
        (header({"a": entry(), "b": entry()}, 24), "the data of 'b' overlaps"),
        (header({"a": entry(start=8, stop=32)}), "the data of 'a' leaves a gap"),
        (header({"\x1b[2J": entry()}), r"'\\x1b\[2J' is not a tensor name"),
        (header({"a" * 600: entry()}), "is not a tensor name"),
        (header({"": entry()}), "'' is not a tensor name"),
    ],
)
def test_refuses_hostile_headers(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_header(tmp_path)
    assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../m.safetensors"}, "'../m.safetensors', which is not the name of a weight file"),
        ({"a": "/etc/passwd"}, "is not the name of a weight file in this folder"),
        ({"a": "sub/m.safetensors"}, "is not the name of a weight file in this folder"),
        ({"a": "m.safetensors\0"}, "is not the name of a weight file in this folder"),
        ({"a": ".safetensors"}, "is not the name of a weight file in this folder"),
        ({"a": 7}, "said to be in 7"),
        ({"\n": "m.safetensors"}, "is not a tensor name"),
        ({}, "'weight_map' must be an object with entries"),
        ([1], "'weight_map' must be an object with entries"),
        ({str(n): f"m-{n}.safetensors" for n in range(5000)}, "more than 4096 files"),
    ],
)
def test_refuses_hostile_indexes(tmp_path, weight_map, message):
    (tmp_path / "model.safetensors.index.json").write_text(index(weight_map))
    with pytest.raises(InputError, match=message):
        read_header(tmp_path)


def test_index_and_files_must_agree(tmp_path):
    (tmp_path / "m-1.safetensors").write_bytes(header({"a": entry()}))
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index({"a": "m-1.safetensors", "b": "m-2.safetensors"}))
    with pytest.raises(
        InputError, match="1 of 2 weight files are missing, first 'm-2.safetensors'"
    ):
        read_header(tmp_path)
    names = read_header(tmp_path, partial=True)
    assert set(names.tensors) == {"a", "b"} and not names.complete
    (tmp_path / "m-2.safetensors").write_bytes(header({"c": entry()}))
    with pytest.raises(InputError, match="puts 'b' in m-2.safetensors, but it is in no file"):
        read_header(tmp_path)
    (tmp_path / "m-2.safetensors").write_bytes(
        header({"a": entry(), "b": entry(start=24, stop=48)})
    )
    with pytest.raises(InputError, match="'a' is stored twice: m-1.safetensors and m-2"):
        read_header(tmp_path)
    (tmp_path / "m-2.safetensors").unlink()
    (tmp_path / "m-2.safetensors").mkdir()
    with pytest.raises(InputError, match="not a regular file"):
        read_header(tmp_path)


def _write_405b(folder):
    """Write sparse files with the header of a 405B model: 126 layers, 191 files."""
    shapes = {"model.embed_tokens.weight": (128256, 16384), "lm_head.weight": (128256, 16384)}
    shapes["model.norm.weight"] = (16384,)
    for layer in range(126):
        for name, shape in {
            "self_attn.q_proj": (16384, 16384),
            "self_attn.k_proj": (1024, 16384),
            "self_attn.v_proj": (1024, 16384),
            "self_attn.o_proj": (16384, 16384),
            "mlp.gate_proj": (53248, 16384),
            "mlp.up_proj": (53248, 16384),
            "mlp.down_proj": (16384, 53248),
            "input_layernorm": (16384,),
            "post_attention_layernorm": (16384,),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    files = [{} for _ in range(191)]
    for number, item in enumerate(shapes.items()):
        files[number % 191].update([item])
    weight_map = {}
    for number, part in enumerate(files, 1):
        name, stop, entries = f"model-{number:05}-of-00191.safetensors", 0, {}
        for tensor, shape in part.items():
            start, stop = stop, stop + 2 * prod(shape)
            entries[tensor] = entry("BF16", shape, start, stop)
            weight_map[tensor] = name
        (folder / name).write_bytes(header(entries, 0))
        with (folder / name).open("r+b") as file:
            file.truncate((folder / name).stat().st_size + stop)
    (folder / "model.safetensors.index.json").write_text(index(weight_map))
    return shapes


def _fastest_of_three(folder):
    """Read a header three times: what other work slows down is not the reader."""
    seconds = []
    for _ in range(3):
        began = time.process_time()
        found = read_header(folder)
        seconds.append(time.process_time() - began)
    return found, min(seconds)


def test_the_header_of_405b_parameters_takes_under_two_seconds(tmp_path):
    shapes = _write_405b(tmp_path)
    found, seconds = _fastest_of_three(tmp_path)
    assert seconds < 2.0
    assert {name: info.shape for name, info in found.tensors.items()} == shapes
    assert sum(prod(info.shape) for info in found.tensors.values()) == 405_853_388_800


def test_a_header_of_many_experts_takes_under_two_seconds(tmp_path):
    """As many tensors as the largest published mixture-of-experts checkpoints."""
    entries = {
        f"model.layers.{n // 1200}.mlp.experts.{n % 1200}.weight": entry(
            "U8", (8,), 8 * n, 8 * n + 8
        )
        for n in range(100_000)
    }
    (tmp_path / "model.safetensors").write_bytes(header(entries))
    found, seconds = _fastest_of_three(tmp_path)
    assert len(found.tensors) == 100_000
    assert seconds < 2.0


def test_reading_a_header_leaves_the_garbage_collector_as_it_was(tmp_path):
    import gc

    (tmp_path / "model.safetensors").write_bytes(b"no header")
    try:
        for turn in (gc.enable, gc.disable):
            turn()
            before = gc.isenabled()
            with pytest.raises(InputError):
                read_header(tmp_path)
            (tmp_path / "model.safetensors").write_bytes(header({"a": entry("X", (8,), 0, 8)}))
            with pytest.raises(InputError, match="unknown dtype"):
                read_header(tmp_path)
            assert gc.isenabled() == before
    finally:
        gc.enable()


def test_sources_import_neither_torch_nor_transformers():
    code = (
        "import sys, trtllm_scaffold.sources, trtllm_scaffold.sources.hf_class as h;"
        "heavy = {'torch', 'transformers', 'huggingface_hub', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


_ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F4", "X"]) | st.none() | st.integers(),
        "shape": st.lists(st.integers(-2, 1 << 70) | st.booleans() | st.floats(), max_size=4),
        "data_offsets": st.lists(st.integers(-2, 1 << 70) | st.none(), max_size=3),
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.text(max_size=6), _ENTRY | st.none() | st.text(max_size=3), max_size=4),
    st.integers(0, 64),
    st.none() | st.binary(max_size=30),
)
def test_fuzz_headers_raise_nothing_but_our_errors(tmp_path_factory, tensors, data, garbage):
    folder = tmp_path_factory.getbasetemp() / "fuzz"
    folder.mkdir(exist_ok=True)
    content = header(json.dumps(tensors).encode(), data) if garbage is None else garbage
    (folder / "model.safetensors").write_bytes(content)
    try:
        read_header(folder)
    except ScaffoldError as error:
        assert "\n" not in str(error) and len(str(error)) < 500


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.binary(max_size=60)
    | st.dictionaries(st.text(max_size=6), st.text(max_size=20) | st.integers(), max_size=4).map(
        lambda value: index(value).encode()
    )
)
def test_fuzz_indexes_raise_nothing_but_our_errors(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp() / "fuzz-index"
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors.index.json").write_bytes(content)
    try:
        read_header(folder)
    except ScaffoldError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
