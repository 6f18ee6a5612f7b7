"""Each kernel against its formula: on a GPU as compiled, else by Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

CUDA = torch.cuda.is_available()
pytest.importorskip("triton", reason="needs triton")

from trtllm_scaffold.standin.attention.kernel import (  # noqa: E402
    attend,
    causal_mask,
    read_cache,
    slots_of_tokens,
)
from trtllm_scaffold.standin.attention.qk_norm import rotate_heads  # noqa: E402
from trtllm_scaffold.standin.kernels.advance import advance  # noqa: E402
from trtllm_scaffold.standin.kernels.expert_rows import few_tokens  # noqa: E402
from trtllm_scaffold.standin.kernels.matvec import matvec, matvec_swiglu  # noqa: E402
from trtllm_scaffold.standin.kernels.paged_attention import (  # noqa: E402
    Paged,
    paged_attention,
)
from trtllm_scaffold.standin.kernels.rms_norm import rms_norm  # noqa: E402
from trtllm_scaffold.standin.kernels.rotary import (  # noqa: E402
    norm_and_rotate,
    rotate_and_store,
    rotated,
)
from trtllm_scaffold.standin.kernels.swiglu import swiglu  # noqa: E402

DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float16, torch.bfloat16] if CUDA else [torch.float16]


def rand(*shape, dtype=torch.float16, seed=0):
    made = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=made).to(DEVICE, dtype)


def near(found, wanted, dtype):
    """Within two roundings of `dtype` at the size of the largest number."""
    wanted = wanted.float()
    step = torch.finfo(dtype).eps * wanted.abs().max().item()
    assert (found.float() - wanted).abs().max().item() <= 2 * step


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("plus_one", [False, True])
def test_rms_norm_alone_and_with_a_residual(dtype, plus_one):
    x, residual = rand(5, 96, dtype=dtype), rand(5, 96, dtype=dtype, seed=1)
    weight = rand(96, dtype=dtype, seed=2)

    def formula(wide):
        factor = weight.float() + plus_one
        return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5) * factor

    near(rms_norm(x, weight, 1e-5, plus_one=plus_one), formula(x.float()), dtype)
    total = x.float() + residual.float()
    wanted = formula(total)
    normed = rms_norm(x, weight, 1e-5, residual=residual, plus_one=plus_one)
    near(normed, wanted, dtype)
    near(residual, total, dtype)
    assert normed.data_ptr() == x.data_ptr()


def gated(gate, up, limit, gain, offset):
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return gate * torch.sigmoid(gain * gate) * (up + offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("constants", [(None, 1.0, 0.0), (0.7, 1.7, 1.0)])
def test_swiglu_and_its_product_with_one_row(dtype, constants):
    x = rand(3, 2 * 70, dtype=dtype)
    near(swiglu(x, *constants), gated(*x.float().chunk(2, -1), *constants), dtype)
    row, weight = rand(1, 200, dtype=dtype), rand(2 * 70, 200, dtype=dtype, seed=3) / 16
    product = row.float() @ weight.float().T
    wanted = gated(*product.chunk(2, -1), *constants)
    near(matvec_swiglu(row, weight, *constants), wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_up_may_come_before_gate(dtype):
    x = rand(5, 2 * 187, dtype=dtype)
    gate, up = x.chunk(2, -1)
    found = swiglu(torch.cat([up, gate], -1), 1.5, 1.7, 1.0, up_first=True)
    assert torch.equal(found, swiglu(x, 1.5, 1.7, 1.0))
    near(found, gated(gate.float(), up.float(), 1.5, 1.7, 1.0), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, width", [(37, 1500), (2500, 40)])
def test_one_row_times_a_weight(dtype, rows, width):
    x, weight = rand(1, width, dtype=dtype), rand(rows, width, dtype=dtype, seed=4) / 16
    bias = rand(rows, dtype=dtype, seed=5)
    near(matvec(x, weight, bias), F.linear(x.float(), weight.float(), bias.float()), dtype)
    near(matvec(x, weight), F.linear(x.float(), weight.float()), dtype)


def paged_cache(dtype, lens, kv_heads, head_dim, size=8):
    """A layer of a pool, its scattered blocks' table, and the keys and values as dense tensors."""
    width = -(-max(lens) // size)
    total = len(lens) * width
    cache = rand(total, 3, 2, size, kv_heads, head_dim, dtype=dtype, seed=7)[:, 1]
    order = torch.randperm(total, generator=torch.Generator().manual_seed(3))
    table = order.view(len(lens), width).to(DEVICE)
    at = torch.arange(width * size, device=DEVICE)
    who = torch.arange(len(lens), device=DEVICE).unsqueeze(1)
    slots = slots_of_tokens(table, who, at, size, 6 * size)
    return cache, table, *read_cache(cache, slots, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "window, softcap, sinks", [(None, None, False), (13, None, True), (None, 3.0, False)]
)
@pytest.mark.parametrize("kv_heads, groups, head_dim", [(2, 3, 24), (1, 1, 64)])
def test_paged_attention(dtype, window, softcap, sinks, kv_heads, groups, head_dim):
    lens = [70, 1, 33]
    cache, table, keys, values = paged_cache(dtype, lens, kv_heads, head_dim)
    query = rand(3, kv_heads * groups, head_dim, dtype=dtype, seed=8)
    kv_lens = torch.tensor(lens, device=DEVICE)
    sink = rand(kv_heads * groups, dtype=torch.float32, seed=9) if sinks else None
    for longest in (70, 33):  # several parts, and one
        found = paged_attention(
            query,
            Paged(cache, table, kv_lens, longest),
            scale=0.3,
            window=window,
            sinks=sink,
            softcap=softcap,
        )
        mask = causal_mask(kv_lens.unsqueeze(1) - 1, keys.shape[1], window=window)
        wide = query.float().unsqueeze(1)
        if softcap is None:
            wanted = attend(wide, keys, values, mask=mask, scale=0.3, sinks=sink)[:, 0]
        else:
            many = keys.repeat_interleave(groups, 2), values.repeat_interleave(groups, 2)
            score = torch.einsum("bqhd,bkhd->bhqk", wide, many[0]) * 0.3
            score = (softcap * torch.tanh(score / softcap)).masked_fill(~mask, float("-inf"))
            wanted = torch.einsum("bhqk,bkhd->bqhd", score.softmax(-1), many[1])[:, 0]
        near(found, wanted, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("rotary", [24, 16])
def test_rotation_and_storing(dtype, neox, rotary):
    heads, kv_heads, head_dim, tokens = 4, 2, 24, 5
    qkv = rand(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    table = rand(50, 2, rotary // 2, dtype=torch.float32)
    positions = torch.tensor([3, 49, 0, 7, 11], device=DEVICE)
    pool = torch.zeros(6, 3, 2, 4, kv_heads, head_dim, dtype=dtype, device=DEVICE)
    cache = pool[:, 1]
    slots = torch.tensor([24, 1, 123, 0, 50], device=DEVICE)
    parts = qkv.clone().view(tokens, -1, head_dim).split([heads, kv_heads, kv_heads], 1)
    cos, sin = table[positions].unbind(1)
    q, k = (rotate_heads(part, cos, sin, neox) for part in parts[:2])
    rotate_and_store(
        qkv, (heads, kv_heads, head_dim), rope=(table, positions, neox), cache=(cache, slots)
    )
    got = qkv.view(tokens, -1, head_dim).split([heads, kv_heads, kv_heads], 1)
    for found, wanted in zip(got, (q, k, parts[2]), strict=True):
        near(found, wanted, dtype)
    stored_keys, stored_values = read_cache(cache, slots.unsqueeze(1), dtype)
    assert torch.equal(stored_keys[:, 0], got[1]) and torch.equal(stored_values[:, 0], got[2])
    assert int(pool.flatten(0, 3).flatten(1).any(1).sum()) == 2 * tokens


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("rotary, heads", [(24, 1), (16, 11)])
def test_rotation_alone(dtype, neox, rotary, heads):
    fused = rand(5, (heads + 2) * 24, dtype=dtype)
    table = rand(50, 2, rotary // 2, dtype=torch.float32)
    positions = torch.tensor([3, 49, 0, 7, 11], device=DEVICE, dtype=torch.int32)
    part, before = fused[:, 24 : (heads + 1) * 24], fused.clone()
    cos, sin = table[positions.long()].unbind(1)
    wanted = rotate_heads(part.reshape(5, heads, 24), cos, sin, neox)
    near(rotated(part, 24, table, positions, neox).view(5, heads, 24), wanted, dtype)
    assert torch.equal(fused, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("neox", [True, False])
def test_head_norm_and_rotation(dtype, neox):
    heads, kv_heads, head_dim, tokens = 3, 1, 32, 4
    qkv = rand(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    weights = rand(head_dim, dtype=dtype, seed=1), rand(head_dim, dtype=dtype, seed=2)
    frequencies = torch.rand(12, device=DEVICE)
    positions = torch.tensor([[0, 1, 900, 33]], device=DEVICE, dtype=torch.int32)
    parts = qkv.clone().view(tokens, -1, head_dim).float().split([heads, kv_heads, kv_heads], 1)
    angle = positions.view(-1, 1).float() * frequencies
    wanted = []
    for part, weight in zip(parts, weights, strict=False):
        normed = part * torch.rsqrt(part.square().mean(-1, keepdim=True) + 1e-6) * weight.float()
        wanted.append(rotate_heads(normed, angle.cos() * 1.3, angle.sin() * 1.3, neox))
    norm_and_rotate(
        qkv, (heads, kv_heads, head_dim), weights, 1e-6, frequencies, 1.3, positions, neox
    )
    got = qkv.view(tokens, -1, head_dim).split([heads, kv_heads, kv_heads], 1)
    for found, right in zip(got, (*wanted, parts[2]), strict=True):
        near(found, right, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("first_expert", [0, 2])
def test_experts_of_a_few_tokens(dtype, first_expert):
    tokens, hidden, inner, held, top_k = 3, 48, 40, 4, 2
    x = rand(tokens, hidden, dtype=dtype)
    first = rand(held, 2 * inner, hidden, dtype=dtype) / 8
    second = rand(held, hidden, inner, dtype=dtype) / 8
    chosen = torch.tensor([[0, 3], [5, 2], [1, 4]], device=DEVICE)
    share = torch.rand(tokens, top_k, device=DEVICE)
    constants = (0.9, 1.7, 1.0)
    wanted = torch.zeros(tokens, hidden, device=DEVICE)
    for token in range(tokens):
        for place in range(top_k):
            expert = int(chosen[token, place]) - first_expert
            if 0 <= expert < held:
                up, gate = (first[expert].float() @ x[token].float()).chunk(2)
                between = gated(gate, up, *constants).to(dtype).float()
                wanted[token] += share[token, place] * (second[expert].float() @ between)
    found = few_tokens(
        x, first, second, chosen, share, first_expert=first_expert, constants=constants
    )
    near(found, wanted, dtype)


def test_the_step_to_the_next_token():
    table = torch.tensor([[4, 2, 0], [3, 1, 5], [0, 6, 7]], device=DEVICE)
    at = torch.tensor([2, 3, 11], device=DEVICE)
    who = torch.arange(3, device=DEVICE)
    ids = at.int().unsqueeze(0)
    tokens, queries, lens = at.clone(), at.clone().unsqueeze(1), at + 1
    slots = slots_of_tokens(table, who, at, 4, 24)
    advance(ids, tokens, queries, lens, slots, table, 4, 24)
    for found, wanted in ((ids[0], at + 1), (tokens, at + 1), (queries[:, 0], at + 1)):
        assert torch.equal(found.long(), wanted)
    assert torch.equal(lens, at + 2)
    # The last sequence is full: its slot stays inside its last block.
    assert slots.tolist() == [4 * 24 + 3, 1 * 24 + 0, 7 * 24 + 0]
