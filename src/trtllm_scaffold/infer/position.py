"""Reads the rotation of queries and keys from what it does to one head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.layers import Layer

_EXACT = 1e-4


@dataclass(frozen=True)
class RopeFacts:
    """A rotation of queries and keys.

    Attributes:
        style, dim: See `RopeSpec`.
        frequencies: Radians per position of each rotated pair.
        inverse: Whether it turns the other way.
    """

    style: Literal["neox", "interleaved"]
    dim: int
    frequencies: tuple[float, ...]
    inverse: bool = False

    def agrees(self, other: RopeFacts) -> bool:
        """Whether both are the same rotation."""
        same = (self.style, self.dim, self.inverse) == (other.style, other.dim, other.inverse)
        pairs = zip(self.frequencies, other.frequencies, strict=False)
        return same and all(abs(a - b) <= _EXACT * max(a, b) for a, b in pairs)

    def rotates(self, columns: torch.Tensor) -> torch.Tensor:
        """[head_dim] whether each of a head's entries, which hold these columns, is rotated."""
        return columns - columns.min() < self.dim


def read_rope(layer: Layer, matrices: torch.Tensor, columns: torch.Tensor) -> RopeFacts:
    """Read a rotation.

    Args:
        layer: For messages.
        matrices: [sequence, out, in] of one head, by entries of the operand.
        columns: [head_dim] column of the projection that each entry holds at position 0.

    Raises:
        Refused: It is no rotation of pairs, or of pairs that have no label.
    """
    order = torch.argsort(columns)
    if not torch.equal(columns[order], torch.arange(len(columns)) + columns.min()):
        raise _refused(layer, "the head's dimensions do not lie side by side")
    m = matrices.double()[:, order][:, :, order]
    pairs = _pairs(layer, m)
    dim = 2 * len(pairs)
    style = _style(pairs, dim)
    if style is None:
        raise _refused(layer, f"it pairs dimensions {pairs[:3]}... of {m.shape[1]}")
    cos = torch.stack([m[:, a, a] for a, _ in pairs], 1)
    sin = torch.stack([m[:, b, a] for a, b in pairs], 1)
    amplitude = float((cos[0] ** 2 + sin[0] ** 2).sqrt().mean())
    radius = (cos**2 + sin**2).sqrt()
    mirrored = torch.stack([m[:, a, b] for a, b in pairs], 1)
    if bool(((radius - amplitude).abs() > _EXACT).any()) or bool(
        ((mirrored + sin).abs() > _EXACT).any()
    ):
        raise _refused(layer, "it is no rotation")
    angles = torch.atan2(sin, cos)
    inverse = bool((angles[1] <= _EXACT).all())
    if inverse:
        angles = -angles
    if bool((angles[1] < -_EXACT).any()):
        raise _refused(layer, "some pairs turn the other way")
    return RopeFacts(style, dim, _frequencies(angles), inverse)


def _pairs(layer: Layer, m: torch.Tensor) -> list[tuple[int, int]]:
    """The coupled dimensions, each pair once, in order."""
    width = m.shape[1]
    coupled = (m != 0).any(0) & ~torch.eye(width, dtype=torch.bool)
    pairs = []
    for a in range(width):
        partners = coupled[a].nonzero().flatten().tolist()
        if len(partners) > 1:
            raise _refused(layer, f"dimension {a} meets {len(partners)} others")
        if partners and partners[0] > a:
            pairs.append((a, int(partners[0])))
    if not pairs:
        raise _refused(layer, "positions scale dimensions instead of rotating them")
    return pairs


def _style(pairs: list[tuple[int, int]], dim: int) -> Literal["neox", "interleaved"] | None:
    if pairs == [(j, j + dim // 2) for j in range(dim // 2)]:
        return "neox"
    return "interleaved" if pairs == [(2 * j, 2 * j + 1) for j in range(dim // 2)] else None


def _frequencies(angles: torch.Tensor) -> tuple[float, ...]:
    """Radians per position, from [sequence, pairs] angles modulo a turn.

    Each longer distance refines the estimate, as its whole turns are known from the last.
    """
    frequency = angles[1]
    for position in range(2, len(angles)):
        turns = ((frequency * position - angles[position]) / (2 * math.pi)).round()
        frequency = (angles[position] + 2 * math.pi * turns) / position
    return tuple(frequency.tolist())


def geometric_theta(rope: RopeFacts) -> float | None:
    """Theta where frequencies are ``theta ** (-2 j / dim)``, else None."""
    logs = [math.log(f) for f in rope.frequencies if f > 0]
    if len(logs) != rope.dim // 2 or len(logs) < 2 or abs(logs[0]) > 1e-4:
        return None
    steps = [-log * rope.dim / (2 * j) for j, log in enumerate(logs) if j]
    mean = sum(steps) / len(steps)
    if any(abs(step - mean) > 1e-3 * max(1.0, abs(mean)) for step in steps):
        return None
    return math.exp(min(steps, key=lambda step: abs(step - mean)))


def _refused(layer: Layer, problem: str) -> Refused:
    return Refused(
        "position",
        f"the rotation of queries or keys has no label: {problem}",
        where=layer.name,
        hint="neox and interleaved rope, in full or on the first dimensions, are expressed",
    )
