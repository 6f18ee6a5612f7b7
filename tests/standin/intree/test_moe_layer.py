"""create_moe against a loop in float64: activations, checkpoint layouts, parts of a layout."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.moe import expert_products
from trtllm_scaffold.standin.quantization import QuantAlgo, QuantConfig
from trtllm_scaffold.standin.utils import ActivationType

from .names import moe

E, H, I, T, K = 6, 12, 8, 9, 3  # noqa: E741


def tensors(bias: bool = False, gated: bool = True) -> dict[str, torch.Tensor]:
    """A checkpoint by expert: w1 gate, w3 up, w2 down."""
    made = torch.Generator().manual_seed(3)
    shapes = {"w1": (I, H), "w3": (I, H), "w2": (H, I)}
    found = {}
    for expert in range(E):
        for part, shape in shapes.items():
            if part == "w3" and not gated:
                continue
            found[f"{expert}.{part}.weight"] = torch.randn(shape, generator=made) * 0.5
            if bias:
                found[f"{expert}.{part}.bias"] = torch.randn(shape[0], generator=made)
    return found


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    made = torch.Generator().manual_seed(4)
    return torch.randn(T, H, generator=made), torch.randn(T, E, generator=made)


def swiglu(gate, up):
    return gate / (1 + torch.exp(-gate)) * up


def by_hand(weights, x, logits, act=swiglu, *, on_input: bool = False, top_k: int = K):
    """Token by token, expert by expert, in float64; renormalised softmax weights."""
    w = {key: value.double() for key, value in weights.items()}
    out = torch.zeros(x.shape, dtype=torch.float64)
    for t, row in enumerate(x.double()):
        values, chosen = logits[t].double().sort(descending=True)
        share = values[:top_k].softmax(-1)
        for s, e in zip(share, chosen[:top_k].tolist(), strict=True):
            start = row * s if on_input else row
            gate = w[f"{e}.w1.weight"] @ start + w.get(f"{e}.w1.bias", 0)
            up = None
            if f"{e}.w3.weight" in w:
                up = w[f"{e}.w3.weight"] @ start + w.get(f"{e}.w3.bias", 0)
            inner = act(gate) if up is None else act(gate, up)
            result = w[f"{e}.w2.weight"] @ inner + w.get(f"{e}.w2.bias", 0)
            out[t] += result if on_input else s * result
    return out


def make(generation, *, config=None, top_k=K, **options):
    names = moe(generation)
    return names.create_moe(
        routing_method=names.RenormalizeMoeRoutingMethod(top_k),
        num_experts=E,
        hidden_size=H,
        intermediate_size=I,
        dtype=torch.float32,
        model_config=config or ModelConfig(),
        layer_idx=0,
        **options,
    )


def check(got, wanted):
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("limit", [expert_products.DENSE_LIMIT, 0], ids=["every expert", "in turn"])
@pytest.mark.parametrize("bias", [False, True])
def test_both_ways_of_computing(generation, monkeypatch, limit, bias):
    monkeypatch.setattr(expert_products, "DENSE_LIMIT", limit)
    layer = make(generation, bias=bias)
    layer.load_weights([tensors(bias)])
    x, logits = inputs()
    check(layer(x, logits), by_hand(tensors(bias), x, logits))
    assert layer(x[:0], logits[:0]).shape == (0, H)


def test_an_expert_that_overflows_touches_its_own_tokens_only(generation):
    weights = tensors()
    weights["5.w1.weight"] = torch.full((I, H), torch.inf)
    layer = make(generation)
    layer.load_weights([weights])
    x, logits = inputs()
    logits[:, 5] = -100
    check(layer(x, logits), by_hand(tensors(), x, logits))


def clamped(limit, alpha=1.0, beta=0.0):
    def act(gate, up):
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate / (1 + torch.exp(-alpha * gate)) * (up + beta)

    return act


def test_clamped_and_gpt_oss_activations_in_the_way_of_each_generation(generation):
    x, logits = inputs()
    names = moe(generation)
    each = torch.full((E,), 1.0)
    cases = {
        "1.2": [
            ({"swiglu_limit": each * 0.7}, clamped(0.7)),
            (
                {"swiglu_alpha": each * 1.7, "swiglu_beta": each, "swiglu_limit": each * 0.7},
                clamped(0.7, 1.7, 1.0),
            ),
        ],
    }
    if generation == "1.4":
        cases["1.4"] = [
            ({"activation": names.SwigluActivation(clamp=0.7)}, clamped(0.7)),
            ({"activation": names.SwigluBiasActivation(1.7, 1.0, 0.7)}, clamped(0.7, 1.7, 1.0)),
            (
                {"activation": names.SiTuActivation(1.5, 2.5)},
                lambda g, u: (
                    1.5 * torch.tanh(g / 1.5) * torch.sigmoid(g) * 2.5 * torch.tanh(u / 2.5)
                ),
            ),
        ]
    for options, act in cases[generation]:
        layer = make(generation, **options)
        layer.load_weights([tensors()])
        check(layer(x, logits), by_hand(tensors(), x, logits, act))


SIMPLE = {
    ActivationType.Gelu: (False, lambda g: g * 0.5 * (1 + torch.erf(g / math.sqrt(2)))),
    ActivationType.Relu: (False, lambda g: g.clamp(min=0)),
    ActivationType.Silu: (False, lambda g: g * torch.sigmoid(g)),
    ActivationType.Relu2: (False, lambda g: g.clamp(min=0) ** 2),
    ActivationType.Geglu: (True, lambda g, u: g * 0.5 * (1 + torch.erf(g / math.sqrt(2))) * u),
}


@pytest.mark.parametrize("kind", SIMPLE, ids=lambda kind: kind.name)
def test_activations_without_constants(generation, kind):
    gated, act = SIMPLE[kind]
    names = moe(generation)
    options = (
        {"activation_type": kind}
        if generation == "1.2"
        else {"activation": names.SimpleActivation(kind)}
    )
    layer = make(generation, **options)
    layer.load_weights([tensors(gated=gated)])
    x, logits = inputs()
    check(layer(x, logits), by_hand(tensors(gated=gated), x, logits, act))


def test_carriers_refuse_what_has_no_meaning():
    from trtllm_scaffold.standin.install import install

    install("1.4", force=True)
    names = moe("1.4")
    with pytest.raises(ValueError, match="clamp must be positive"):
        names.SwigluActivation(clamp=0.0)
    with pytest.raises(ValueError, match="gate_softcap must be positive"):
        names.SiTuActivation(-1.0, 1.0)
    with pytest.raises(ValueError, match="build a SwigluBiasActivation"):
        names.SimpleActivation(ActivationType.SwigluBias)
    with pytest.raises(ValueError, match="not a MoE activation"):
        names.SimpleActivation(ActivationType.Identity)


def test_arguments_of_the_other_generation_are_refused(generation):
    other = {"1.2": {"activation": None}, "1.4": {"swiglu_limit": None}}[generation]
    with pytest.raises(TypeError, match="unexpected keyword"):
        make(generation, **other)


@pytest.mark.parametrize("bias", [False, True])
def test_stacked_checkpoints_are_transposed_gate_first(generation, bias):
    each = tensors(bias)

    def stack(part, kind):
        return torch.stack([each[f"{e}.{part}.{kind}"] for e in range(E)])

    stacked = {
        "gate_up_proj": torch.cat([stack("w1", "weight"), stack("w3", "weight")], 1).mT,
        "down_proj": stack("w2", "weight").mT,
    }
    if bias:
        stacked["gate_up_proj.bias"] = torch.cat([stack("w1", "bias"), stack("w3", "bias")], 1)
        stacked["down_proj.bias"] = stack("w2", "bias")
    mode = moe(generation).MoEWeightLoadingMode.FUSED_GATE_UP_PROJ
    layer = make(generation, weight_loading_mode=mode, bias=bias)
    layer.load_weights([stacked])
    x, logits = inputs()
    check(layer(x, logits), by_hand(each, x, logits))


@pytest.mark.parametrize("layout", [(2, 1), (1, 2), (2, 2), (1, 6), (4, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_parts_of_all_ranks_add_up(generation, layout, bias):
    tensor, expert = layout
    world = tensor * expert
    x, logits = inputs()
    total = torch.zeros(T, H)
    for rank in range(world):
        mapping = Mapping(world, rank, tp_size=world, moe_tp_size=tensor, moe_ep_size=expert)
        layer = make(generation, config=ModelConfig(mapping=mapping), bias=bias)
        layer.load_weights([tensors(bias)])
        total += layer(x, logits)
    check(total, by_hand(tensors(bias), x, logits))


def test_router_weight_on_the_input_of_a_single_expert(generation, monkeypatch):
    x, logits = inputs()
    for limit in (expert_products.DENSE_LIMIT, 0):
        monkeypatch.setattr(expert_products, "DENSE_LIMIT", limit)
        names = moe(generation)
        layer = names.create_moe(
            names.Llama4RenormalizeMoeRoutingMethod(1),
            E,
            H,
            I,
            torch.float32,
            apply_router_weight_on_input=True,
        )
        layer.load_weights([tensors()])
        share = logits.max(-1).values.sigmoid()
        # Weight on the input equals one expert of a scaled token.
        wanted = by_hand(tensors(), x * share.unsqueeze(1), logits, top_k=1)
        check(layer(x, logits), wanted)
    many = make(generation, apply_router_weight_on_input=True)
    many.load_weights([tensors()])
    with pytest.raises(AssertionError, match="one expert per token"):
        many(x, logits)


class Config:
    hidden_size = H
    moe_intermediate_size = I
    intermediate_size = 99
    n_routed_experts = E
    torch_dtype = torch.bfloat16


def test_sizes_left_out_come_from_the_config(generation):
    names = moe(generation)
    config = ModelConfig(pretrained_config=Config())
    routing = names.DefaultMoeRoutingMethod(2)
    if generation == "1.2":
        with pytest.raises(AssertionError, match="num_experts"):
            names.create_moe(routing, model_config=config)
        return
    layer = names.create_moe(routing, model_config=config)
    assert (layer.num_experts, layer.hidden_size, layer.intermediate_size) == (E, H, I)
    assert layer.w2_weight.dtype is torch.bfloat16


def test_backends_and_their_classes(generation):
    names = moe(generation)
    kinds = {"VANILLA": "VanillaMoE", "TRITON": "TritonFusedMoE"}
    plain = {"1.2": "CutlassFusedMoE", "1.4": "ConfigurableMoE"}[generation]
    for backend in ("CUTLASS", "cutlass", "TRTLLM", "VANILLA", "TRITON"):
        config = ModelConfig(moe_backend=backend)
        layer = make(generation, config=config)
        assert type(layer).__name__ == kinds.get(backend.upper(), plain)
        assert isinstance(layer, names.MoE)
    with pytest.raises(ValueError, match="Unsupported moe backend: NONE"):
        make(generation, config=ModelConfig(moe_backend="NONE"))
    if generation == "1.2":
        assert names.get_moe_cls(ModelConfig()) is names.CutlassFusedMoE
        return
    assert names.resolve_moe_cls(ModelConfig(), bias=False) is names.CutlassFusedMoE
    with pytest.raises(ValueError, match="cannot serve"):
        make(generation, config=ModelConfig(moe_backend="TRTLLM"), allow_backend_degradation=False)
    assert names.is_moe_weight_owner(layer)


def test_what_the_stand_in_does_not_have_is_refused(generation):
    x, logits = inputs()
    with pytest.raises(NotImplementedError, match="no quantized experts"):
        make(generation, config=ModelConfig(quant_config=QuantConfig(quant_algo=QuantAlgo.FP8)))
    layer = make(generation)
    with pytest.raises(NotImplementedError, match="finalize"):
        layer(x, logits, do_finalize=False)
    with pytest.raises(KeyError, match=r"5\.w2\.weight"):
        layer.load_weights([{k: v for k, v in tensors().items() if k != "5.w2.weight"}])
    layer.load_weights([{"0.w1.weight": tensors()["0.w1.weight"]}], allow_partial_loading=True)
    with pytest.raises(AssertionError, match="do not divide"):
        mapping = Mapping(4, 0, tp_size=4, moe_ep_size=4, moe_tp_size=1)
        make(generation, config=ModelConfig(mapping=mapping))


def test_parameters_come_after_construction_under_the_auto_model(generation):
    config = ModelConfig(skip_create_weights_in_init=True)
    layer = make(generation, config=config)
    assert not hasattr(layer, "w2_weight")
    with pytest.raises(AssertionError, match="before create_weights"):
        layer.load_weights([tensors()])
    layer.create_weights()
    layer.load_weights([tensors()])
    assert config.extra_attrs["moe_layers"]["0"]() is layer


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_decode_is_captured_in_a_cuda_graph(generation):
    layer = make(generation).cuda()
    layer.load_weights([tensors()])
    x, logits = (item.cuda() for item in inputs())
    stream = torch.cuda.Stream()
    with torch.inference_mode(), torch.cuda.stream(stream):
        layer(x, logits)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            captured = layer(x, logits)
    x.copy_(x.flip(0).clone())
    logits.copy_(logits.flip(0).clone())
    graph.replay()
    torch.cuda.synchronize()
    check(captured.cpu(), by_hand(tensors(), x.cpu(), logits.cpu()))


def test_bfloat16_sums_in_float32(generation):
    layer = copy.deepcopy(make(generation)).to(torch.bfloat16)
    layer.load_weights([tensors()])
    x, logits = inputs()
    got = layer(x.bfloat16(), logits.bfloat16())
    rounded = {key: value.bfloat16() for key, value in tensors().items()}
    wanted = by_hand(rounded, x.bfloat16(), logits.bfloat16())
    assert got.dtype is torch.bfloat16
    assert (got.double() - wanted).abs().max() < 0.03 * wanted.abs().max()
    assert layer(x.bfloat16(), logits, output_dtype=torch.float32).dtype is torch.float32
