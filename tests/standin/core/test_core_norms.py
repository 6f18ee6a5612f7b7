from __future__ import annotations

import pytest
import torch

from trtllm_scaffold.standin import generation as generations
from trtllm_scaffold.standin.modules.norms import LayerNorm, RMSNorm

from ..statements import states

WIDTH, EPS = 48, 1e-3


def rms(x: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * factor.double()


def layer(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    x = x.double()
    centred = x - x.mean(-1, keepdim=True)
    spread = (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    return centred / spread * weight.double() + bias.double()


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-6) -> None:
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def random(norm: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
    return norm


@states("C1-5")
@pytest.mark.parametrize("gemma", [False, True])
def test_rms_norm_equals_the_formula(gemma, generation):
    norm = random(RMSNorm(hidden_size=WIDTH, eps=EPS, use_gemma=gemma))
    x = torch.randn(5, WIDTH)
    close(norm(x), rms(x, norm.weight + 1 if gemma else norm.weight))
    assert norm.variance_epsilon == EPS


@states("C1-5")
def test_gemma_weights_start_at_zero_and_others_at_one(generation):
    assert (RMSNorm(hidden_size=4, eps=EPS, use_gemma=True).weight == 0).all()
    assert (RMSNorm(hidden_size=4, eps=EPS).weight == 1).all()
    with pytest.raises(ValueError, match="use_gemma"):
        RMSNorm(hidden_size=4, eps=EPS, use_gemma=True, has_weights=False)


@states("C1-5")
def test_a_norm_without_weights_has_no_parameters_and_saves_nothing(generation):
    norm = RMSNorm(hidden_size=WIDTH, eps=EPS, has_weights=False)
    assert list(norm.parameters()) == [] and norm.state_dict() == {}
    x = torch.randn(2, WIDTH)
    close(norm(x), rms(x, torch.ones(WIDTH)))


@states("C1-1", "C1-2")
@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_no_residual_gives_a_tensor_and_none_gives_a_pair(kind, generation):
    norm, x = random(kind(hidden_size=WIDTH, eps=EPS)), torch.randn(2, WIDTH)
    plain = norm(x)
    assert isinstance(plain, torch.Tensor)
    normed, residual = norm(x, None)
    assert residual is None
    torch.testing.assert_close(normed, plain)


@states("C1-1", "C1-3")
@pytest.mark.parametrize("gemma", [False, True])
def test_rms_norm_returns_the_unnormalised_sum_and_writes_into_its_inputs(gemma, generation):
    norm = random(RMSNorm(hidden_size=WIDTH, eps=EPS, use_gemma=gemma))
    x, residual = torch.randn(3, WIDTH), torch.randn(3, WIDTH)
    total = x + residual
    with torch.inference_mode():
        normed, carried = norm(x, residual)
    torch.testing.assert_close(carried, total)
    close(normed, rms(total, norm.weight + 1 if gemma else norm.weight))
    assert carried is residual and normed is x


@states("C1-4")
def test_the_norm_reads_the_sum_before_it_is_rounded(generation):
    norm = RMSNorm(hidden_size=2, eps=0.0, dtype=torch.bfloat16)
    # 256 + 1 rounds to 256 in bfloat16; the norm must still see 257.
    x = torch.tensor([[256.0, 0.0]], dtype=torch.bfloat16)
    residual = torch.tensor([[1.0, 128.0]], dtype=torch.bfloat16)
    with torch.inference_mode():
        normed, carried = norm(x.clone(), residual.clone())
    exact = torch.tensor([[257.0, 128.0]])
    expected = exact / exact.square().mean(-1, keepdim=True).sqrt()
    assert torch.equal(normed, expected.bfloat16())
    assert torch.equal(carried, torch.tensor([[256.0, 128.0]], dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_half_inputs_are_normalised_in_float32_and_rounded_once(kind, dtype, generation):
    norm = random(kind(hidden_size=WIDTH, eps=EPS, dtype=dtype))
    x = torch.randn(4, WIDTH).to(dtype)
    wide = kind(hidden_size=WIDTH, eps=EPS)
    wide.load_state_dict({key: value.float() for key, value in norm.state_dict().items()})
    assert norm(x).dtype == dtype
    torch.testing.assert_close(norm(x), wide(x.float()).to(dtype), rtol=0, atol=0)


@states("C1-6")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_layer_norm_equals_the_formula(weights, bias, generation):
    norm = LayerNorm(hidden_size=WIDTH, eps=EPS, has_weights=weights, has_bias=bias)
    random(norm)
    names = {name for name, _ in norm.named_parameters()}
    assert names == {n for n, there in (("weight", weights), ("bias", bias)) if there}
    assert set(norm.state_dict()) == names
    x = torch.randn(5, WIDTH) + 3
    close(norm(x), layer(x, norm.weight, norm.bias))


@states("C1-1", "C1-3")
def test_layer_norm_adds_the_residual_and_leaves_its_inputs(generation):
    norm = random(LayerNorm(hidden_size=WIDTH, eps=EPS))
    x, residual = torch.randn(3, WIDTH), torch.randn(3, WIDTH)
    kept = (x.clone(), residual.clone())
    normed, carried = norm(x, residual)
    torch.testing.assert_close(carried, x + residual)
    close(normed, layer(x + residual, norm.weight, norm.bias))
    assert torch.equal(x, kept[0]) and torch.equal(residual, kept[1])


@states("C1-12")
@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_a_skipped_norm_returns_its_inputs(kind, generation):
    norm, x, residual = kind(hidden_size=4, eps=EPS), torch.randn(1, 4), torch.randn(1, 4)
    assert norm.skip_forward(x) is x
    assert norm.skip_forward(x, residual) == (x, residual)
    assert norm.skip_forward(x, None) == (x, None)


def test_options_of_the_new_generation_are_refused_in_the_old():
    generations.set_active("1.2")
    with pytest.raises(TypeError, match="quantize_type"):
        RMSNorm(hidden_size=4, eps=EPS, quantize_type="nvfp4")
    with pytest.raises(TypeError, match="return_norm_out"):
        RMSNorm(hidden_size=4, eps=EPS)(torch.randn(1, 4), return_norm_out=True)
    generations.set_active("1.4")
    norm = RMSNorm(hidden_size=4, eps=EPS, quantize_type="nvfp4")
    assert norm.is_nvfp4 is False
    with pytest.raises(NotImplementedError, match="int8"):
        LayerNorm(hidden_size=4, eps=EPS, quantize_type="int8")
