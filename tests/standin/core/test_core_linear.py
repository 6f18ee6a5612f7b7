from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.modules.linear import Linear
from trtllm_scaffold.standin.weight_shards import (
    TensorParallelMode,
    WeightMode,
    WeightsLoadingConfig,
    load_weight_shard,
)

from ..statements import states

COLUMN, ROW = TensorParallelMode.COLUMN, TensorParallelMode.ROW
QKV = WeightsLoadingConfig(weight_mode=WeightMode.FUSED_QKV_LINEAR)
GATE_UP = WeightsLoadingConfig(weight_mode=WeightMode.FUSED_GATE_UP_LINEAR)


def ranks(size: int) -> list[Mapping]:
    return [Mapping(world_size=size, tp_size=size, rank=rank) for rank in range(size)]


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-6, atol=1e-6)


def exact(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    product = x.double() @ weight.double().T
    return product if bias is None else product + bias.double()


def test_a_plain_linear_equals_the_product(generation):
    weight, bias, x = torch.randn(5, 7), torch.randn(5), torch.randn(3, 7)
    layer = Linear(7, 5)
    layer.load_weights([{"weight": weight, "bias": bias}])
    close(layer(x), exact(x, weight, bias))


@states("W2.6-2")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_column_parallel_parts_joined_equal_the_whole(size, generation):
    weight, bias, x = torch.randn(8, 6), torch.randn(8), torch.randn(3, 6)
    parts = []
    for mapping in ranks(size):
        layer = Linear(6, 8, mapping=mapping, tensor_parallel_mode=COLUMN)
        layer.load_weights([{"weight": weight, "bias": bias}])
        assert (layer.in_features, layer.out_features) == (6, 8 // size)
        parts.append(layer(x))
    close(torch.cat(parts, dim=-1), exact(x, weight, bias))


@states("W2.6-2")
@pytest.mark.parametrize("size", [1, 2, 4])
def test_row_parallel_parts_added_equal_the_whole_with_the_bias_once(size, generation):
    weight, bias, x = torch.randn(5, 8), torch.randn(5), torch.randn(3, 8)
    total = torch.zeros(3, 5)
    for mapping, piece in zip(ranks(size), x.chunk(size, dim=-1), strict=True):
        layer = Linear(8, 5, mapping=mapping, tensor_parallel_mode=ROW, reduce_output=False)
        layer.load_weights([{"weight": weight, "bias": bias}])
        assert layer.bias.shape == (5,)
        total += layer(piece)
    close(total, exact(x, weight, bias))


@states("A2-1", "A2-2")
@pytest.mark.parametrize("size", [1, 2])
def test_fused_qkv_cuts_each_part_before_joining(size, generation):
    q, k, v = torch.randn(8, 6), torch.randn(4, 6), torch.randn(4, 6)
    biases = [torch.randn(8), torch.randn(4), torch.randn(4)]
    parts = [
        {"weight": weight, "bias": bias} for weight, bias in zip((q, k, v), biases, strict=True)
    ]
    for mapping in ranks(size):
        layer = Linear(
            6, 16, mapping=mapping, tensor_parallel_mode=COLUMN, weights_loading_config=QKV
        )
        layer.load_weights(parts)
        mine = [item.chunk(size)[mapping.tp_rank] for item in (q, k, v)]
        torch.testing.assert_close(layer.weight.data, torch.cat(mine))
        mine = [item.chunk(size)[mapping.tp_rank] for item in biases]
        torch.testing.assert_close(layer.bias.data, torch.cat(mine))


@states("C3-1")
def test_fused_gate_up_is_gate_rows_then_up_rows_of_the_rank(generation):
    gate, up = torch.randn(6, 3), torch.randn(6, 3)
    mapping = Mapping(world_size=2, tp_size=2, rank=1)
    layer = Linear(
        3,
        12,
        bias=False,
        mapping=mapping,
        tensor_parallel_mode=COLUMN,
        weights_loading_config=GATE_UP,
    )
    layer.load_weights([{"weight": gate}, {"weight": up}])
    torch.testing.assert_close(layer.weight.data, torch.cat((gate[3:], up[3:])))


@states("W2.6-1")
def test_the_number_of_parts_must_be_that_of_the_mode():
    layer = Linear(3, 12, bias=False, weights_loading_config=QKV)
    with pytest.raises(AssertionError, match="3 dicts, got 1"):
        layer.load_weights([{"weight": torch.randn(12, 3)}])


@states("C6-6")
def test_a_missing_weight_or_bias_is_an_error(generation):
    layer = Linear(3, 4)
    with pytest.raises(AssertionError, match="'weight' is missing"):
        layer.load_weights([{}])
    with pytest.raises(AssertionError, match="'bias' is missing"):
        layer.load_weights([{"weight": torch.randn(4, 3)}])


@states("A13-2")
def test_one_missing_bias_of_a_fused_qkv_is_an_error(generation):
    layer = Linear(3, 6, weights_loading_config=QKV)
    full = {"weight": torch.randn(2, 3), "bias": torch.randn(2)}
    with pytest.raises(AssertionError, match=r"'bias' is missing from part \[1\]"):
        layer.load_weights([full, {"weight": full["weight"]}, full])


def test_a_tensor_of_another_shape_is_an_error_even_where_it_would_broadcast(generation):
    layer = Linear(3, 4, bias=False)
    with pytest.raises(AssertionError, match=r"\(4, 3\).*\(1, 3\)"):
        layer.load_weights([{"weight": torch.randn(1, 3)}])


@states("W2.6-4")
def test_sizes_must_be_divisible_by_the_tensor_parallel_size(generation):
    mapping = Mapping(world_size=2, tp_size=2, rank=0)
    with pytest.raises(AssertionError, match="out_features 5 must be divisible by tp_size 2"):
        Linear(4, 5, mapping=mapping, tensor_parallel_mode=COLUMN)
    with pytest.raises(AssertionError, match="in_features 5 must be divisible by tp_size 2"):
        Linear(5, 4, mapping=mapping, tensor_parallel_mode=ROW)


@states("W6.1-1")
def test_deferred_weights_do_not_exist_before_they_are_created(generation):
    layer = Linear(3, 4, skip_create_weights_in_init=True)
    with pytest.raises(AttributeError):
        _ = layer.weight
    with pytest.raises(AssertionError):
        layer.load_weights([{"weight": torch.randn(4, 3), "bias": torch.randn(4)}])
    layer.create_weights()
    created = layer.weight
    layer.create_weights()
    assert layer.weight is created and layer.weight.shape == (4, 3)


@states("W2.6-5")
def test_weights_are_cast_to_the_dtype_of_the_parameter(generation):
    weight = torch.randn(4, 3, dtype=torch.float64)
    layer = Linear(3, 4, bias=False, dtype=torch.bfloat16)
    layer.load_weights([{"weight": weight}])
    assert layer.weight.dtype == torch.bfloat16
    torch.testing.assert_close(layer.weight.data, weight.bfloat16())


@states("C6-4")
def test_lazy_safetensors_slices_are_read_part_by_part(tmp_path, generation):
    weight = torch.randn(8, 6)
    save_file({"w": weight}, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as opened:
        lazy = opened.get_slice("w")
        mapping = Mapping(world_size=2, tp_size=2, rank=1)
        layer = Linear(6, 8, bias=False, mapping=mapping, tensor_parallel_mode=COLUMN)
        layer.load_weights([{"weight": lazy}])
        torch.testing.assert_close(layer.weight.data, weight[4:])
        torch.testing.assert_close(load_weight_shard(lazy), weight)
        torch.testing.assert_close(load_weight_shard(lazy, 2, 0, ROW), weight[:, :3])


@states("W2.6-3")
def test_the_width_of_a_shard_is_the_ceiling_and_size_one_stays_whole():
    tensor = torch.arange(10.0).reshape(5, 2)
    assert load_weight_shard(tensor, 2, 0, COLUMN).shape == (3, 2)
    assert load_weight_shard(tensor, 2, 1, COLUMN).shape == (2, 2)
    assert load_weight_shard(tensor[:1], 2, 1, COLUMN).shape == (1, 2)
    assert load_weight_shard(torch.arange(4.0), 2, 1, ROW).shape == (4,)
    with pytest.raises(ValueError, match="unsupported weight type"):
        load_weight_shard([1.0])


def test_ignore_tensor_parallel_keeps_the_whole_tensor():
    config = WeightsLoadingConfig(ignore_tensor_parallel=True)
    mapping = Mapping(world_size=2, tp_size=2, rank=1)
    layer = Linear(
        4,
        6,
        bias=False,
        mapping=mapping,
        tensor_parallel_mode=COLUMN,
        weights_loading_config=config,
    )
    local = torch.randn(3, 4)
    layer.load_weights([{"weight": local}])
    torch.testing.assert_close(layer.weight.data, local)


@states("W2.6-6")
def test_partial_loading_fills_one_part_and_leaves_the_others(generation):
    places = {"q": (0, 2), "k": (2, 1), "v": (3, 1)}
    layer = Linear(
        3,
        4,
        bias=False,
        weights_loading_config=QKV,
        fused_weight_shard_indices_mapping=places,
    )
    layer.weight.data.zero_()
    k = torch.randn(1, 3)
    layer.load_weights([{}, {"weight": k}, {}], allow_partial_loading=True)
    torch.testing.assert_close(
        layer.weight.data, torch.cat((torch.zeros(2, 3), k, torch.zeros(1, 3)))
    )


def test_fused_reduction_is_refused_at_size_one(generation):
    from trtllm_scaffold.standin.functional import AllReduceParams

    layer = Linear(4, 4, bias=False, tensor_parallel_mode=ROW)
    layer.load_weights([{"weight": torch.eye(4)}])
    x = torch.randn(2, 4)
    with pytest.raises(AssertionError, match="tp_size 1"):
        layer(x, all_reduce_params=AllReduceParams())
    close(layer(x, all_reduce_params=AllReduceParams(enable_allreduce=False)), x)


def test_running_across_ranks_without_processes_says_so(generation):
    mapping = Mapping(world_size=2, tp_size=2, rank=0)
    layer = Linear(4, 4, bias=False, mapping=mapping, tensor_parallel_mode=ROW)
    layer.load_weights([{"weight": torch.eye(4)}])
    with pytest.raises(RuntimeError, match="not initialised"):
        layer(torch.randn(1, 2))


@states("W6.3-1")
def test_low_rank_updates_are_added(generation):
    from trtllm_scaffold.standin.lora import LoraLayer, LoraModuleType

    kind = LoraModuleType.ATTENTION_DENSE
    layer = Linear(4, 3, bias=False, lora=LoraLayer([kind], [3]))
    weight, a, b, x = torch.randn(3, 4), torch.randn(2, 4), torch.randn(3, 2), torch.randn(5, 4)
    layer.load_weights([{"weight": weight}])
    changed = layer(x, lora_params={7: {kind: (a, b)}}, layer_idx=7)
    torch.testing.assert_close(changed, x @ (weight + b @ a).T)
    torch.testing.assert_close(layer(x, lora_params={7: {}}, layer_idx=7), x @ weight.T)


@states("W2.6-1")
def test_weight_modes_name_their_parts_in_order():
    assert WeightMode.FUSED_QKV_LINEAR.shard_keys == ["q", "k", "v"]
    assert WeightMode.FUSED_GATE_UP_LINEAR.shard_keys == ["gate", "up"]
    assert WeightMode.VANILLA.shard_keys is None and WeightMode.VANILLA.int_value == 1
    assert WeightMode.FUSED_QKV_LINEAR.shard_key_to_index == {"q": 0, "k": 1, "v": 2}
    assert WeightMode.VANILLA.shard_key_to_index is None
