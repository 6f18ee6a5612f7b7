"""Names of the compiled bindings that model tests use: data types, cache type, cache options."""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Any

import torch


class DataType(IntEnum):
    """Element types of the C++ runtime."""

    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8
    NVFP4 = 11


TORCH_TYPES: dict[DataType, torch.dtype] = {
    DataType.FLOAT: torch.float32,
    DataType.HALF: torch.float16,
    DataType.BF16: torch.bfloat16,
    DataType.INT8: torch.int8,
    DataType.INT32: torch.int32,
    DataType.INT64: torch.int64,
    DataType.BOOL: torch.bool,
    DataType.UINT8: torch.uint8,
    DataType.FP8: torch.float8_e4m3fn,
}


def data_type(dtype: torch.dtype) -> DataType:
    """The binding's name of a torch type.

    Raises:
        ValueError: If there is none.
    """
    for name, held in TORCH_TYPES.items():
        if held == dtype:
            return name
    raise ValueError(f"{dtype} has no DataType")


class CacheType(Enum):
    """What a cache holds: keys and values, those of an encoder, or one tensor per token."""

    SELF = 0
    CROSS = 1
    SELFKONLY = 2


class KvCacheConfig:
    """Cache options of the C++ executor, as model tests build them.

    The stand-in uses ``max_tokens`` (room of the whole cache) and ``max_attention_window``
    (tokens that each layer keeps, repeated cyclically); the others are accepted and ignored.
    """

    def __init__(
        self,
        enable_block_reuse: bool = True,
        max_tokens: int | None = None,
        max_attention_window: list[int] | None = None,
        sink_token_length: int | None = None,
        free_gpu_memory_fraction: float | None = None,
        host_cache_size: int | None = None,
        onboard_blocks: bool = True,
        cross_kv_cache_fraction: float | None = None,
        secondary_offload_min_priority: int | None = None,
        event_buffer_max_size: int = 0,
        *,
        enable_partial_reuse: bool = True,
        copy_on_partial_reuse: bool = True,
        use_uvm: bool = False,
        **kwargs: Any,
    ) -> None:
        self.enable_block_reuse = enable_block_reuse
        self.max_tokens = max_tokens
        self.max_attention_window = max_attention_window
        self.sink_token_length = sink_token_length
        self.free_gpu_memory_fraction = free_gpu_memory_fraction
        self.host_cache_size = host_cache_size
        self.onboard_blocks = onboard_blocks
        self.cross_kv_cache_fraction = cross_kv_cache_fraction
        self.secondary_offload_min_priority = secondary_offload_min_priority
        self.event_buffer_max_size = event_buffer_max_size
        self.enable_partial_reuse = enable_partial_reuse
        self.copy_on_partial_reuse = copy_on_partial_reuse
        self.use_uvm = use_uvm
        for name, value in kwargs.items():
            setattr(self, name, value)
