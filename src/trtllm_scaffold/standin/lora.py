"""LoRA bookkeeping: the names of adapted products, and where an update would be added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import nn


class LoraModuleType(IntEnum):
    """Products that an adapter may change."""

    ATTENTION_QKV = 0
    ATTENTION_Q = 1
    ATTENTION_K = 2
    ATTENTION_V = 3
    ATTENTION_DENSE = 4
    MLP_H_TO_4H = 5
    MLP_4H_TO_H = 6
    MLP_GATE = 7
    CROSS_ATTENTION_QKV = 8
    CROSS_ATTENTION_Q = 9
    CROSS_ATTENTION_K = 10
    CROSS_ATTENTION_V = 11
    CROSS_ATTENTION_DENSE = 12
    MOE_H_TO_4H = 13
    MOE_4H_TO_H = 14
    MOE_GATE = 15
    MOE_ROUTER = 16
    MLP_ROUTER = 17
    MLP_GATE_UP = 18
    SHARED_EXPERT_H_TO_4H = 19
    SHARED_EXPERT_4H_TO_H = 20
    SHARED_EXPERT_GATE = 21


class LoraLayer(nn.Module):
    """Low-rank updates of one product.

    ``lora_params[layer_idx][module_type]`` holds ``(A, B)`` with A ``[rank, in]`` and B
    ``[out, rank]`` of this rank. The library has packed device pointers at this place; that form
    belongs to its kernels and is not imitated.
    """

    def __init__(
        self, lora_module_types: Sequence[LoraModuleType], output_hidden_sizes: Sequence[int]
    ) -> None:
        super().__init__()
        self.lora_module_types = list(lora_module_types)
        self.output_hidden_sizes = list(output_hidden_sizes)

    def forward(
        self, x: torch.Tensor, lora_params: Mapping[Any, Any], layer_idx: int | None
    ) -> torch.Tensor | None:
        """The update ``[tokens, sum of outputs]``, None if no adapter touches this product."""
        assert layer_idx is not None, "layer_idx is required for lora"
        layer = lora_params.get(layer_idx) or {}
        found = [layer.get(kind) for kind in self.lora_module_types]
        if all(item is None for item in found):
            return None
        parts = [
            x.new_zeros((*x.shape[:-1], size)) if item is None else (x @ item[0].T) @ item[1].T
            for item, size in zip(found, self.output_hidden_sizes, strict=True)
        ]
        return torch.cat(parts, dim=-1)
