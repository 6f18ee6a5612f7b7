"""Kernels that overlap: one may be set up, and fetch weights, while the one before it ends.

NVIDIA calls it programmatic dependent launch; it exists from Hopper on. Elsewhere, and in Triton's
interpreter on the CPU, one kernel runs after the other and there is nothing to wait for.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl  # noqa: F401 (the interpreter looks for it in every module)

try:
    from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

    _KNOWN = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
except ImportError:
    _KNOWN = False

#: Keyword of a launch whose kernel calls :func:`wait`.
OVERLAP = {"launch_pdl": True} if _KNOWN else {}

if not _KNOWN:

    @triton.jit
    def gdc_wait():
        """Nothing."""

    @triton.jit
    def gdc_launch_dependents():
        """Nothing."""


@triton.jit
def wait():
    """Return when the kernels before have written all they write; the next may be set up."""
    gdc_wait()
    gdc_launch_dependents()
