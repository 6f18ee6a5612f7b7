"""The products over the experts of a rank, in the form that suits the device and the batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trtllm_scaffold.standin.kernels.choice import fits
from trtllm_scaffold.standin.utils import ActivationType

if TYPE_CHECKING:
    from trtllm_scaffold.standin.moe.interface import MoE

#: Above so many multiplications, computing every expert for every token costs too much.
DENSE_LIMIT = 1 << 28
#: Up to so many (token, expert) pairs each reads its expert's weights by itself.
FEW_PAIRS = 16


def compute(
    layer: MoE, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """This rank's part of the weighted sum, ``[tokens, hidden]``, summed in float32.

    On a GPU in 16 bits: a few tokens read their experts' weights in place, more of them are
    sorted by expert for grouped products. Else all experts at once where that is cheap or a
    CUDA graph is being captured (no shape may depend on the choice then), or the tokens of one
    expert after the other.
    """
    if layer.apply_router_weight_on_input:
        assert chosen.shape[1] == 1, "router weights go on the input for one expert per token only"
    if weights is None:
        weights = torch.ones(chosen.shape, device=x.device)
    weights = weights.float()
    if fits(x, layer.w3_w1_weight) and x.is_contiguous():
        constants = plain_constants(layer)
        if constants is not None and chosen.numel() <= FEW_PAIRS:
            return _few(layer, x, chosen, weights, constants)
        if _groups(layer):
            return _grouped(layer, x, chosen, weights)
    count, inner = layer.expert_size_per_partition, layer.intermediate_size_per_partition
    cost = x.shape[0] * count * inner * layer.hidden_size
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
    every = cost <= DENSE_LIMIT or capturing
    return (_every_expert if every else _in_turn)(layer, x, chosen, weights)


def plain_constants(layer: MoE) -> tuple[float | None, float, float] | None:
    """Limit, gain and offset of a gated SiLU without biases; None for any other expert."""
    formula = layer.formula
    if formula.kind not in (ActivationType.Swiglu, ActivationType.SwigluBias):
        return None
    constants = formula.constants
    given = constants.limit, constants.alpha, constants.beta
    own = layer.w3_w1_bias is not None or layer.apply_router_weight_on_input
    if own or any(isinstance(value, torch.Tensor) for value in given):
        return None
    limit, gain, offset = given
    return limit, 1.0 if gain is None else float(gain), float(offset or 0.0)


def _few(
    layer: MoE,
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    constants: tuple[float | None, float, float],
) -> torch.Tensor:
    from trtllm_scaffold.standin.kernels.expert_rows import few_tokens

    return few_tokens(
        x,
        layer.w3_w1_weight,
        layer.w2_weight,
        chosen.contiguous(),
        weights.contiguous(),
        first_expert=layer.slot_start,
        constants=constants,
    )


def _groups(layer: MoE) -> bool:
    """Whether torch has the grouped product for these widths (rows of 16 bytes, Hopper on)."""
    widths = layer.hidden_size, layer.intermediate_size_per_partition
    able = torch.cuda.get_device_capability(layer.w2_weight.device) >= (9, 0)
    return able and hasattr(torch, "_grouped_mm") and all(width % 8 == 0 for width in widths)


def _grouped(
    layer: MoE, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    count, top_k = layer.expert_size_per_partition, chosen.shape[1]
    alone = count == layer.num_experts
    # Few bits are sorted fast.
    local = chosen.flatten().to(torch.int16)
    if not alone:  # pairs of other ranks are sorted behind the last group
        local = local - layer.slot_start
        local = local.masked_fill((local < 0) | (local >= count), count)
    ranked, order = local.sort(stable=True)
    numbers = torch.arange(count, device=x.device, dtype=torch.int16)
    ends = torch.searchsorted(ranked, numbers, right=True, out_int32=True)
    share = weights.flatten()[order].unsqueeze(-1)
    rows = x[order // top_k]
    if layer.apply_router_weight_on_input:
        rows, share = (rows * share).to(x.dtype), torch.ones_like(share)
    output = _grouped_rows(layer, rows, ends, ranked) * share
    if not alone:  # rows behind the last group hold whatever was there
        output = output.masked_fill((ranked == count).unsqueeze(-1), 0)
    placed = torch.empty_like(output).index_copy_(0, order, output)
    return placed.view(x.shape[0], top_k, -1).sum(1).to(x.dtype)


def _grouped_rows(
    layer: MoE, rows: torch.Tensor, ends: torch.Tensor, ranked: torch.Tensor
) -> torch.Tensor:
    """``[pairs, hidden]`` through the expert of each pair.

    Args:
        layer: The experts.
        rows: ``[pairs, hidden]``, sorted by expert.
        ends: ``[experts]`` int32, where the rows of each expert end.
        ranked: ``[pairs]`` local expert of each row.
    """
    which = ranked.long().clamp(max=layer.expert_size_per_partition - 1)
    hidden = torch._grouped_mm(rows, layer.w3_w1_weight.transpose(1, 2), offs=ends)
    if layer.w3_w1_bias is not None:
        hidden = hidden + layer.w3_w1_bias[which]
    constants = plain_constants(layer)
    if constants is None:
        hidden = _activated(layer, hidden, which)
    else:
        from trtllm_scaffold.standin.kernels.swiglu import swiglu

        hidden = swiglu(hidden, *constants, up_first=True)
    output = torch._grouped_mm(hidden, layer.w2_weight.transpose(1, 2), offs=ends)
    if layer.w2_bias is not None and layer.tp_rank == 0:
        output = output + layer.w2_bias[which]
    return output


def _activated(layer: MoE, hidden: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """The activation of ``[pairs, width]``, row by row with the constants of its expert."""
    rows = hidden.unsqueeze(1)
    up, first = rows.chunk(2, -1) if layer.formula.gated else (None, rows)
    return layer.formula(first, up, which).squeeze(1)


def _every_expert(
    layer: MoE, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    shape = (x.shape[0], layer.num_experts)
    share = torch.zeros(shape, device=x.device).scatter_add_(1, chosen, weights)
    taken = torch.zeros(shape, dtype=torch.bool, device=x.device).scatter_(1, chosen, True)
    mine = slice(layer.slot_start, layer.slot_start + layer.expert_size_per_partition)
    # [tokens, experts] -> [experts, tokens, 1]
    share, taken = share[:, mine].T.unsqueeze(-1), taken[:, mine].T.unsqueeze(-1)
    rows = x.unsqueeze(0).expand(share.shape[0], -1, -1)
    if layer.apply_router_weight_on_input:
        rows = (rows * share).to(x.dtype)
        share = taken.float()
    output = _experts(layer, rows, slice(None))
    # An expert that was not asked may overflow: it must not turn zero into NaN.
    return (output.float() * share).masked_fill(~taken, 0).sum(0).to(x.dtype)


def _in_turn(
    layer: MoE, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    top_k = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=layer.num_experts).tolist()
    start = sum(counts[: layer.slot_start])
    flat = weights.flatten()
    for local in range(layer.expert_size_per_partition):
        size = counts[layer.slot_start + local]
        picked = order[start : start + size]
        start += size
        if size == 0:
            continue
        tokens, share = picked // top_k, flat[picked].unsqueeze(-1)
        rows = x[tokens]
        if layer.apply_router_weight_on_input:
            rows, share = (rows * share).to(x.dtype), torch.ones_like(share)
        output = _experts(layer, rows.unsqueeze(0), slice(local, local + 1))[0]
        total.index_add_(0, tokens, output.float() * share)
    return total.to(x.dtype)


def _experts(layer: MoE, rows: torch.Tensor, which: slice) -> torch.Tensor:
    """``[experts, rows, hidden]`` through the experts ``which``."""
    hidden = torch.bmm(rows, layer.w3_w1_weight[which].transpose(1, 2))
    if layer.w3_w1_bias is not None:
        hidden = hidden + layer.w3_w1_bias[which].unsqueeze(1)
    up, first = hidden.chunk(2, -1) if layer.formula.gated else (None, hidden)
    hidden = layer.formula(first, up, which)
    output = torch.bmm(hidden, layer.w2_weight[which].transpose(1, 2))
    # The sum over tensor-parallel ranks must hold the bias once.
    if layer.w2_bias is not None and layer.tp_rank == 0:
        output = output + layer.w2_bias[which].unsqueeze(1)
    return output
