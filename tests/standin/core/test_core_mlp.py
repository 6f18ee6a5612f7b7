from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from trtllm_scaffold.standin import generation as generations
from trtllm_scaffold.standin.lora import LoraModuleType
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.modules.mlp import MLP, GatedMLP
from trtllm_scaffold.standin.modules.swiglu import swiglu

from ..statements import states

HIDDEN, INNER = 6, 8


def weights() -> dict[str, torch.Tensor]:
    names = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    found = {name: torch.randn(*shape) for name, shape in names.items()}
    found |= {f"{name}_bias": torch.randn(shape[0]) for name, shape in names.items()}
    return found


def part(found: dict[str, torch.Tensor], name: str, bias: bool) -> dict[str, torch.Tensor]:
    item = {"weight": found[name]}
    return item | {"bias": found[f"{name}_bias"]} if bias else item


def gated(found: dict[str, torch.Tensor], bias: bool, **options: object) -> GatedMLP:
    layer = GatedMLP(hidden_size=HIDDEN, intermediate_size=INNER, bias=bias, **options)
    layer.gate_up_proj.load_weights([part(found, "gate", bias), part(found, "up", bias)])
    layer.down_proj.load_weights([part(found, "down", bias)])
    return layer


def product(found: dict[str, torch.Tensor], name: str, x: torch.Tensor, bias: bool) -> torch.Tensor:
    y = x.double() @ found[name].double().T
    return y + found[f"{name}_bias"].double() if bias else y


@states("C3-1")
@pytest.mark.parametrize("bias", [False, True])
def test_silu_means_silu_of_gate_times_up(bias, generation):
    found, x = weights(), torch.randn(4, HIDDEN)
    inner = F.silu(product(found, "gate", x, bias)) * product(found, "up", x, bias)
    expected = product(found, "down", inner, bias)
    actual = gated(found, bias)(x)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-5)


@states("C3-2", "W6.7-2")
def test_any_other_activation_gets_the_fused_tensor_of_twice_the_width(generation):
    found, x, seen = weights(), torch.randn(4, HIDDEN), []

    def geglu(fused: torch.Tensor) -> torch.Tensor:
        seen.append(fused.shape)
        gate, up = fused.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh") * up

    gate, up = product(found, "gate", x, False), product(found, "up", x, False)
    expected = product(found, "down", F.gelu(gate, approximate="tanh") * up, False)
    actual = gated(found, False, activation=geglu)(x)
    assert seen == [(4, 2 * INNER)]
    torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-5)


@states("C3-2")
def test_a_plain_elementwise_activation_does_not_fit_a_gated_mlp(generation):
    with pytest.raises(RuntimeError):
        gated(weights(), False, activation=F.gelu)(torch.randn(2, HIDDEN))


@pytest.mark.parametrize("bias", [False, True])
def test_gated_shards_added_equal_the_whole(bias, generation):
    found, x = weights(), torch.randn(4, HIDDEN)
    whole, total = gated(found, bias)(x), torch.zeros(4, HIDDEN)
    for rank in range(2):
        config = ModelConfig(mapping=Mapping(world_size=2, tp_size=2, rank=rank))
        shard = gated(found, bias, config=config, reduce_output=False)
        assert shard.gate_up_proj.weight.shape == (INNER, HIDDEN)
        total += shard(x)
    torch.testing.assert_close(total, whole)


@states("W3.7-3")
def test_overridden_tp_size_runs_the_whole_layer_on_each_rank(generation):
    found, x = weights(), torch.randn(4, HIDDEN)
    whole = gated(found, False)(x)
    for rank in range(2):
        config = ModelConfig(mapping=Mapping(world_size=2, tp_size=2, rank=rank))
        layer = gated(found, False, config=config, overridden_tp_size=1)
        assert layer.down_proj.tp_size == 1 and layer.mapping.tp_size == 2
        torch.testing.assert_close(layer(x), whole)
    with pytest.raises(AssertionError, match="not divisible"):
        config = ModelConfig(mapping=Mapping(world_size=2, tp_size=2, rank=0))
        GatedMLP(
            hidden_size=4, intermediate_size=4, bias=False, config=config, overridden_tp_size=3
        )


def test_overridden_groups_are_the_neighbours(generation):
    config = ModelConfig(mapping=Mapping(world_size=4, tp_size=4, rank=3))
    layer = GatedMLP(
        hidden_size=4, intermediate_size=8, bias=False, config=config, overridden_tp_size=2
    )
    assert layer.down_proj.mapping.tp_group == [2, 3] and layer.down_proj.tp_rank == 1


@states("C3-3")
@pytest.mark.parametrize("bias", [False, True])
def test_a_plain_mlp_applies_its_activation_between_two_products(bias, generation):
    found, x = weights(), torch.randn(4, HIDDEN)
    layer = MLP(hidden_size=HIDDEN, intermediate_size=INNER, bias=bias, activation=F.relu)
    layer.up_proj.load_weights([part(found, "up", bias)])
    layer.down_proj.load_weights([part(found, "down", bias)])
    expected = product(found, "down", F.relu(product(found, "up", x, bias)), bias)
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-6, atol=1e-5)


def test_plain_shards_added_equal_the_whole_with_the_bias_once(generation):
    found, x = weights(), torch.randn(4, HIDDEN)
    total = torch.zeros(4, HIDDEN)
    for size in (1, 2):
        sums = torch.zeros(4, HIDDEN)
        for rank in range(size):
            layer = MLP(
                hidden_size=HIDDEN,
                intermediate_size=INNER,
                bias=True,
                activation=F.gelu,
                config=ModelConfig(mapping=Mapping(world_size=size, tp_size=size, rank=rank)),
                reduce_output=False,
            )
            layer.up_proj.load_weights([part(found, "up", True)])
            layer.down_proj.load_weights([part(found, "down", True)])
            sums += layer(x)
        if size == 1:
            total = sums
    torch.testing.assert_close(sums, total)


def test_deferred_weights_reach_both_products(generation):
    config = ModelConfig(skip_create_weights_in_init=True)
    layer = MLP(hidden_size=4, intermediate_size=4, bias=False, activation=F.relu, config=config)
    assert list(layer.parameters()) == []
    layer.create_weights()
    assert len(list(layer.parameters())) == 2


def test_clamps_and_gains_of_swiglu_are_of_the_new_generation():
    fused = 4 * torch.randn(3, 8)
    gate, up = fused.chunk(2, dim=-1)
    generations.set_active("1.2")
    torch.testing.assert_close(swiglu(fused), F.silu(gate) * up)
    with pytest.raises(TypeError, match="swiglu_limit"):
        swiglu(fused, swiglu_limit=1.0)
    generations.set_active("1.4")
    actual = swiglu(fused, swiglu_limit=2.0, swiglu_alpha=1.7, swiglu_beta=1.0)
    gate, up = gate.clamp(max=2), up.clamp(-2, 2)
    torch.testing.assert_close(actual, gate * torch.sigmoid(1.7 * gate) * (up + 1))


@states("W6.3-1")
@pytest.mark.parametrize("kind", ["gated", "plain"])
def test_low_rank_updates_reach_every_product(kind, generation):
    found, x = weights(), torch.randn(4, HIDDEN)

    def pair(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(2, columns), torch.randn(rows, 2)

    up, gate, down = pair(INNER, HIDDEN), pair(INNER, HIDDEN), pair(HIDDEN, INNER)
    # The library calls the HF gate projection H_TO_4H and the HF up projection GATE.
    adapters = {LoraModuleType.MLP_H_TO_4H: gate, LoraModuleType.MLP_4H_TO_H: down}
    changed = dict(found)
    changed["down"] = found["down"] + down[1] @ down[0]
    if kind == "gated":
        adapters[LoraModuleType.MLP_GATE] = up
        changed["gate"] = found["gate"] + gate[1] @ gate[0]
        changed["up"] = found["up"] + up[1] @ up[0]
        actual = gated(found, False, layer_idx=3)(x, lora_params={3: adapters})
        expected = gated(changed, False)(x)
    else:
        changed["up"] = found["up"] + gate[1] @ gate[0]
        layers = []
        for source in (found, changed):
            layer = MLP(
                hidden_size=HIDDEN,
                intermediate_size=INNER,
                bias=False,
                activation=F.relu,
                layer_idx=3,
            )
            layer.up_proj.load_weights([part(source, "up", False)])
            layer.down_proj.load_weights([part(source, "down", False)])
            layers.append(layer)
        actual = layers[0](x, lora_params={3: adapters})
        expected = layers[1](x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_quantized_result_is_refused(generation):
    with pytest.raises(NotImplementedError, match="quantize"):
        swiglu(torch.randn(2, 4), quant_scale=torch.ones(()), quant_type=torch.float8_e4m3fn)


@states("W6.7-2")
def test_no_activation_passes_the_fused_tensor_on(generation):
    layer = GatedMLP(hidden_size=HIDDEN, intermediate_size=INNER, bias=False, activation=None)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        layer(torch.randn(3, HIDDEN))
