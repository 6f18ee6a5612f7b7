"""Weights in FP8 as checkpoints store them, and the same in HF's model, de-quantised."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.verify.harness import Setup, load_model, model_config, runtime_api

_LARGEST = 448.0
_TILE = 128
#: A weight [out, in] -> its FP8 values, and the names and values of its scales.
Quantize = Callable[[torch.Tensor], tuple[torch.Tensor, dict[str, torch.Tensor]]]


def per_tensor(weight: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One scale for the whole weight."""
    scale = weight.float().abs().max() / _LARGEST
    return (weight / scale).to(torch.float8_e4m3fn), {"weight_scale": scale}


def per_block(weight: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """One scale for each tile of 128 x 128."""
    rows, columns = (math.ceil(size / _TILE) for size in weight.shape)
    whole = weight.new_zeros(rows * _TILE, columns * _TILE)
    whole[: weight.shape[0], : weight.shape[1]] = weight
    tiles = whole.view(rows, _TILE, columns, _TILE)
    scale = tiles.abs().amax(dim=(1, 3)).clamp(min=1e-12) / _LARGEST
    values = (weight / _spread(scale, weight)).to(torch.float8_e4m3fn)
    return values, {"weight_scale_inv": scale}


def _spread(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    tiles = scale.repeat_interleave(_TILE, 0).repeat_interleave(_TILE, 1)
    return tiles[: weight.shape[0], : weight.shape[1]]


def restored(weight: torch.Tensor, quantize: Quantize) -> torch.Tensor:
    """`weight` after a round trip, by its own arithmetic."""
    values, scales = quantize(weight)
    ((name, scale),) = scales.items()
    return values.float() * (scale if name == "weight_scale" else _spread(scale, weight))


def restored_model(model: nn.Module, quantize: Quantize) -> nn.Module:
    """A copy of HF's `model` whose linear layers, but for the head, have made the round trip."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in twin.named_modules():
            if isinstance(module, nn.Linear) and name != "lm_head":
                module.weight.copy_(restored(module.weight.cpu(), quantize))
    return twin


def quantized_port(
    config: Any, weights: dict[str, torch.Tensor], setup: Setup, algorithm: str, quantize: Quantize
) -> tuple[Any, int]:
    """The port with every linear layer but the head in FP8, and how many of them there are.

    The port's weight table knows no scales, so they are added where a layer takes its parts.
    """
    from tensorrt_llm.models.modeling_utils import QuantConfig

    made = model_config(config, setup)
    made.quant_config = QuantConfig(quant_algo=algorithm, exclude_modules=["lm_head"])
    model = runtime_api().AutoModelForCausalLM.from_config(made)
    model.to(setup.device)
    layers = [module for module in model.modules() if _is_quantized(module)]
    for layer in layers:
        layer.load_weights = _quantizing(layer.load_weights, quantize)
    return load_model(model, weights), len(layers)


def _is_quantized(module: nn.Module) -> bool:
    found = getattr(module, "quant_config", None)
    takes = hasattr(module, "load_weights") and hasattr(module, "weight")
    return takes and found is not None and found.layer_quant_mode.has_any_quant()


def _quantizing(load: Callable[..., None], quantize: Quantize) -> Callable[..., None]:
    def loaded(weights: list[dict[str, Any]]) -> None:
        parts = []
        for part in weights:
            values, scales = quantize(part["weight"])
            parts.append({**part, "weight": values, **scales})
        load(weights=parts)

    return loaded
