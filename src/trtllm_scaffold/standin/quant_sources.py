"""Quantization as checkpoints declare it: ModelOpt's file, or a key of config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtllm_scaffold.standin.quantization import QuantAlgo, QuantConfig

MODELOPT_FILE = "hf_quant_config.json"
BLOCK = [128, 128]
Found = tuple[QuantConfig, dict[str, QuantConfig] | None]


def read_quantization(folder: Path, config: Any) -> Found:
    """The general quantization of a checkpoint and, for mixed precision, that of each module."""
    path = folder / MODELOPT_FILE
    if path.is_file():
        return from_modelopt(json.loads(path.read_text(encoding="utf-8")))
    declared = getattr(config, "quantization_config", None)
    if declared is None:
        return QuantConfig(), None
    return from_hf(declared if isinstance(declared, Mapping) else declared.to_dict()), None


def from_modelopt(declared: Mapping[str, Any]) -> Found:
    """ModelOpt's ``hf_quant_config.json``: its ``quantization`` block."""
    block = declared["quantization"]
    algorithm = block.get("quant_algo")
    if algorithm == "fp8_pb_wo":
        algorithm = QuantAlgo.FP8_BLOCK_SCALES.value
    cache = block.get("kv_cache_quant_algo")
    general = QuantConfig(
        quant_algo=algorithm,
        kv_cache_quant_algo=cache,
        group_size=block.get("group_size"),
        exclude_modules=block.get("exclude_modules"),
    )
    if algorithm == QuantAlgo.FP8_BLOCK_SCALES and general.group_size is None:
        general.group_size = 128
    if algorithm != QuantAlgo.MIXED_PRECISION:
        return general, None
    layers = {
        name: QuantConfig(
            quant_algo=item["quant_algo"],
            kv_cache_quant_algo=cache,
            group_size=item.get("group_size"),
        )
        for name, item in block["quantized_layers"].items()
    }
    return general, layers


def from_hf(declared: Mapping[str, Any]) -> QuantConfig:
    """``quantization_config`` of config.json.

    Raises:
        NotImplementedError: For methods that the library's PyTorch backend does not read.
        ValueError: For a layout that it does not know.
    """
    method = declared.get("quant_method")
    excluded = declared.get("modules_to_not_convert")
    if method == "fp8" and declared.get("weight_block_size"):
        if list(declared["weight_block_size"]) != BLOCK:
            raise ValueError(f"weight_block_size {declared['weight_block_size']} is not {BLOCK}")
        return QuantConfig(
            quant_algo=QuantAlgo.FP8_BLOCK_SCALES,
            group_size=BLOCK[0],
            exclude_modules=[*(excluded or []), "*eh_proj"],
        )
    if method == "compressed-tensors":
        return _compressed(declared)
    raise NotImplementedError(f"quant_method {method!r} is not read by the stand-in")


def _compressed(declared: Mapping[str, Any]) -> QuantConfig:
    group = declared["config_groups"]["group_0"]
    weights, inputs = group["weights"], group["input_activations"]
    strategies = (weights["strategy"], inputs["strategy"])
    known = {
        ("channel", "token"): QuantAlgo.FP8_PER_CHANNEL_PER_TOKEN,
        ("block", "group"): QuantAlgo.FP8_BLOCK_SCALES,
    }
    if weights["num_bits"] != 8 or strategies not in known:
        raise ValueError(f"unsupported: {weights['num_bits']} bits, strategies {strategies}")
    return QuantConfig(
        quant_algo=known[strategies],
        group_size=inputs.get("group_size") or 128,
        exclude_modules=list(declared.get("ignore", [])),
    )
