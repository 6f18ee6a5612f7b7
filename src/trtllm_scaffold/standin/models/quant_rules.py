"""Which modules of a model are quantized, and how, once all modules exist."""

from __future__ import annotations

from typing import Any

from torch import nn

from trtllm_scaffold.standin.attention.attention import Attention
from trtllm_scaffold.standin.modules.linear import Linear, WeightMode
from trtllm_scaffold.standin.quantization import QuantConfig


def apply_layerwise(model: nn.Module, per_layer: dict[str, Any] | None) -> None:
    """Give each module the entry of its name: fused ones that of their first part."""
    if per_layer is None:
        return
    for name, module in model.named_modules():
        found = _entry(name, module, per_layer)
        if found is not None:
            module.quant_config = found


def _entry(name: str, module: nn.Module, per_layer: dict[str, Any]) -> Any:
    above = name.rpartition(".")[0]
    if isinstance(module, Linear):
        mode = module.weights_loading_config.weight_mode
        if mode == WeightMode.FUSED_GATE_UP_LINEAR:
            wanted: tuple[str, ...] = (f"{above}.gate_proj", f"{above}.gate_up_proj")
        elif mode == WeightMode.FUSED_QKV_LINEAR:
            wanted = (f"{above}.q_proj",)
        else:
            return per_layer.get(name)
    elif isinstance(module, Attention):
        wanted = (f"{name}.q_proj",)
    else:
        return None
    for key, value in per_layer.items():
        if any(part in key for part in wanted):
            return value
    return None


def apply_exclusions(model: nn.Module, quant_config: Any) -> None:
    """Leave excluded modules unquantized, except for what concerns the KV cache."""
    if quant_config is None or quant_config.exclude_modules is None:
        return
    plain = QuantConfig(kv_cache_quant_algo=quant_config.kv_cache_quant_algo)
    for name, module in model.named_modules():
        if getattr(module, "quant_config", None) is None:
            continue
        names = [name, *_aliases(name)]
        if any(quant_config.is_module_excluded_from_quantization(item) for item in names):
            module.quant_config = plain


def _aliases(name: str) -> list[str]:
    """Names that a checkpoint may give the parts of a fused module."""
    above, _, last = name.rpartition(".")
    parts = {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "gate_up_proj": ("gate_proj", "up_proj"),
    }
    return [f"{above}.{part}" for part in parts.get(last, ())]
