from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from trtllm_scaffold.standin import generation as generations
from trtllm_scaffold.standin.functional import RotaryScalingType
from trtllm_scaffold.standin.interface import RopeParams
from trtllm_scaffold.standin.modules.rotary import MRotaryEmbedding, RotaryEmbedding

from ..statements import states

HEAD_DIM, HEADS, TOKENS = 16, 3, 40
SHORT = tuple(1 + 0.1 * i for i in range(HEAD_DIM // 2))
LONG = tuple(2 + 0.3 * i for i in range(HEAD_DIM // 2))


def hf_frequencies(kind: str, max_positions: int, seq_len: int | None = None, **rope: object):
    config = LlamaConfig(
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        head_dim=HEAD_DIM,
        max_position_embeddings=max_positions,
        rope_parameters={"rope_type": kind, "rope_theta": 500.0, **rope},
    )
    return ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len)


def table_of(params: RopeParams) -> torch.Tensor:
    """cos and sin of the unfused embedding: [positions, 2, dim / 2]."""
    return RotaryEmbedding(params, head_dim=HEAD_DIM).rotary_cos_sin


def expected_table(frequencies: torch.Tensor, magnitude: float, positions: int) -> torch.Tensor:
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * frequencies.double()
    return torch.stack((angles.cos(), angles.sin()), dim=1) * magnitude


def same(params: RopeParams, frequencies: torch.Tensor, magnitude: float) -> None:
    expected = expected_table(frequencies, magnitude, params.max_positions)
    torch.testing.assert_close(table_of(params).double(), expected, rtol=0, atol=2e-5)


def test_no_scaling_is_the_plain_formula(generation):
    params = RopeParams(dim=HEAD_DIM, theta=500.0, max_positions=64)
    frequencies = 500.0 ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    same(params, frequencies, 1.0)


def test_linear_scaling_equals_transformers(generation):
    frequencies, magnitude = hf_frequencies("linear", 64, factor=4.0)
    kind = RotaryScalingType.linear
    params = RopeParams(dim=HEAD_DIM, theta=500.0, max_positions=64, scale_type=kind, scale=4.0)
    same(params, frequencies, magnitude)


def test_llama3_scaling_equals_transformers(generation):
    rope = {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    frequencies, magnitude = hf_frequencies("llama3", 512, **rope)
    params = RopeParams(
        dim=HEAD_DIM,
        theta=500.0,
        max_positions=512,
        scale_type=RotaryScalingType.llama3,
        scale=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_positions=64,
    )
    plain = 500.0 ** (-torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    ratio = plain / frequencies
    assert ratio.min() < 1.01 and ratio.max() > 7.9 and ((ratio > 1.1) & (ratio < 7)).any()
    same(params, frequencies, magnitude)


@states("A9-7")
@pytest.mark.parametrize("original", [16, 64])
def test_yarn_scaling_equals_transformers(original, generation):
    rope = {"factor": 4.0, "original_max_position_embeddings": original}
    frequencies, magnitude = hf_frequencies("yarn", 4 * original, **rope)
    assert magnitude == pytest.approx(0.1 * math.log(4) + 1)
    params = RopeParams(
        dim=HEAD_DIM,
        theta=500.0,
        max_positions=4 * original,
        scale_type=RotaryScalingType.yarn,
        scale=4.0,
        original_max_positions=original,
    )
    same(params, frequencies, magnitude)


def test_yarn_with_two_magnitudes_uses_their_ratio(generation):
    params = RopeParams(
        dim=HEAD_DIM,
        max_positions=64,
        scale_type=RotaryScalingType.yarn,
        scale=4.0,
        original_max_positions=16,
        mscale=0.7,
        mscale_all_dim=1.3,
    )
    expected = (0.07 * math.log(4) + 1) / (0.13 * math.log(4) + 1)
    assert table_of(params)[0, 0, 0].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("max_seq_len", "is_long"), [(None, True), (64, True), (33, True), (32, False), (8, False)]
)
def test_longrope_takes_one_factor_set_from_the_longest_sequence(max_seq_len, is_long, generation):
    rope = {
        "short_factor": list(SHORT),
        "long_factor": list(LONG),
        "original_max_position_embeddings": 32,
    }
    frequencies, magnitude = hf_frequencies("longrope", 128, 33 if is_long else 32, **rope)
    assert magnitude == pytest.approx(math.sqrt(1 + math.log(4) / math.log(32)))
    params = RopeParams(
        dim=HEAD_DIM,
        theta=500.0,
        max_positions=128,
        scale_type=RotaryScalingType.longrope,
        original_max_positions=32,
        short_factor=SHORT,
        long_factor=LONG,
        max_seq_len=max_seq_len,
    )
    same(params, frequencies, magnitude)
    assert params.create_rope_const_params()[0] is None


def test_longrope_without_stretch_has_no_magnitude(generation):
    params = RopeParams(
        dim=HEAD_DIM,
        max_positions=32,
        scale_type=RotaryScalingType.longrope,
        original_max_positions=32,
        short_factor=SHORT,
        long_factor=LONG,
        max_seq_len=8,
    )
    assert table_of(params)[0, 0].tolist() == [1.0] * (HEAD_DIM // 2)


@states("A9-12")
def test_dynamic_scaling_raises_theta_by_alpha_once(generation):
    kind = RotaryScalingType.dynamic
    params = RopeParams(dim=HEAD_DIM, theta=500.0, max_positions=64, scale_type=kind, alpha=3.0)
    base = 500.0 * 3.0 ** (HEAD_DIM / (HEAD_DIM - 2))
    frequencies = base ** (-torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    same(params, frequencies, 1.0)
    # Within the original length transformers does the same with a factor of any size.
    hf, _ = hf_frequencies("dynamic", 64, 64, factor=2.0)
    params = RopeParams(dim=HEAD_DIM, theta=500.0, max_positions=64, scale_type=kind, scale=2.0)
    same(params, hf, 1.0)


def turned(x: torch.Tensor, table: torch.Tensor, neox: bool) -> torch.Tensor:
    """Rotation as multiplication of complex numbers, in float64."""
    dim = 2 * table.shape[-1]
    part, rest = x[..., :dim].double(), x[..., dim:].double()
    if neox:
        pairs = torch.complex(part[..., : dim // 2], part[..., dim // 2 :])
    else:
        pairs = torch.view_as_complex(part.unflatten(-1, (-1, 2)).contiguous())
    angle = torch.complex(table[:, 0].double(), table[:, 1].double())[:, None]
    result = pairs * angle
    if neox:
        whole = torch.cat((result.real, result.imag), dim=-1)
    else:
        whole = torch.view_as_real(result).flatten(-2)
    return torch.cat((whole, rest), dim=-1)


@states("A9-9")
@pytest.mark.parametrize("dim", [HEAD_DIM, 6])
@pytest.mark.parametrize("neox", [True, False])
def test_heads_are_turned_pairwise_and_the_rest_passes(neox, dim, generation):
    rope = RotaryEmbedding(RopeParams(dim=dim, max_positions=64), head_dim=HEAD_DIM, is_neox=neox)
    positions = torch.randint(0, 64, (TOKENS,))
    q, k = torch.randn(TOKENS, HEADS * HEAD_DIM), torch.randn(TOKENS, HEAD_DIM)
    table = rope.rotary_cos_sin[positions]
    for actual, x in zip(rope(positions[None], [q, k]), (q, k), strict=True):
        expected = turned(x.view(TOKENS, -1, HEAD_DIM), table, neox).flatten(1)
        assert actual.shape == x.shape
        torch.testing.assert_close(actual.double(), expected, rtol=1e-6, atol=1e-6)


def test_the_number_of_targets_is_free_and_a_batch_axis_is_kept(generation):
    rope = RotaryEmbedding(RopeParams(dim=HEAD_DIM, max_positions=64), head_dim=HEAD_DIM)
    positions = torch.arange(TOKENS)[None]
    x = torch.randn(2, TOKENS, HEADS * HEAD_DIM)
    (batched,) = rope(positions, [x])
    assert batched.shape == x.shape
    for row in range(2):
        torch.testing.assert_close(batched[row], rope(positions, [x[row]])[0])


def test_half_heads_are_turned_in_float32(generation):
    rope = RotaryEmbedding(RopeParams(dim=HEAD_DIM, max_positions=64), head_dim=HEAD_DIM)
    positions = torch.arange(TOKENS)[None]
    x = torch.randn(TOKENS, HEAD_DIM).bfloat16()
    assert torch.equal(rope(positions, [x])[0], rope(positions, [x.float()])[0].bfloat16())


@states("A9-11")
def test_a_position_beyond_the_table_is_an_error(generation):
    rope = RotaryEmbedding(RopeParams(dim=HEAD_DIM, max_positions=8), head_dim=HEAD_DIM)
    with pytest.raises(IndexError):
        rope(torch.tensor([[8]]), [torch.randn(1, HEAD_DIM)])


def test_the_static_form_equals_the_module(generation):
    rope = RotaryEmbedding(RopeParams(dim=HEAD_DIM, max_positions=64), head_dim=HEAD_DIM)
    positions = torch.arange(TOKENS)
    x = torch.randn(TOKENS, HEADS * HEAD_DIM)
    table = rope.rotary_cos_sin[positions]
    heads = x.view(1, TOKENS, HEADS, HEAD_DIM)
    direct = RotaryEmbedding.apply_rotary_pos_emb(
        heads.transpose(1, 2), table[None, :, 0], table[None, :, 1]
    )
    torch.testing.assert_close(
        direct.transpose(1, 2).reshape(TOKENS, -1), rope(positions[None], [x])[0]
    )


def test_inverse_rotation_is_of_the_new_generation():
    params = RopeParams(dim=HEAD_DIM, max_positions=64)
    generations.set_active("1.2")
    with pytest.raises(TypeError, match="inverse"):
        RotaryEmbedding(params, head_dim=HEAD_DIM, inverse=True)
    generations.set_active("1.4")
    there = RotaryEmbedding(params, head_dim=HEAD_DIM)
    back = RotaryEmbedding(params, head_dim=HEAD_DIM, inverse=True)
    positions, x = torch.arange(TOKENS)[None], torch.randn(TOKENS, HEAD_DIM)
    torch.testing.assert_close(back(positions, there(positions, [x]))[0], x, rtol=1e-4, atol=1e-5)


@states("A1-3")
@pytest.mark.parametrize("interleaved", [False, True])
def test_three_axes_of_equal_positions_equal_one_axis(interleaved, generation):
    params = RopeParams(dim=HEAD_DIM, max_positions=64)
    multi = MRotaryEmbedding(
        params, head_dim=HEAD_DIM, mrope_section=[4, 2, 2], mrope_interleaved=interleaved
    )
    plain = RotaryEmbedding(params, head_dim=HEAD_DIM)
    positions, x = torch.arange(TOKENS)[None], torch.randn(TOKENS, HEAD_DIM)
    expected = plain(positions, [x])[0]
    three = positions[None].expand(3, 1, TOKENS)
    torch.testing.assert_close(multi(three, [x])[0], expected)
    torch.testing.assert_close(multi(positions, [x])[0], expected)


@states("A1-3")
def test_sections_take_their_frequencies_from_their_axis(generation):
    params = RopeParams(dim=HEAD_DIM, max_positions=64)
    multi = MRotaryEmbedding(params, head_dim=HEAD_DIM, mrope_section=[4, 2, 2])
    cos, _ = multi.get_cos_sin(torch.tensor([[[5]], [[9]], [[30]]]))
    rows = multi.rotary_cos_sin[:, 0]
    assert cos.shape == (1, 1, HEAD_DIM // 2)
    torch.testing.assert_close(cos[0, 0], torch.cat((rows[5, :4], rows[9, 4:6], rows[30, 6:])))


@states("A9-10")
def test_tables_are_shared_and_given_back(generation):
    params = RopeParams(dim=HEAD_DIM, max_positions=77)
    first = params.create_rope_const_params(interleave=False)[1]
    again = RopeParams(dim=HEAD_DIM, max_positions=77).create_rope_const_params(interleave=False)
    assert again[1] is first


def test_the_kernel_table_alternates_cos_and_sin(generation):
    params = RopeParams(dim=4, max_positions=3, duplicate_data=False)
    frequencies, table = params.create_rope_const_params()
    assert frequencies.shape == (2,) and table.shape == (1, 12)
    angles = torch.arange(3.0)[:, None] * frequencies
    expected = torch.stack((angles.cos(), angles.sin()), dim=-1).reshape(1, -1)
    torch.testing.assert_close(table, expected)
    assert RopeParams().create_rope_const_params() == (None, None)


def config(**more: object) -> SimpleNamespace:
    base = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 99,
        "model_type": "any",
    }
    made = SimpleNamespace(**base | more)
    made.update = lambda values: made.__dict__.update(values)
    return made


@states("A9-1", "W1.8-4")
def test_from_config_reads_the_flat_attributes(generation):
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 5.0,
        "original_max_position_embeddings": 33,
    }
    params = RopeParams.from_config(
        config(rope_theta=77.0, rope_scaling=scaling, partial_rotary_factor=0.5, head_dim=32)
    )
    assert (params.dim, params.theta, params.max_positions) == (16, 77.0, 99)
    assert (params.scale_type, params.scale) == (RotaryScalingType.llama3, 8.0)
    assert (params.low_freq_factor, params.high_freq_factor) == (2.0, 5.0)
    assert params.original_max_positions == 33
    assert RopeParams.from_config(config(head_dim=None)).dim == 16


@states("A9-3")
def test_from_config_takes_the_neox_theta_for_a_width(generation):
    assert RopeParams.from_config(config(rotary_emb_base=10000)).dim == 10000


@states("A9-4", "A9-5")
def test_default_scaling_is_refused_by_1_2_and_none_in_1_4():
    asked = config(rope_scaling={"rope_type": "default"})
    generations.set_active("1.2")
    with pytest.raises(ValueError, match="default"):
        RopeParams.from_config(asked)
    generations.set_active("1.4")
    assert RopeParams.from_config(asked).scale_type is RotaryScalingType.none


@states("A9-2", "W1.8-1", "W1.8-2")
def test_rope_parameters_are_read_and_written_back_by_1_4_only():
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0, "partial_rotary_factor": 0.5}
    generations.set_active("1.2")
    old = RopeParams.from_config(config(rope_parameters=rope))
    assert (old.theta, old.dim, old.scale_type) == (10000.0, 16, RotaryScalingType.none)
    generations.set_active("1.4")
    asked = config(rope_parameters=rope)
    new = RopeParams.from_config(asked)
    assert (new.theta, new.dim, new.scale_type) == (5.0, 8, RotaryScalingType.linear)
    assert asked.rope_theta == 5.0


@states("A9-2", "W1.8-3")
def test_per_layer_rope_parameters_give_the_full_attention_entry():
    generations.set_active("1.4")
    nested = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 3.0},
        "full_attention": {"rope_type": "default", "rope_theta": 4.0},
    }
    assert RopeParams.from_config(config(rope_parameters=nested)).theta == 4.0


@states("A9-1")
def test_longrope_factors_become_hashable_tuples(generation):
    scaling = {"type": "longrope", "short_factor": list(SHORT), "long_factor": list(LONG)}
    asked = config(rope_scaling=scaling, original_max_position_embeddings=32, max_seq_len=8)
    params = RopeParams.from_config(asked)
    assert hash(params) and params.short_factor == SHORT and params.max_seq_len == 8
    assert params.original_max_positions == 32
