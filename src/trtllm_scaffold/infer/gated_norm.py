"""Recognises a norm whose output is scaled by a low-rank gate computed from that output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from trtllm_scaffold.infer.norm import NormFacts

_TOLERANCE = 1e-5
_AMPLITUDES = (0.3, 1.0, 20.0)  # at several sizes, so that no other activation passes


@dataclass(frozen=True)
class NormGateFacts:
    """The gate of y * sigmoid(up(silu(down(y)))), y being the norm's output.

    Attributes:
        down, up: Full names of the weights [rank, width] and [width, rank].
        rank: Width between them.
    """

    down: str
    up: str
    rank: int


def gated(
    module: nn.Module, shape: tuple[int, ...], name: str, inner: tuple[str, NormFacts]
) -> NormFacts | None:
    """What `module` computes, if it is the norm `inner` inside it and such a gate.

    Args:
        module: The module.
        shape: Of its input.
        name: Its name.
        inner: Name in the module, and facts, of a norm that it holds.

    Returns:
        The norm with its gate and the module's name, or None for any other formula.
    """
    norm = module.get_submodule(inner[0])
    own = {id(parameter) for parameter in norm.parameters()}
    rest = {k: p for k, p in module.named_parameters() if id(p) not in own}
    if len(rest) != 2 or any(p.dim() != 2 for p in rest.values()):
        return None
    (first, one), (second, two) = rest.items()
    for (down, a), (up, b) in (((first, one), (second, two)), ((second, two), (first, one))):
        if a.shape[1] == b.shape[0] == shape[-1] and a.shape[0] == b.shape[1]:
            if _is_gated(module, norm, a, b, shape):
                gate = NormGateFacts(f"{name}.{down}", f"{name}.{up}", a.shape[0])
                return replace(inner[1], name=name, gate=gate)
    return None


def _is_gated(
    module: nn.Module,
    norm: nn.Module,
    down: torch.Tensor,
    up: torch.Tensor,
    shape: tuple[int, ...],
) -> bool:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator) + 0.5
    for amplitude in _AMPLITUDES:
        # every channel has an amplitude of its own, which a norm does not take away
        given = x * torch.linspace(0.1, amplitude, shape[-1])
        with torch.no_grad():
            try:
                seen, y = module(given), norm(given)
            except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
                return False
            guess = y * torch.sigmoid(nn.functional.silu(y @ down.T) @ up.T)
        if not isinstance(seen, torch.Tensor) or seen.shape != guess.shape:
            return False
        if bool(((seen - guess).abs() > _TOLERANCE * (1.0 + guess.abs().amax())).any()):
            return False
    return True
