"""Statements about mixtures of experts, each against a direct formula in float64."""

from __future__ import annotations

import importlib
import inspect
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from ..statements import states
from .harness import ports
from .test_rules import api

both = pytest.mark.parametrize("gen", ["1.2", "1.4"])
TOKENS, EXPERTS, HIDDEN, INNER, TOP = 7, 8, 10, 6, 3


def moe(gen):
    ports(gen, "llama")
    home = "modules.fused_moe" if gen == "1.2" else "moe.fused_moe"
    return importlib.import_module(f"tensorrt_llm._torch.{home}")


def model_config(mapping=None, **fields):
    hf = SimpleNamespace(torch_dtype=torch.float32, **fields)
    extra = {} if mapping is None else {"mapping": mapping}
    return api().ModelConfig(pretrained_config=hf, **extra)


def checkpoint() -> dict[str, torch.Tensor]:
    shapes = {"w1": (INNER, HIDDEN), "w3": (INNER, HIDDEN), "w2": (HIDDEN, INNER)}
    generator = torch.Generator().manual_seed(4)
    return {
        f"{expert}.{name}.weight": torch.randn(shape, generator=generator) * 0.4
        for expert in range(EXPERTS)
        for name, shape in shapes.items()
    }


def layer(gen, config=None, method=None, **options):
    found = moe(gen)
    made = found.create_moe(
        routing_method=method or found.RenormalizeMoeRoutingMethod(top_k=TOP),
        num_experts=EXPERTS,
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        dtype=torch.float32,
        model_config=config or model_config(),
        layer_idx=0,
        **options,
    )
    return made


def by_hand(weights, x, chosen, shares) -> torch.Tensor:
    """``sum_k share_k * w2(silu(w1 x) * w3 x)``, token by token."""
    x, out = x.double(), torch.zeros(x.shape, dtype=torch.float64)
    for token in range(x.shape[0]):
        for expert, share in zip(chosen[token].tolist(), shares[token].double(), strict=True):
            w1, w3, w2 = (
                weights[f"{expert}.{name}.weight"].double() for name in ("w1", "w3", "w2")
            )
            out[token] += share * (w2 @ (F.silu(w1 @ x[token]) * (w3 @ x[token])))
    return out


def close(got, wanted) -> None:
    assert (got.double() - wanted).abs().max() <= 2e-6 * wanted.abs().max()


# ---------------------------------------------------------------- create_moe and the call


@states("W3.1-1")
def test_sizes_are_read_from_the_config():
    for gen in ("1.2", "1.4"):
        found = moe(gen)
        names = {"hidden_size": HIDDEN, "intermediate_size": 99, "moe_intermediate_size": INNER}
        method = found.RenormalizeMoeRoutingMethod(top_k=1)
        made = found.create_moe(method, model_config=model_config(num_experts=EXPERTS, **names))
        assert (made.num_experts, made.intermediate_size) == (EXPERTS, INNER)
        other = model_config(n_routed_experts=EXPERTS, **names)
        if gen == "1.2":
            with pytest.raises(AssertionError, match="num_experts"):
                found.create_moe(method, model_config=other)
        else:
            assert found.create_moe(method, model_config=other).num_experts == EXPERTS


@states("W3.1-2", "W3.1-3")
def test_activations_are_constants_in_1_2_and_an_object_in_1_4():
    for gen in ("1.2", "1.4"):
        listed = inspect.signature(moe(gen).create_moe).parameters
        old = {"swiglu_alpha", "swiglu_beta", "swiglu_limit", "activation_type"}
        new = {"activation", "communication_method", "allow_backend_degradation"}
        assert (old <= set(listed), new <= set(listed)) == (gen == "1.2", gen == "1.4")
        with pytest.raises(TypeError, match="activation" if gen == "1.2" else "swiglu_limit"):
            layer(gen, **({"activation": None} if gen == "1.2" else {"swiglu_limit": None}))


@states("W3.2-1", "W3.3-1", "W3.5-2")
@both
def test_raw_logits_and_w1_w3_w2(gen):
    made, weights = layer(gen), checkpoint()
    made.load_weights([weights])
    x, logits = torch.randn(TOKENS, HIDDEN), torch.randn(TOKENS, EXPERTS)
    best, chosen = logits.topk(TOP)
    close(made(x, logits), by_hand(weights, x, chosen, best.double().softmax(-1)))
    with pytest.raises(KeyError, match="5.w3.weight"):
        made.load_weights([{k: v for k, v in weights.items() if k != "5.w3.weight"}])


@states("W3.3-2")
@both
def test_stacked_experts_are_transposed_and_gate_comes_first(gen):
    mode = moe(gen).MoEWeightLoadingMode.FUSED_GATE_UP_PROJ
    weights, made = checkpoint(), layer(gen, weight_loading_mode=mode)

    def stack(name):
        return torch.stack([weights[f"{expert}.{name}.weight"].T for expert in range(EXPERTS)])

    both_halves = torch.cat([stack("w1"), stack("w3")], dim=-1)
    assert both_halves.shape == (EXPERTS, HIDDEN, 2 * INNER)
    made.load_weights([{"gate_up_proj": both_halves, "down_proj": stack("w2")}])
    plain = layer(gen)
    plain.load_weights([weights])
    x, logits = torch.randn(TOKENS, HIDDEN), torch.randn(TOKENS, EXPERTS)
    torch.testing.assert_close(made(x, logits), plain(x, logits))


@states("W3.3-3")
@both
@pytest.mark.parametrize("parallel", ["moe_tp_size", "moe_ep_size"])
def test_parts_of_the_ranks_add_up(gen, parallel):
    moe(gen)
    weights = checkpoint()
    x, logits = torch.randn(TOKENS, HIDDEN), torch.randn(TOKENS, EXPERTS)
    parts = []
    for rank in range(2):
        sizes = {"moe_tp_size": 1, "moe_ep_size": 1, parallel: 2}
        mapping = api().Mapping(world_size=2, tp_size=2, rank=rank, **sizes)
        made = layer(gen, model_config(mapping))
        made.load_weights([weights])
        parts.append(made(x, logits))
    best, chosen = logits.topk(TOP)
    close(sum(parts), by_hand(weights, x, chosen, best.double().softmax(-1)))


@states("W3.4-1")
@both
def test_a_backend_that_cannot_serve_gives_way(gen):
    moe(gen)
    for name in ("CUTLASS", "VANILLA", "TRITON", "TRTLLM"):
        config = model_config()
        config.moe_backend = name
        layer(gen, config)
    config = model_config()
    config.moe_backend = "NOSUCH"
    with pytest.raises(ValueError, match="NOSUCH"):
        layer(gen, config)


# ---------------------------------------------------------------- routing


def gate():
    torch.manual_seed(9)
    return torch.randn(TOKENS, EXPERTS), torch.randn(EXPERTS)


def same(routed, chosen, shares) -> None:
    indices, weights = routed
    assert indices.dtype == torch.int32
    got = torch.zeros(TOKENS, EXPERTS, dtype=torch.float64)
    wanted = got.clone()
    got.scatter_(1, indices.long(), weights.double())
    wanted.scatter_(1, chosen, shares)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


@states("W3.5-1")
@both
def test_default_is_a_softmax_that_is_not_normalised_again(gen):
    logits, _ = gate()
    shares, chosen = logits.double().softmax(-1).topk(TOP)
    same(moe(gen).DefaultMoeRoutingMethod(top_k=TOP).apply(logits), chosen, shares)
    assert (shares.sum(-1) < 0.999).all()


@states("W3.5-2")
@both
def test_renormalize_and_its_naive_form_are_one(gen):
    logits, _ = gate()
    best, chosen = logits.double().topk(TOP)
    found = moe(gen)
    for method in (found.RenormalizeMoeRoutingMethod, found.RenormalizeNaiveMoeRoutingMethod):
        same(method(top_k=TOP).apply(logits), chosen, best.softmax(-1))
    shares, chosen = logits.double().softmax(-1).topk(TOP)
    naive = found.RenormalizeNaiveMoeRoutingMethod(top_k=TOP)
    same(naive.apply(logits), chosen, shares / shares.sum(-1, keepdim=True))


@states("W3.5-3")
@both
def test_deepseek_v3_chooses_by_bias_and_groups_and_weighs_without(gen):
    logits, bias = gate()
    method = moe(gen).DeepSeekV3MoeRoutingMethod(
        top_k=TOP,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=2.5,
        callable_e_score_correction_bias=lambda: bias,
    )
    scores = torch.sigmoid(logits.double())
    choice = (scores + bias).view(TOKENS, 4, 2)
    groups = choice.topk(2, dim=-1).values.sum(-1).topk(2, dim=-1).indices
    kept = torch.zeros(TOKENS, 4, dtype=torch.bool).scatter(1, groups, True)
    choice = choice.masked_fill(~kept.unsqueeze(-1), -torch.inf).flatten(1)
    chosen = choice.topk(TOP).indices
    shares = scores.gather(1, chosen)
    same(method.apply(logits), chosen, 2.5 * shares / shares.sum(-1, keepdim=True))


@states("W3.5-4")
@both
def test_llama4_weighs_by_the_sigmoid_of_the_logit(gen):
    logits, _ = gate()
    best, chosen = logits.double().topk(1)
    method = moe(gen).Llama4RenormalizeMoeRoutingMethod(top_k=1)
    same(method.apply(logits), chosen, torch.sigmoid(best))


@states("W3.5-5")
def test_later_sigmoid_methods():
    found, (logits, bias) = moe("1.4"), gate()
    scores = torch.sigmoid(logits.double())
    chosen = (scores + bias).topk(TOP).indices
    shares = scores.gather(1, chosen)
    method = found.MiniMaxM2MoeRoutingMethod(
        top_k=TOP, num_experts=EXPERTS, callable_e_score_correction_bias=lambda: bias
    )
    same(method.apply(logits), chosen, shares / shares.sum(-1, keepdim=True))
    shares, chosen = scores.topk(TOP)
    for renormalize in (True, False):
        method = found.SigmoidRenormMoeRoutingMethod(
            top_k=TOP, num_experts=EXPERTS, renormalize=renormalize
        )
        wanted = shares / shares.sum(-1, keepdim=True) if renormalize else shares
        same(method.apply(logits), chosen, wanted)


@states("W3.5-6", "W3.5-7")
def test_a_routing_method_of_a_port():
    for gen in ("1.2", "1.4"):
        found = moe(gen)

        class First(found.BaseMoeRoutingMethod):
            def __init__(self):
                super().__init__()
                self.top_k = 1

            def apply(self, router_logits, *later):
                self.seen = later
                count = router_logits.shape[0]
                return torch.zeros(count, 1, dtype=torch.int32), torch.ones(count, 1)

            def get_experts_per_token(self):
                return 1

        method, weights = First(), checkpoint()
        made = layer(gen, method=method)
        made.load_weights([weights])
        x = torch.randn(TOKENS, HIDDEN)
        got = made(x, torch.randn(TOKENS, EXPERTS))
        zero = torch.zeros(TOKENS, 1, dtype=torch.long)
        close(got, by_hand(weights, x, zero, torch.ones(TOKENS, 1)))
        assert method.experts_per_token == 1
        assert method.seen == (() if gen == "1.2" else (None,))
        assert hasattr(method, "requires_separated_routing") is (gen == "1.4")


@states("W3.7-1")
@both
def test_experts_and_a_shared_one_are_added_before_one_reduction(gen):
    """``reduce_results=False`` and ``reduce_output=False`` give this rank's parts."""
    moe(gen)
    mapping = api().Mapping(world_size=2, tp_size=2, rank=0, moe_tp_size=2)
    config = model_config(mapping)
    assert layer(gen, config, reduce_results=False).all_reduce is None
    assert layer(gen, config, reduce_results=True).all_reduce is not None
    shared = api().GatedMLP(
        hidden_size=HIDDEN, intermediate_size=INNER, bias=False, config=config, reduce_output=False
    )
    assert shared.down_proj.all_reduce is None


@states("W3.7-2")
@both
def test_expert_and_tensor_sizes_multiply_to_the_tensor_parallel_size(gen):
    moe(gen)
    with pytest.raises(ValueError, match="moe|expert"):
        api().Mapping(world_size=4, tp_size=4, moe_tp_size=2, moe_ep_size=4)
    assert api().Mapping(world_size=4, tp_size=4, moe_ep_size=2).moe_tp_size == 2
