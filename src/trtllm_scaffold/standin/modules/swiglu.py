"""The gated SiLU between the products of a GatedMLP."""

from __future__ import annotations

import torch

from trtllm_scaffold.standin.generation import contract
from trtllm_scaffold.standin.kernels.choice import fits


@contract("swiglu")
def swiglu(
    x: torch.Tensor,
    quant_scale: torch.Tensor | None = None,
    quant_type: torch.dtype | None = None,
    swiglu_limit: float | None = None,
    swiglu_alpha: float | None = None,
    swiglu_beta: float | None = None,
) -> torch.Tensor:
    """``silu(gate) * up`` of a fused ``[..., gate | up]``, in float32 inside.

    Args:
        x: ``[..., 2 * width]``.
        quant_scale: Must be None: the stand-in keeps activations unquantized.
        quant_type: Likewise.
        swiglu_limit: Upper bound of the gate and two-sided bound of up.
        swiglu_alpha: Gain inside of the sigmoid (default 1).
        swiglu_beta: Added to up (default 0).

    Raises:
        NotImplementedError: If the result should be quantized.
    """
    _refuse_quantized(quant_scale, quant_type)
    return fused_swiglu(x, swiglu_limit, _or(swiglu_alpha, 1.0), _or(swiglu_beta, 0.0))


@contract("swiglu_2in")
def swiglu_2in(
    gate: torch.Tensor,
    up: torch.Tensor,
    quant_scale: torch.Tensor | None = None,
    quant_type: torch.dtype | None = None,
    swiglu_limit: float | None = None,
    swiglu_alpha: float | None = None,
    swiglu_beta: float | None = None,
) -> torch.Tensor:
    """:func:`swiglu` of separate tensors."""
    _refuse_quantized(quant_scale, quant_type)
    return _formula(gate, up, swiglu_limit, _or(swiglu_alpha, 1.0), _or(swiglu_beta, 0.0))


def _refuse_quantized(scale: torch.Tensor | None, kind: torch.dtype | None) -> None:
    if scale is not None or kind is not None:
        raise NotImplementedError("the stand-in's swiglu does not quantize its result")


def fused_swiglu(x: torch.Tensor, limit: float | None, gain: float, offset: float) -> torch.Tensor:
    """``gate * sigmoid(gain * gate) * (up + offset)`` of ``[..., gate | up]``."""
    if fits(x):
        from trtllm_scaffold.standin.kernels import swiglu as kernel

        return kernel.swiglu(x, limit, gain, offset)
    gate, up = x.chunk(2, dim=-1)
    return _formula(gate, up, limit, gain, offset)


def _formula(
    gate: torch.Tensor, up: torch.Tensor, limit: float | None, gain: float, offset: float
) -> torch.Tensor:
    wide, wide_up = gate.float(), up.float()
    if limit is not None:
        wide, wide_up = wide.clamp(max=limit), wide_up.clamp(-limit, limit)
    product = wide * torch.sigmoid(gain * wide) * (wide_up + offset)
    return product.to(gate.dtype)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
