"""Reads a bias on the attention scores: ALiBi's slopes, or something else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.scores import Bias

_EXACT = 1e-4
#: Relative error of a bias that was rounded to bfloat16 on the way (two roundings).
_ROUNDED = 2.0**-7

#: Greatest exponent of two that slopes end at, as the paper has it.
PAPER_BIAS = 8.0


@dataclass(frozen=True)
class AlibiFacts:
    """Slopes of ALiBi.

    Attributes:
        max_bias: The last head's slope is ``2 ** -max_bias`` for a power of two of heads.
        scaled: The slopes are the formula's times the softmax scale.
    """

    max_bias: float
    scaled: bool


def bias_kind(layer: Layer, biases: list[Bias]) -> str | None:
    """``alibi`` for scores lowered in proportion to the distance, else ``relative``."""
    if not biases:
        return None
    learned = any(
        v in layer.graph.parameters for bias, _ in biases for v in layer.graph.ancestors(bias)
    )
    return "relative" if learned or _slopes(layer, biases) is None else "alibi"


def read_alibi(layer: Layer, biases: list[Bias], scale: float) -> AlibiFacts:
    """Read the rule of the slopes.

    Args:
        layer: The layer.
        biases: What is added to the scores, of kind ``alibi``.
        scale: The factor on q.k.

    Raises:
        Refused: The slopes follow no known rule for this number of heads.
    """
    slopes = _slopes(layer, biases)
    assert slopes is not None
    for scaled in (False, True):
        plain = slopes / scale if scaled else slopes
        for max_bias in (PAPER_BIAS, _max_bias(plain)):
            if max_bias > 0 and _follows(plain, max_bias):
                return AlibiFacts(max_bias, scaled)
    shown = ", ".join(f"{slope:.4g}" for slope in slopes.tolist())
    raise Refused(
        "position",
        f"the slopes of ALiBi follow no known rule for {len(slopes)} heads: {shown}",
        where=layer.name,
        hint="the paper's slopes, with a maximum bias, scaled as the scores or not",
    )


def alibi_slopes(heads: int, max_bias: float) -> list[float]:
    """Slopes per head; where heads are no power of two, every other of the next power first.

    Formula: Press, Smith and Lewis, "Train Short, Test Long" (2022), section 3.
    """
    count = 2 ** math.ceil(math.log2(heads))
    slopes = [2.0 ** (-max_bias * power / count) for power in range(1, count + 1)]
    return slopes if count == heads else (slopes[1::2] + slopes[::2])[:heads]


def _max_bias(slopes: torch.Tensor) -> float:
    """The maximum bias that the first slope tells; 0 where it tells none."""
    first = float(slopes[0])
    if first <= 0:
        return 0.0
    count = 2 ** math.ceil(math.log2(len(slopes)))
    power = 1 if count == len(slopes) else 2
    found = -math.log2(first) * count / power
    return float(round(found)) if abs(found - round(found)) < 1e-2 else found


def _follows(slopes: torch.Tensor, max_bias: float) -> bool:
    formula = torch.tensor(alibi_slopes(len(slopes), max_bias), dtype=slopes.dtype)
    exact = bool(((slopes - formula).abs() <= _EXACT * formula).all())
    return exact or bool(((slopes - formula).abs() <= _ROUNDED * formula).all())


def _slopes(layer: Layer, biases: list[Bias]) -> torch.Tensor | None:
    """[heads] bias per token of distance, or None where it is not in proportion.

    The last query's row is read; a constant on a row does not matter to a softmax.
    """
    weights = layer.softmax.outputs[0].shape
    total = torch.zeros(weights, dtype=torch.double)
    rounded = False
    for bias, factor in biases:
        data = bias.data
        rounded = rounded or bool(torch.equal(data, data.bfloat16().to(data.dtype)))
        if data.dim() == 3 and data.shape[0] == weights[0] * weights[1]:
            data = data.unflatten(0, weights[:2])
        total = total + factor * data.double()
    row = total[:, :, -1]  # [batch, heads, keys]
    if bool((row != row[:1]).any()):
        return None
    row = row[0]
    distance = torch.arange(row.shape[-1], dtype=torch.double) - (row.shape[-1] - 1)
    slopes = (row[:, 0] - row[:, -1]) / distance[0]
    line = slopes[:, None] * distance
    error = (row - row[:, -1:] - line).abs().amax(1)
    bound = (_ROUNDED if rounded else _EXACT) * line.abs().amax(1)
    return slopes if bool((error <= bound).all()) and bool((slopes != 0).any()) else None
