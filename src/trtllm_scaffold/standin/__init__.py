"""The port-facing part of ``tensorrt_llm`` in plain PyTorch: for building and proving ports.

It is written from the contract of each TensorRT-LLM generation and is not TensorRT-LLM: nothing
that ran here has run there. It is not a serving engine.
"""

from __future__ import annotations

from trtllm_scaffold.standin.generation import active
from trtllm_scaffold.standin.install import install, installed, uninstall

__all__ = ["active", "install", "installed", "uninstall"]
