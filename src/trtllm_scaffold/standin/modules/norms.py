"""RMSNorm and LayerNorm with the residual convention of the library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from trtllm_scaffold.standin.generation import contract, only_in
from trtllm_scaffold.standin.kernels.choice import fits


@contract("RMSNorm")
class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` in float32 (arXiv:1910.07467).

    With ``use_gemma`` the factor is ``1 + weight``. Without weights the factor is a buffer of
    ones that is not saved.
    """

    weight: torch.Tensor

    def __init__(
        self,
        *,
        hidden_size: int,
        eps: float,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        has_weights: bool = True,
        use_gemma: bool = False,
        quantize_type: str | None = None,
        use_cuda_tile: bool = False,
        return_hp_output: bool = False,
    ) -> None:
        super().__init__()
        if use_gemma and not has_weights:
            raise ValueError("has_weights must be True if use_gemma is True")
        if quantize_type not in (None, "nvfp4"):
            raise NotImplementedError(f"RMSNorm has no quantize_type {quantize_type!r}")
        if use_cuda_tile:
            raise ValueError("the stand-in has no cuda.tile")
        make = torch.zeros if use_gemma else torch.ones
        _register(self, "weight", make(hidden_size, dtype=dtype, device=device), has_weights)
        self.variance_epsilon = eps
        self.use_gemma = use_gemma
        self.is_nvfp4 = False
        self.return_hp_output = return_hp_output and self.is_nvfp4

    def forward(
        self, hidden_states: torch.Tensor, residual: Any = ..., *, return_norm_out: bool = False
    ) -> Any:
        """Normalise ``[..., hidden]``.

        Without ``residual`` one tensor comes back. With a tensor, both are added first and
        ``(normed, sum)`` comes back; as in the library's fused kernel the two results are
        written into the two inputs, so neither input may be used afterwards. With None,
        ``(normed, None)``.
        """
        only_in("1.4", "RMSNorm.forward", return_norm_out=return_norm_out or None)
        if not isinstance(residual, torch.Tensor):
            normed = self._normed(hidden_states)
            return normed if residual is ... else (normed, residual)
        if fits(hidden_states, residual, self.weight) and _dense(hidden_states, residual):
            from trtllm_scaffold.standin.kernels.rms_norm import rms_norm

            return self._fused(rms_norm, hidden_states, residual), residual
        total = hidden_states.float() + residual.float()
        hidden_states.copy_(self._norm(total))
        residual.copy_(total)
        return hidden_states, residual

    def _normed(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if fits(hidden_states, self.weight):
            from trtllm_scaffold.standin.kernels.rms_norm import rms_norm

            return self._fused(rms_norm, hidden_states)
        return self._norm(hidden_states.float()).to(hidden_states.dtype)

    def _fused(
        self,
        kernel: Callable[..., torch.Tensor],
        hidden_states: torch.Tensor,
        residual: torch.Tensor | None = None,
    ) -> torch.Tensor:
        options = {"residual": residual, "plus_one": self.use_gemma}
        return kernel(hidden_states, self.weight, self.variance_epsilon, **options)

    def _norm(self, wide: torch.Tensor) -> torch.Tensor:
        factor = self.weight.float() + 1 if self.use_gemma else self.weight.float()
        variance = wide.square().mean(-1, keepdim=True)
        return wide * torch.rsqrt(variance + self.variance_epsilon) * factor

    def skip_forward(self, hidden_states: torch.Tensor, residual: Any = ...) -> Any:
        """The inputs unchanged, in the shape of ``forward``'s result."""
        return hidden_states if residual is ... else (hidden_states, residual)


@contract("LayerNorm")
class LayerNorm(nn.Module):
    """Layer normalisation in float32 (arXiv:1607.06450), with RMSNorm's residual convention.

    Missing weights or biases are buffers of ones or zeros that are not saved.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self,
        *,
        hidden_size: int,
        eps: float,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        has_weights: bool = True,
        has_bias: bool = True,
        quantize_type: str | None = None,
    ) -> None:
        super().__init__()
        if quantize_type not in (None, "nvfp4"):
            raise NotImplementedError(f"LayerNorm has no quantize_type {quantize_type!r}")
        _register(self, "weight", torch.ones(hidden_size, dtype=dtype, device=device), has_weights)
        _register(self, "bias", torch.zeros(hidden_size, dtype=dtype, device=device), has_bias)
        self.variance_epsilon = eps

    def forward(self, hidden_states: torch.Tensor, residual: Any = ...) -> Any:
        """Normalise ``[..., hidden]``; with ``residual`` return ``(normed, sum)``.

        Unlike RMSNorm it leaves its inputs alone. None as residual gives ``(normed, None)``.
        """
        dtype = hidden_states.dtype
        wide = hidden_states.float()
        if isinstance(residual, torch.Tensor):
            wide = wide + residual.float()
            residual = wide.to(dtype)
        normed = F.layer_norm(
            wide, wide.shape[-1:], self.weight.float(), self.bias.float(), self.variance_epsilon
        ).to(dtype)
        return normed if residual is ... else (normed, residual)

    def skip_forward(self, hidden_states: torch.Tensor, residual: Any = ...) -> Any:
        """The inputs unchanged, in the shape of ``forward``'s result."""
        return hidden_states if residual is ... else (hidden_states, residual)


def _dense(*tensors: torch.Tensor) -> bool:
    return all(tensor.is_contiguous() for tensor in tensors)


def _register(module: nn.Module, name: str, value: torch.Tensor, trained: bool) -> None:
    if trained:
        module.register_parameter(name, nn.Parameter(value))
    else:
        module.register_buffer(name, value, persistent=False)
