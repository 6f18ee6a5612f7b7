"""Expert weights: their shapes and loading, and the products over all experts of a rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trtllm_scaffold.standin.weight_shards import TensorParallelMode, copy_weight, load_weight_shard

if TYPE_CHECKING:
    from trtllm_scaffold.standin.moe.interface import MoE

#: Above so many multiplications, computing every expert for every token costs too much.
DENSE_LIMIT = 1 << 28


def create(layer: MoE) -> None:
    """Make the stacked parameters of this rank's experts."""
    count, inner = layer.expert_size_per_partition, layer.intermediate_size_per_partition
    rows = inner * (2 if layer.formula.gated else 1)
    shapes: dict[str, tuple[int, ...]] = {
        "w3_w1_weight": (count, rows, layer.hidden_size),
        "w2_weight": (count, layer.hidden_size, inner),
    }
    if layer.bias:
        shapes |= {"w3_w1_bias": (count, rows), "w2_bias": (count, layer.hidden_size)}
    for name in ("w3_w1_weight", "w2_weight", "w3_w1_bias", "w2_bias"):
        if name not in shapes:
            layer.register_parameter(name, None)
            continue
        tensor = torch.empty(shapes[name], dtype=layer.dtype)
        layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def load_each(layer: MoE, weights: dict[str, Any], partial: bool) -> None:
    """From ``{e}.w1.weight`` (gate), ``{e}.w3.weight`` (up), ``{e}.w2.weight`` (down)."""
    for local, expert in enumerate(layer.initial_local_expert_ids):
        for part in ("w1", "w3", "w2"):
            for kind in ("weight", "bias") if layer.bias else ("weight",):
                key = f"{expert}.{part}.{kind}"
                target = _target(layer, local, part, kind)
                if target is None or (partial and key not in weights):
                    continue
                copy_weight(target, _shard(layer, weights[key], part))


def load_stacked(layer: MoE, weights: dict[str, Any], partial: bool) -> None:
    """From ``gate_up_proj`` ``[E, hidden, 2 * inner]`` and ``down_proj`` ``[E, inner, hidden]``."""
    for kind in ("weight", "bias") if layer.bias else ("weight",):
        suffix = "" if kind == "weight" else ".bias"
        keys = f"gate_up_proj{suffix}", f"down_proj{suffix}"
        if partial and not all(key in weights for key in keys):
            continue
        both, down = weights[keys[0]], weights[keys[1]]
        for local, expert in enumerate(layer.initial_local_expert_ids):
            # Stacked weights are [in, out], a Linear's are [out, in].
            rows, last = both[expert], down[expert]
            if kind == "weight":
                rows, last = rows.transpose(-1, -2), last.transpose(-1, -2)
            gate, up = rows.chunk(2, dim=0)
            for part, value in (("w1", gate), ("w3", up), ("w2", last)):
                target = _target(layer, local, part, kind)
                assert target is not None, "stacked experts are gated"
                copy_weight(target, _shard(layer, value, part))


def _shard(layer: MoE, value: Any, part: str) -> torch.Tensor:
    mode = TensorParallelMode.ROW if part == "w2" else TensorParallelMode.COLUMN
    found = load_weight_shard(value, layer.tp_size, layer.tp_rank, mode)
    return found  # type: ignore[no-any-return]


def _target(layer: MoE, local: int, part: str, kind: str) -> torch.Tensor | None:
    """Where one tensor goes: up rows first, then gate rows; None for an up that is not used."""
    if part == "w2":
        return getattr(layer, f"w2_{kind}").data[local]  # type: ignore[no-any-return]
    both: torch.Tensor = getattr(layer, f"w3_w1_{kind}").data[local]
    if not layer.formula.gated:
        return both if part == "w1" else None
    inner = layer.intermediate_size_per_partition
    return both[:inner] if part == "w3" else both[inner:]


def compute(
    layer: MoE, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor | None
) -> torch.Tensor:
    """This rank's part of the weighted sum, ``[tokens, hidden]``, summed in float32.

    All experts at once where that is cheap or a CUDA graph is being captured (no shape may
    depend on the choice then), else the tokens of one expert after the other.
    """
    if layer.apply_router_weight_on_input:
        assert chosen.shape[1] == 1, "router weights go on the input for one expert per token only"
    if weights is None:
        weights = torch.ones(chosen.shape, device=x.device)
    count, inner = layer.expert_size_per_partition, layer.intermediate_size_per_partition
    cost = x.shape[0] * count * inner * layer.hidden_size
    capturing = x.is_cuda and torch.cuda.is_current_stream_capturing()
    every = cost <= DENSE_LIMIT or capturing
    return (_every_expert if every else _in_turn)(layer, x, chosen, weights.float())


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
