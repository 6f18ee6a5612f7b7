"""Reads how the checkpoint declares its weights to be quantized."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.spec import QuantizationSpec

_WORD = re.compile(r"[A-Za-z0-9_]{1,40}")
_PATTERN = re.compile(r"[A-Za-z0-9_.*?-]{1,200}")


def read_quantization(
    raw: Mapping[str, Any], quant: Mapping[str, Any] | None
) -> QuantizationSpec | None:
    """Read hf_quant_config.json, or the same settings inside config.json.

    Args:
        raw: The parsed config.json.
        quant: The parsed hf_quant_config.json, if there is one.

    Raises:
        Refused: Another tool's format.
        InputError: The settings are malformed.
    """
    if quant is not None:
        return _modelopt(quant.get("quantization"), "hf_quant_config.json: quantization")
    held = raw.get("quantization_config")
    if held is None:
        return None
    where = "config.json: quantization_config"
    if not isinstance(held, Mapping):
        raise InputError(
            f"quantization_config is {type(held).__name__}, not an object", where=where
        )
    if str(held.get("quant_method", "")) != "modelopt":
        raise Refused(
            "quantization",
            f"the format {str(held.get('quant_method'))[:40]!r} is not read",
            where=where,
            hint="checkpoints without quantization, and those of ModelOpt, are read",
        )
    inner = held.get("quantization")
    return _modelopt(inner if isinstance(inner, Mapping) else held, where)


def _modelopt(held: Any, where: str) -> QuantizationSpec | None:
    if not isinstance(held, Mapping):
        raise InputError("the quantization settings are no object", where=where)
    algorithm = held.get("quant_algo")
    if algorithm is None:
        return None
    cache = held.get("kv_cache_quant_algo")
    excluded = held.get("exclude_modules", held.get("ignore")) or []
    if not isinstance(excluded, list):
        raise InputError("exclude_modules is no list", where=where)
    for value, shape in [(algorithm, _WORD), (cache, _WORD), *((e, _PATTERN) for e in excluded)]:
        if value is not None and not (isinstance(value, str) and shape.fullmatch(value)):
            raise InputError(f"{str(value)[:40]!r} is no name", where=where)
    return QuantizationSpec(algorithm, cache, tuple(excluded), where)
