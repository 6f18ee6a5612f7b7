"""The mixture-of-experts package of the active generation."""

from __future__ import annotations

import importlib

T = "tensorrt_llm._torch"


def moe(generation: str):
    path = f"{T}.modules.fused_moe" if generation == "1.2" else f"{T}.moe.fused_moe"
    return importlib.import_module(path)


def routing(generation: str):
    return importlib.import_module(moe(generation).__name__ + ".routing")
