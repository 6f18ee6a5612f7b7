"""Reads what a checkpoint declares about its quantization, and refuses what has no reader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.spec.evidence import Evidence
from trtllm_scaffold.spec.quantization import QuantizationSpec

#: ModelOpt's algorithm names that both generations load into `Linear`, and TensorRT-LLM's name.
MODELOPT_ALGORITHMS = {
    "FP8": "FP8",
    "FP8_PB_WO": "FP8_BLOCK_SCALES",
    "FP8_BLOCK_SCALES": "FP8_BLOCK_SCALES",
    "FP8_PER_CHANNEL_PER_TOKEN": "FP8_PER_CHANNEL_PER_TOKEN",
    "NVFP4": "NVFP4",
    "W4A16_AWQ": "W4A16_AWQ",
    "W4A8_AWQ": "W4A8_AWQ",
}
KV_ALGORITHMS = ("FP8", "INT8", "NVFP4")
#: The algorithm of a checkpoint that declares a quantized key-value cache alone.
NO_ALGORITHM = "NO_QUANT"

_CONFIG = "config.json: quantization_config"
_MODELOPT = "hf_quant_config.json: quantization"
_HINT = (
    "use the unquantized checkpoint, one exported by NVIDIA ModelOpt (FP8, NVFP4, AWQ), "
    "or fp8 with 128 x 128 blocks"
)
_EXCLUSION_KEYS = ("modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")
_MAX_PATTERNS = 4096
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PATTERN = re.compile(r"[A-Za-z0-9_.*?\[\]-]{1,256}")


def read_quantization(
    raw: Mapping[str, Any], modelopt: Mapping[str, Any] | None
) -> QuantizationSpec | None:
    """Return the declared quantization, or None for a checkpoint in its model's dtype.

    TensorRT-LLM looks at hf_quant_config.json first, then at config.json; so does this.

    Args:
        raw: The parsed config.json.
        modelopt: The parsed hf_quant_config.json, if there is one.

    Raises:
        Refused: TensorRT-LLM's PyTorch backend cannot read the format in both generations.
        InputError: The declaration has values of the wrong type.
    """
    if modelopt is not None:
        block = modelopt.get("quantization", modelopt)  # newer exports are flat
        return _modelopt(_object(block, "quantization", _MODELOPT), _MODELOPT)
    for key in ("quantization_config", "compression_config"):
        if raw.get(key) is not None:
            return _from_config(_object(raw[key], key, "config.json"))
    return None


def quantization_evidence(spec: QuantizationSpec) -> tuple[Evidence, ...]:
    """Return what was read, fact by fact."""
    facts = {
        "quantization.algorithm": spec.algorithm,
        "quantization.kv_cache": spec.kv_cache,
        "quantization.exclude": ", ".join(spec.exclude) or None,
    }
    return tuple(Evidence(fact, "config", spec.source, value) for fact, value in facts.items())


def _from_config(block: Mapping[str, Any]) -> QuantizationSpec | None:
    method = (_word(block.get("quant_method"), "quant_method", _CONFIG) or "none").lower()
    if method.startswith("modelopt"):
        inner = block.get("quantization", block)
        return _modelopt(_object(inner, "quantization", _CONFIG), _CONFIG)
    if method == "fp8":
        return _fp8(block)
    if method == "compressed-tensors":
        return _compressed_tensors(block)
    raise _refused(f"quant_method {method}", _CONFIG)


def _modelopt(block: Mapping[str, Any], where: str) -> QuantizationSpec | None:
    """Read ModelOpt's settings, whichever file holds them."""
    algorithm = (_word(block.get("quant_algo"), "quant_algo", where) or NO_ALGORITHM).upper()
    cache = _word(block.get("kv_cache_quant_algo"), "kv_cache_quant_algo", where)
    cache = cache.upper() if cache else _kv_scheme(block, where)
    if cache is not None and cache not in KV_ALGORITHMS:
        raise _refused(f"kv_cache_quant_algo {cache}", where)
    if algorithm in (NO_ALGORITHM, "NONE"):
        return QuantizationSpec(NO_ALGORITHM, cache, (), where) if cache else None
    if algorithm not in MODELOPT_ALGORITHMS:
        raise _refused(f"quant_algo {algorithm}", where)
    return QuantizationSpec(MODELOPT_ALGORITHMS[algorithm], cache, _exclude(block, where), where)


def _fp8(block: Mapping[str, Any]) -> QuantizationSpec:
    """Read HF's fp8: without blocks, the target has two readings of it, so neither is taken."""
    size = block.get("weight_block_size")
    if size is None:
        scheme = block.get("activation_scheme")
        raise _refused(f"fp8 without weight_block_size (activation_scheme {scheme!r:.40})", _CONFIG)
    if size != [128, 128]:
        raise _refused(f"fp8 with weight_block_size {size!r:.40}, not [128, 128]", _CONFIG)
    return QuantizationSpec("FP8_BLOCK_SCALES", None, _exclude(block, _CONFIG), _CONFIG)


def _compressed_tensors(block: Mapping[str, Any]) -> QuantizationSpec:
    """Read llm-compressor's scheme: 8-bit floats, one group of layers."""
    groups = block.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise _refused("compressed-tensors with other than one group of layers", _CONFIG)
    group = next(iter(groups.values()))
    weights = group.get("weights") if isinstance(group, Mapping) else None
    inputs = group.get("input_activations") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping) or not isinstance(inputs, Mapping):
        raise _refused("compressed-tensors without weights and input_activations", _CONFIG)
    bits, kind = weights.get("num_bits"), weights.get("type")
    if (bits, kind) != (8, "float"):
        raise _refused(f"compressed-tensors with {bits}-bit {kind} weights", _CONFIG)
    by, per = weights.get("strategy"), inputs.get("strategy")
    if (by, per) == ("channel", "token"):
        algorithm = "FP8_PER_CHANNEL_PER_TOKEN"
    elif by == "block" and weights.get("block_structure") in (None, [128, 128]):
        algorithm = "FP8_BLOCK_SCALES"
    else:
        raise _refused(
            f"compressed-tensors fp8 with weights per {by} and activations per {per}", _CONFIG
        )
    return QuantizationSpec(
        algorithm, _kv_scheme(block, _CONFIG), _exclude(block, _CONFIG), _CONFIG
    )


def _kv_scheme(block: Mapping[str, Any], where: str) -> str | None:
    scheme = block.get("kv_cache_scheme")
    if scheme is None:
        return None
    if isinstance(scheme, Mapping) and (scheme.get("num_bits"), scheme.get("type")) == (8, "float"):
        return "FP8"
    raise _refused(f"kv_cache_scheme {scheme!r:.80}", where)


def _exclude(block: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the patterns of modules that stay in the model's dtype, merged as the runtime does.

    Patterns that begin with ``re:`` are refused: the 1.2 generation silently ignores them.
    """
    patterns: list[str] = []
    for key in _EXCLUSION_KEYS:
        listed = block.get(key) or []
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise InputError(f"{key} is {listed!r:.80}; it must list module names", where=where)
        patterns.extend(item for item in listed if item not in patterns)
    if len(patterns) > _MAX_PATTERNS:
        raise InputError(f"{len(patterns)} exclusion patterns", where=where)
    for pattern in patterns:
        if pattern.startswith("re:"):
            raise _refused(f"the exclusion {pattern!r:.80}, a regular expression,", where)
        if not _PATTERN.fullmatch(pattern):
            raise InputError(f"the exclusion {pattern!r:.80} is no module name", where=where)
    return tuple(patterns)


def _object(value: Any, key: str, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{key} is {value!r:.80}; it must be an object", where=where)
    return value


def _word(value: Any, key: str, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise InputError(f"{key} is {value!r:.80}; it must be a word", where=f"{where}: {key}")
    return value


def _refused(what: str, where: str) -> Refused:
    return Refused(
        "quantization",
        f"{what} is not read by TensorRT-LLM's PyTorch backend in both 1.2 and 1.4",
        where=where,
        hint=_HINT,
    )
