"""QuantAlgo, QuantMode and QuantConfig: what a checkpoint is quantized with."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import asdict, dataclass
from enum import Enum, IntFlag, auto
from typing import Any

from trtllm_scaffold.standin.generation import active, contract


class QuantAlgo(str, Enum):
    """Names of the algorithms. Members of both generations; equal to their text."""

    W8A16 = "W8A16"
    W4A16 = "W4A16"
    W4A16_AWQ = "W4A16_AWQ"
    W4A8_AWQ = "W4A8_AWQ"
    W8A16_GPTQ = "W8A16_GPTQ"
    W4A16_GPTQ = "W4A16_GPTQ"
    W8A8_SQ_PER_CHANNEL = "W8A8_SQ_PER_CHANNEL"
    W8A8_SQ_PER_TENSOR_PLUGIN = "W8A8_SQ_PER_TENSOR_PLUGIN"
    W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN = "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"
    W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN = "W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN"
    W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN = "W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN"
    W4A8_QSERVE_PER_GROUP = "W4A8_QSERVE_PER_GROUP"
    W4A8_QSERVE_PER_CHANNEL = "W4A8_QSERVE_PER_CHANNEL"
    FP8 = "FP8"
    FP8_PER_CHANNEL_PER_TOKEN = "FP8_PER_CHANNEL_PER_TOKEN"
    FP8_BLOCK_SCALES = "FP8_BLOCK_SCALES"
    INT8 = "INT8"
    MIXED_PRECISION = "MIXED_PRECISION"
    NVFP4 = "NVFP4"
    NVFP4_AWQ = "NVFP4_AWQ"
    W4A8_NVFP4_FP8 = "W4A8_NVFP4_FP8"
    W4A8_MXFP4_FP8 = "W4A8_MXFP4_FP8"
    W4A8_MXFP4_MXFP8 = "W4A8_MXFP4_MXFP8"
    W4A16_MXFP4 = "W4A16_MXFP4"
    NO_QUANT = "NO_QUANT"

    def __str__(self) -> str:
        return self.value


class QuantMode(IntFlag):
    """Bits that say what is quantized and how."""

    INT4_WEIGHTS = auto()
    INT8_WEIGHTS = auto()
    ACTIVATIONS = auto()
    PER_CHANNEL = auto()
    PER_TOKEN = auto()
    PER_GROUP = auto()
    INT8_KV_CACHE = auto()
    FP8_KV_CACHE = auto()
    FP8_QDQ = auto()
    FP8_ROWWISE = auto()
    FP8_1x128_128x128 = auto()
    W4A8_QSERVE = auto()
    NVFP4 = auto()
    NVFP4_KV_CACHE = auto()
    W4A8_NVFP4_FP8 = auto()
    W4A8_MXFP4_FP8 = auto()
    W4A8_MXFP4_MXFP8 = auto()
    W4A16_MXFP4 = auto()

    def _any(self, bits: int) -> bool:
        return (self & bits) != 0

    def _only(self, weights: QuantMode) -> bool:
        mask = QuantMode.INT4_WEIGHTS | QuantMode.INT8_WEIGHTS | QuantMode.ACTIVATIONS
        return (self & mask) == weights

    def is_int4_weight_only(self) -> bool:
        """Whether only weights are quantized, to 4 bits."""
        return self._only(QuantMode.INT4_WEIGHTS)

    def is_int8_weight_only(self) -> bool:
        """Whether only weights are quantized, to 8 bits."""
        return self._only(QuantMode.INT8_WEIGHTS)

    def is_weight_only(self) -> bool:
        """Whether only weights are quantized, to integers."""
        return self.is_int4_weight_only() or self.is_int8_weight_only()

    def is_int4_weight_only_per_group(self) -> bool:
        """Whether only weights are quantized, to 4 bits with a scale per group."""
        return self.is_int4_weight_only() and self.has_per_group_scaling()

    def has_per_group_scaling(self) -> bool:
        """Whether there is a scale per group."""
        return self._any(QuantMode.PER_GROUP)

    def has_fp8_qdq(self) -> bool:
        """Whether FP8 has a scale per tensor."""
        return self._any(QuantMode.FP8_QDQ)

    def has_fp8_rowwise(self) -> bool:
        """Whether FP8 has a scale per row."""
        return self._any(QuantMode.FP8_ROWWISE)

    def has_fp8_block_scales(self) -> bool:
        """Whether FP8 has a scale per tile."""
        return self._any(QuantMode.FP8_1x128_128x128)

    def has_nvfp4(self) -> bool:
        """Whether weights are NVFP4."""
        return self._any(QuantMode.NVFP4)

    def has_w4a8_nvfp4_fp8(self) -> bool:
        """Whether weights are NVFP4 and activations FP8."""
        return self._any(QuantMode.W4A8_NVFP4_FP8)

    def has_w4a8_mxfp4_fp8(self) -> bool:
        """Whether weights are MXFP4 and activations FP8."""
        return self._any(QuantMode.W4A8_MXFP4_FP8)

    def has_w4a8_mxfp4_mxfp8(self) -> bool:
        """Whether weights are MXFP4 and activations MXFP8."""
        return self._any(QuantMode.W4A8_MXFP4_MXFP8)

    def has_w4a16_mxfp4(self) -> bool:
        """Whether only weights are quantized, to MXFP4."""
        return self._any(QuantMode.W4A16_MXFP4)

    def has_int8_kv_cache(self) -> bool:
        """Whether the cache is INT8."""
        return self._any(QuantMode.INT8_KV_CACHE)

    def has_fp8_kv_cache(self) -> bool:
        """Whether the cache is FP8."""
        return self._any(QuantMode.FP8_KV_CACHE)

    def has_fp4_kv_cache(self) -> bool:
        """Whether the cache is NVFP4."""
        return self._any(QuantMode.NVFP4_KV_CACHE)

    def has_kv_cache_quant(self) -> bool:
        """Whether the cache is quantized."""
        return self._any(_KV_CACHE)

    def has_any_quant(self, exclude_kv_cache: bool = False) -> bool:
        """Whether anything is quantized (the cache counts unless excluded)."""
        return self._any(_PRODUCTS) or (not exclude_kv_cache and self._any(_KV_CACHE))

    @staticmethod
    def from_quant_algo(
        quant_algo: QuantAlgo | str | None = None,
        kv_cache_quant_algo: QuantAlgo | str | None = None,
    ) -> QuantMode:
        """Bits of an algorithm for weights and one for the cache.

        Raises:
            ValueError: If one is unknown or does not fit its place.
        """
        mode = QuantMode(0)
        if quant_algo is not None:
            mode |= _WEIGHT_MODES.get(QuantAlgo(quant_algo), QuantMode(0))
        if kv_cache_quant_algo is not None:
            algorithm = QuantAlgo(kv_cache_quant_algo)
            if algorithm not in _CACHE_MODES:
                raise ValueError(f"{algorithm} is no algorithm for the KV cache")
            mode |= _CACHE_MODES[algorithm]
        return mode


_KV_CACHE = QuantMode.INT8_KV_CACHE | QuantMode.FP8_KV_CACHE | QuantMode.NVFP4_KV_CACHE
_ONLY_SCALING = QuantMode.PER_CHANNEL | QuantMode.PER_TOKEN | QuantMode.PER_GROUP
_PRODUCTS = ~(_KV_CACHE | _ONLY_SCALING) & QuantMode((1 << len(QuantMode)) - 1)
_INT8_BOTH = QuantMode.INT8_WEIGHTS | QuantMode.ACTIVATIONS
_INT4_GROUP = QuantMode.INT4_WEIGHTS | QuantMode.PER_GROUP
_QSERVE = QuantMode.INT4_WEIGHTS | QuantMode.ACTIVATIONS | QuantMode.W4A8_QSERVE
_WEIGHT_MODES: dict[QuantAlgo, QuantMode] = {
    QuantAlgo.W8A16: QuantMode.INT8_WEIGHTS,
    QuantAlgo.W4A16: QuantMode.INT4_WEIGHTS,
    QuantAlgo.W4A16_AWQ: _INT4_GROUP,
    QuantAlgo.W4A8_AWQ: _INT4_GROUP,
    QuantAlgo.W4A16_GPTQ: _INT4_GROUP,
    QuantAlgo.W8A16_GPTQ: QuantMode.INT8_WEIGHTS | QuantMode.PER_GROUP,
    QuantAlgo.W8A8_SQ_PER_CHANNEL: _INT8_BOTH | QuantMode.PER_CHANNEL,
    QuantAlgo.W8A8_SQ_PER_TENSOR_PLUGIN: _INT8_BOTH,
    QuantAlgo.W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN: _INT8_BOTH
    | QuantMode.PER_CHANNEL
    | QuantMode.PER_TOKEN,
    QuantAlgo.W8A8_SQ_PER_CHANNEL_PER_TENSOR_PLUGIN: _INT8_BOTH | QuantMode.PER_CHANNEL,
    QuantAlgo.W8A8_SQ_PER_TENSOR_PER_TOKEN_PLUGIN: _INT8_BOTH | QuantMode.PER_TOKEN,
    QuantAlgo.W4A8_QSERVE_PER_GROUP: _QSERVE | QuantMode.PER_GROUP,
    QuantAlgo.W4A8_QSERVE_PER_CHANNEL: _QSERVE,
    QuantAlgo.FP8: QuantMode.FP8_QDQ,
    QuantAlgo.FP8_PER_CHANNEL_PER_TOKEN: QuantMode.FP8_ROWWISE
    | QuantMode.PER_TOKEN
    | QuantMode.PER_CHANNEL,
    QuantAlgo.FP8_BLOCK_SCALES: QuantMode.FP8_1x128_128x128,
    QuantAlgo.NVFP4: QuantMode.NVFP4,
    QuantAlgo.NVFP4_AWQ: QuantMode.NVFP4,
    QuantAlgo.W4A8_NVFP4_FP8: QuantMode.W4A8_NVFP4_FP8,
    QuantAlgo.W4A8_MXFP4_FP8: QuantMode.W4A8_MXFP4_FP8,
    QuantAlgo.W4A8_MXFP4_MXFP8: QuantMode.W4A8_MXFP4_MXFP8,
    QuantAlgo.W4A16_MXFP4: QuantMode.W4A16_MXFP4,
}
_CACHE_MODES: dict[QuantAlgo, QuantMode] = {
    QuantAlgo.FP8: QuantMode.FP8_KV_CACHE,
    QuantAlgo.INT8: QuantMode.INT8_KV_CACHE,
    QuantAlgo.NVFP4: QuantMode.NVFP4_KV_CACHE,
}


@contract("QuantConfig")
@dataclass
class QuantConfig:
    """What is quantized, and the modules that are not."""

    quant_algo: QuantAlgo | str | None = None
    kv_cache_quant_algo: QuantAlgo | str | None = None
    group_size: int | None = 128
    smoothquant_val: float = 0.5
    clamp_val: list[float] | None = None
    use_meta_recipe: bool = False
    has_zero_point: bool = False
    pre_quant_scale: bool = False
    exclude_modules: list[str] | None = None
    mamba_ssm_cache_dtype: str | None = None

    @property
    def quant_mode(self) -> QuantMode:
        """Bits of both algorithms."""
        return self.layer_quant_mode

    @property
    def layer_quant_mode(self) -> QuantMode:
        """Bits of both algorithms."""
        return QuantMode.from_quant_algo(self.quant_algo, self.kv_cache_quant_algo)

    def is_module_excluded_from_quantization(self, name: str) -> bool:
        """Whether a module (full dotted name) stays unquantized.

        1.2 knows shell wildcards only. 1.4 also matches ``re:`` patterns, and a pattern that
        matches an ancestor excludes what lies below it.
        """
        patterns = self.exclude_modules or []
        if active() == "1.2":
            return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        parts = name.split(".")
        names = [".".join(parts[: count + 1]) for count in range(len(parts))]
        return any(_matches(item, pattern) for item in names for pattern in patterns)

    def to_dict(self) -> dict[str, Any]:
        """Fields as a plain dict."""
        return asdict(self)

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> QuantConfig:
        """From fields."""
        return cls(**config)


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatch.fnmatchcase(name, pattern)
