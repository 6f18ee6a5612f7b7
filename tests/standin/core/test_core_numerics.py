"""Every layer against a formula in float64: float32 to 1e-6, bfloat16 to its own rounding."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from trtllm_scaffold.standin.attention.kernel import attend
from trtllm_scaffold.standin.interface import RopeParams
from trtllm_scaffold.standin.modules.embedding import Embedding, LMHead
from trtllm_scaffold.standin.modules.linear import Linear
from trtllm_scaffold.standin.modules.mlp import MLP, GatedMLP
from trtllm_scaffold.standin.modules.norms import LayerNorm, RMSNorm
from trtllm_scaffold.standin.modules.rotary import RotaryEmbedding

TOKENS, HIDDEN, INNER, VOCABULARY = 13, 96, 160, 101
EPS = 1e-5
#: Half a unit in the last place of bfloat16, relative to the number.
HALF_ULP = 2.0**-8


def filled(layer, dtype):
    layer = layer.to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():
            scale = 1.0 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape) * scale)
    return layer.eval()


def wide(layer) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in layer.named_parameters()}


def product(w, name, x):
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def rms(layer, x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * wide(layer)["weight"]


def gemma(layer, x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * (1 + wide(layer)["weight"])


def layer_norm(layer, x):
    w = wide(layer)
    centred = x - x.mean(-1, keepdim=True)
    unit = centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()
    return unit * w["weight"] + w["bias"]


def linear(layer, x):
    w = wide(layer)
    return x @ w["weight"].T + w["bias"]


def gated(layer, x):
    gate, up = rounded(product(wide(layer), "gate_up_proj", x), layer).chunk(2, -1)
    return product(wide(layer), "down_proj", rounded(gate * torch.sigmoid(gate) * up, layer))


def plain(layer, x):
    hidden = rounded(product(wide(layer), "up_proj", x), layer)
    return product(wide(layer), "down_proj", rounded(hidden.clamp(min=0) ** 2, layer))


def rounded(x, layer):
    """As the layer keeps it between its two products."""
    return x.to(next(layer.parameters()).dtype).double()


def square_relu(x):
    return F.relu(x) ** 2


LAYERS = {
    "RMSNorm": (lambda: RMSNorm(hidden_size=HIDDEN, eps=EPS), rms),
    "RMSNorm, 1 + w": (lambda: RMSNorm(hidden_size=HIDDEN, eps=EPS, use_gemma=True), gemma),
    "LayerNorm": (lambda: LayerNorm(hidden_size=HIDDEN, eps=EPS), layer_norm),
    "Linear": (lambda: Linear(HIDDEN, INNER), linear),
    "LMHead": (lambda: LMHead(VOCABULARY, HIDDEN), lambda head, x: x @ wide(head)["weight"].T),
    "GatedMLP": (
        lambda: GatedMLP(hidden_size=HIDDEN, intermediate_size=INNER, bias=True),
        gated,
    ),
    "MLP": (
        lambda: MLP(hidden_size=HIDDEN, intermediate_size=INNER, bias=True, activation=square_relu),
        plain,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_float32_layers_equal_the_formula_to_one_in_a_million(name, generation):
    make, formula = LAYERS[name]
    layer = filled(make(), torch.float32)
    x = torch.randn(TOKENS, HIDDEN)
    error = (layer(x).double() - formula(layer, x.double())).abs().max()
    assert error <= 1e-6 * formula(layer, x.double()).abs().max()


@pytest.mark.parametrize("name", LAYERS)
def test_bfloat16_layers_round_their_result_once(name, generation):
    make, formula = LAYERS[name]
    layer = filled(make(), torch.bfloat16)
    x = torch.randn(TOKENS, HIDDEN).bfloat16()
    got, wanted = layer(x), formula(layer, x.double())
    assert got.dtype == torch.bfloat16
    # A layer of two products may round an inner number to its other neighbour.
    slack = 1e-5 if "MLP" not in name else 4e-3
    bound = HALF_ULP * wanted.abs() * 1.01 + slack * wanted.abs().max()
    assert ((got.double() - wanted).abs() <= bound).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_table_are_copied(dtype, generation):
    table = filled(Embedding(VOCABULARY, HIDDEN), dtype)
    ids = torch.randint(VOCABULARY, (TOKENS,))
    assert torch.equal(table(ids), table.weight[ids])


@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_equals_the_formula(neox, dtype, generation):
    dim, theta = 32, 10000.0
    params = RopeParams(dim=dim, theta=theta, max_positions=64)
    rotary = RotaryEmbedding(params, head_dim=48, is_neox=neox)
    positions, x = torch.arange(TOKENS), torch.randn(TOKENS, 2 * 48).to(dtype)
    got = rotary(positions[None], [x])[0].double().view(TOKENS, 2, 48)
    heads = x.double().view(TOKENS, 2, 48)
    frequency = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = (positions[:, None] * frequency)[:, None]
    turned = heads[..., :dim]
    a, b = turned.chunk(2, -1) if neox else (turned[..., ::2], turned[..., 1::2])
    a, b = a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()
    wanted = torch.cat([a, b], -1) if neox else torch.stack([a, b], -1).flatten(-2)
    # The table is float32: an angle of up to 13 is off by half a unit in its last place.
    bound = 2e-6 if dtype == torch.float32 else HALF_ULP * 4
    assert (got[..., :dim] - wanted).abs().max() <= bound
    assert torch.equal(got[..., dim:], heads[..., dim:])


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("heads", [(6, 6), (6, 2), (6, 1)])
def test_scores_and_values_equal_the_formula(heads, sinks, generation):
    queries, groups = heads
    q = torch.randn(2, TOKENS, queries, 16)
    k, v = (torch.randn(2, TOKENS, groups, 16) for _ in range(2))
    sink = torch.randn(queries) if sinks else None
    got = attend(q, k, v, mask=None, scale=0.3, sinks=sink)
    q64, k64, v64 = (part.double().transpose(1, 2) for part in (q, k, v))
    k64, v64 = (part.repeat_interleave(queries // groups, 1) for part in (k64, v64))
    scores = 0.3 * q64 @ k64.transpose(-1, -2)
    scores = scores.masked_fill(torch.ones(TOKENS, TOKENS).triu(1) > 0, -math.inf)
    if sinks:
        column = sink.double().view(1, -1, 1, 1).expand(2, -1, TOKENS, 1)
        weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    wanted = (weights @ v64).transpose(1, 2)
    assert (got.double() - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("kind", ["RMSNorm", "LayerNorm"])
def test_norms_with_a_residual_equal_the_formula(kind, generation):
    make, formula = LAYERS[kind]
    layer = filled(make(), torch.float32)
    x, residual = torch.randn(TOKENS, HIDDEN), torch.randn(TOKENS, HIDDEN)
    total = x.double() + residual.double()
    normed, kept = layer(x.clone(), residual.clone())
    wanted = formula(layer, total)
    assert (normed.double() - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert (kept.double() - total).abs().max() <= 1e-6 * total.abs().max()
