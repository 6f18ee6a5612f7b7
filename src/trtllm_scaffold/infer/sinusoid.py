"""Reads a fixed table of sines and cosines that is added to the token embedding."""

from __future__ import annotations

import math
from typing import Literal

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.spec import SinusoidalSpec

_EXACT = 1e-4
_LAYOUTS: tuple[Literal["concatenated", "alternating"], ...] = ("concatenated", "alternating")
_OFFSETS = range(4)


def read_sinusoid(added: torch.Tensor) -> SinusoidalSpec:
    """Name the table that is added to the embedded tokens.

    Args:
        added: [sequence, hidden_size], the same for every sequence.

    Raises:
        Refused: It is none of the layouts.
    """
    for layout in _LAYOUTS:
        base = _base(added.double(), layout)
        for offset in _OFFSETS if base else ():
            spec = SinusoidalSpec(layout, base, offset)
            expected = sinusoids(spec, *added.shape)
            if bool(((added.double() - expected).abs() <= _EXACT).all()):
                return spec
    raise Refused(
        "position",
        "the fixed table that is added to the embedding has no label",
        where="the first layer's input",
        hint="sines before cosines, and sines and cosines in turn, are expressed",
    )


def sinusoids(spec: SinusoidalSpec, length: int, width: int) -> torch.Tensor:
    """[length, width] table of the first positions.

    Formula: Vaswani et al., "Attention Is All You Need" (2017), section 3.5.
    """
    positions = torch.arange(length, dtype=torch.double) + spec.offset
    exponents = torch.arange(0, width, 2, dtype=torch.double) / width
    angles = positions[:, None] / spec.base**exponents
    both = [angles.sin(), angles.cos()]
    if spec.layout == "concatenated":
        return torch.cat(both, 1)[:, :width]
    return torch.stack(both, -1).flatten(1)[:, :width]


def _base(table: torch.Tensor, layout: str) -> float:
    """The base that the second slowest rotation tells; 0 where it tells none."""
    width = table.shape[1]
    places = (1, 1 + width // 2) if layout == "concatenated" else (2, 3)
    if width < 4:
        return 0.0
    sines, cosines = table[:2, places[0]], table[:2, places[1]]
    angles = torch.atan2(sines, cosines)
    rate = float(angles[1] - angles[0]) % (2 * math.pi)
    base = rate ** (-width / 2) if rate > 0 else 0.0
    return float(f"{base:.3g}") if math.isfinite(base) else 0.0
