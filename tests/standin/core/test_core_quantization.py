from __future__ import annotations

import json

import pytest
import torch

from trtllm_scaffold.standin import generation as generations
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.modules.linear import Linear
from trtllm_scaffold.standin.quant_linear import get_quant_method
from trtllm_scaffold.standin.quant_sources import from_hf, from_modelopt, read_quantization
from trtllm_scaffold.standin.quantization import QuantAlgo, QuantConfig, QuantMode
from trtllm_scaffold.standin.weight_shards import (
    TensorParallelMode,
    WeightMode,
    WeightsLoadingConfig,
)

from ..statements import states

FP8 = torch.float8_e4m3fn
COLUMN, ROW = TensorParallelMode.COLUMN, TensorParallelMode.ROW


def per_tensor(rows: int, columns: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    scale = torch.rand(()) + 0.1
    weight = torch.randn(rows, columns).to(FP8)
    item = {"weight": weight, "weight_scale": scale, "input_scale": torch.rand(())}
    return item, weight.double() * scale.double()


@states("W5.4-1")
def test_fp8_weights_are_multiplied_by_their_scale(generation):
    item, expected = per_tensor(6, 4)
    layer = Linear(4, 6, bias=False, quant_config=QuantConfig(quant_algo=QuantAlgo.FP8))
    layer.load_weights([item])
    torch.testing.assert_close(layer.weight.double(), expected, rtol=1e-6, atol=1e-6)
    assert layer.input_scale == item["input_scale"]
    assert layer.has_fp8_qdq and layer.has_any_quant and not layer.has_nvfp4


def test_fused_fp8_parts_keep_their_own_scales_on_every_rank(generation):
    items, wholes = zip(*(per_tensor(rows, 4) for rows in (8, 4, 4)), strict=True)
    config = WeightsLoadingConfig(weight_mode=WeightMode.FUSED_QKV_LINEAR)
    for rank in range(2):
        layer = Linear(
            4,
            16,
            bias=False,
            mapping=Mapping(world_size=2, tp_size=2, rank=rank),
            tensor_parallel_mode=COLUMN,
            weights_loading_config=config,
            quant_config=QuantConfig(quant_algo="FP8"),
        )
        layer.load_weights(list(items))
        expected = torch.cat([whole.chunk(2)[rank] for whole in wholes])
        torch.testing.assert_close(layer.weight.double(), expected, rtol=1e-6, atol=1e-6)
        assert layer.input_scale == max(item["input_scale"] for item in items)


@states("W5.4-1")
def test_an_fp8_weight_without_its_scale_is_an_error(generation):
    item, _ = per_tensor(6, 4)
    layer = Linear(4, 6, bias=False, quant_config=QuantConfig(quant_algo="FP8"))
    with pytest.raises(AssertionError, match="weight_scale"):
        layer.load_weights([{"weight": item["weight"]}])


@states("W5.4-1")
def test_an_absent_input_scale_means_dynamic(generation):
    item, _ = per_tensor(6, 4)
    layer = Linear(4, 6, bias=False, quant_config=QuantConfig(quant_algo="FP8"))
    layer.load_weights([{key: item[key] for key in ("weight", "weight_scale")}])
    assert layer.input_scale is None


@states("W5.4-3")
@pytest.mark.parametrize("mode", [None, COLUMN, ROW])
@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_row_scales_are_cut_with_the_rows(mode, shape, generation):
    weight, scale = torch.randn(6, 4).to(FP8), torch.rand(*shape) + 0.1
    whole = weight.double() * scale.double().reshape(6, 1)
    size = 1 if mode is None else 2
    for rank in range(size):
        layer = Linear(
            4,
            6,
            bias=False,
            mapping=Mapping(world_size=size, tp_size=size, rank=rank),
            tensor_parallel_mode=mode,
            quant_config=QuantConfig(quant_algo="FP8_PER_CHANNEL_PER_TOKEN"),
        )
        layer.load_weights([{"weight": weight, "weight_scale": scale}])
        expected = whole.chunk(size, dim=TensorParallelMode.split_dim(mode))[rank]
        torch.testing.assert_close(layer.weight.double(), expected, rtol=1e-6, atol=1e-6)


@states("W5.4-4")
@pytest.mark.parametrize("mode", [COLUMN, ROW])
def test_tile_scales_multiply_their_tile_on_every_rank(mode, generation):
    weight, scale = torch.randn(256, 384).to(FP8), torch.rand(2, 3) + 0.1
    whole = weight.double() * scale.double().kron(torch.ones(128, 128, dtype=torch.float64))
    size = 2 if mode == COLUMN else 3
    for rank in range(size):
        layer = Linear(
            384,
            256,
            bias=False,
            mapping=Mapping(world_size=size, tp_size=size, rank=rank),
            tensor_parallel_mode=mode,
            quant_config=QuantConfig(quant_algo="FP8_BLOCK_SCALES"),
        )
        layer.load_weights([{"weight": weight, "weight_scale_inv": scale}])
        expected = whole.chunk(size, dim=TensorParallelMode.split_dim(mode))[rank]
        torch.testing.assert_close(layer.weight.double(), expected, rtol=1e-6, atol=1e-6)


@states("W5.4-4")
def test_a_last_tile_may_be_smaller_when_it_is_not_cut(generation):
    weight, scale = torch.randn(130, 100).to(FP8), torch.rand(2, 1) + 0.1
    layer = Linear(100, 130, bias=False, quant_config=QuantConfig(quant_algo="FP8_BLOCK_SCALES"))
    layer.load_weights([{"weight": weight, "weight_scale_inv": scale}])
    rows = torch.cat((scale[0].expand(128), scale[1].expand(2)))[:, None]
    torch.testing.assert_close(layer.weight.data, weight.float() * rows)


@states("W5.4-5")
def test_a_shard_that_cuts_a_tile_is_an_error(generation):
    layer = Linear(
        128,
        192,
        bias=False,
        mapping=Mapping(world_size=2, tp_size=2, rank=0),
        tensor_parallel_mode=COLUMN,
        quant_config=QuantConfig(quant_algo="FP8_BLOCK_SCALES"),
    )
    with pytest.raises(AssertionError, match="whole tiles"):
        layer.load_weights(
            [{"weight": torch.zeros(192, 128).to(FP8), "weight_scale_inv": torch.ones(2, 1)}]
        )


def test_partial_loading_is_for_unquantized_linears(generation):
    layer = Linear(4, 4, bias=False, quant_config=QuantConfig(quant_algo="FP8"))
    with pytest.raises(AssertionError, match="unquantized"):
        layer.load_weights([{}], allow_partial_loading=True)


@states("W5.1-1")
def test_an_algorithm_that_is_not_dequantised_is_named():
    with pytest.raises(NotImplementedError, match="NVFP4"):
        get_quant_method(QuantConfig(quant_algo=QuantAlgo.NVFP4))
    assert type(get_quant_method(QuantConfig(kv_cache_quant_algo="FP8"))).__name__ == (
        "UnquantizedLinearMethod"
    )


@states("W5.1-1")
def test_modes_tell_weights_and_cache_apart():
    both = QuantMode.from_quant_algo("FP8", "FP8")
    assert both.has_fp8_qdq() and both.has_fp8_kv_cache() and both.has_any_quant()
    cache = QuantMode.from_quant_algo(None, QuantAlgo.INT8)
    assert cache.has_any_quant() and not cache.has_any_quant(exclude_kv_cache=True)
    assert QuantMode.from_quant_algo("W4A16_AWQ").is_int4_weight_only_per_group()
    assert QuantMode.from_quant_algo("W8A16").is_weight_only()
    assert not QuantMode.from_quant_algo("FP8").is_weight_only()
    assert not QuantMode.from_quant_algo().has_any_quant()
    with pytest.raises(ValueError, match="KV cache"):
        QuantMode.from_quant_algo(None, "W8A16")


@states("W5.3-1")
def test_shell_wildcards_exclude_in_both_generations(generation):
    config = QuantConfig(exclude_modules=["lm_head", "model.layers.*.mlp.gate"])
    assert config.is_module_excluded_from_quantization("lm_head")
    assert config.is_module_excluded_from_quantization("model.layers.3.mlp.gate")
    assert not config.is_module_excluded_from_quantization("model.layers.3.mlp.gate_proj")


@states("W5.3-2", "W5.3-3")
def test_ancestors_and_regular_expressions_exclude_in_the_new_generation_only():
    config = QuantConfig(exclude_modules=["model.vision", r"re:.*\.q_proj"])
    names = ("model.vision.layers.0.fc", "model.layers.0.self_attn.q_proj")
    generations.set_active("1.2")
    assert [config.is_module_excluded_from_quantization(name) for name in names] == [False, False]
    generations.set_active("1.4")
    assert [config.is_module_excluded_from_quantization(name) for name in names] == [True, True]


@states("W5.2-1")
def test_modelopt_files_win_over_the_config(tmp_path):
    block = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": block}))

    class Config:
        quantization_config = {"quant_method": "awq"}

    general, layers = read_quantization(tmp_path, Config())
    assert general.quant_algo == QuantAlgo.FP8 and general.exclude_modules == ["lm_head"]
    assert layers is None
    with pytest.raises(NotImplementedError, match="awq"):
        read_quantization(tmp_path / "empty", Config())


@states("W5.2-2")
def test_mixed_precision_gives_a_config_per_module():
    layers = {"model.layers.0.mlp.up_proj": {"quant_algo": "FP8"}}
    block = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    _, found = from_modelopt({"quantization": block})
    assert found["model.layers.0.mlp.up_proj"].quant_algo == QuantAlgo.FP8


@states("W5.2-3")
def test_hf_declarations_are_read():
    blocks = from_hf(
        {
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": ["lm_head"],
        }
    )
    assert blocks.quant_algo == QuantAlgo.FP8_BLOCK_SCALES and "lm_head" in blocks.exclude_modules
    with pytest.raises(ValueError, match="64"):
        from_hf({"quant_method": "fp8", "weight_block_size": [64, 64]})
    group = {
        "weights": {"strategy": "channel", "num_bits": 8},
        "input_activations": {"strategy": "token"},
    }
    rows = from_hf({"quant_method": "compressed-tensors", "config_groups": {"group_0": group}})
    assert rows.quant_algo == QuantAlgo.FP8_PER_CHANNEL_PER_TOKEN
