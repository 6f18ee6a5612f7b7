"""Expert weights of a rank: their shapes and loading."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trtllm_scaffold.standin.weight_shards import TensorParallelMode, copy_weight, load_weight_shard

if TYPE_CHECKING:
    from trtllm_scaffold.standin.moe.interface import MoE


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
