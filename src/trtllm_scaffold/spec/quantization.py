"""The quantization axis: how the checkpoint's linear weights are stored."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantizationSpec:
    """What the checkpoint declares.

    Attributes:
        algorithm: TensorRT-LLM's name, such as ``FP8``.
        kv_cache: The key-value cache's algorithm, or None.
        exclude: Module patterns kept in the model's dtype.
        source: The file and key it was read from.
    """

    algorithm: str
    kv_cache: str | None
    exclude: tuple[str, ...]
    source: str
