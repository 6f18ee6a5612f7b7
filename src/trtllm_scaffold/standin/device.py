"""Which device the stand-in's buffers live on."""

from __future__ import annotations

import os

import torch

ENVIRONMENT_NAME = "TRTLLM_SCAFFOLD_DEVICE"


def runtime_device() -> torch.device:
    """Device of caches and metadata: ``TRTLLM_SCAFFOLD_DEVICE``, else CUDA where there is one.

    The real runtime knows CUDA only; the stand-in falls back to the CPU.
    """
    asked = os.environ.get(ENVIRONMENT_NAME)
    if asked:
        device = torch.device(asked)
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
