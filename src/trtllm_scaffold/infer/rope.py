"""Computes rotary frequencies from settings, to compare them with those seen in a trace."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

_RTOL = 1e-3


def explains(settings: Mapping[str, Any], frequencies: tuple[float, ...]) -> bool:
    """Whether settings (see `normalize.rope_parameters`) yield the observed frequencies.

    Some types change with the length of the input; any of their forms will do.
    """
    return any(_close(guess, frequencies) for guess in expected(settings, len(frequencies)))


def expected(settings: Mapping[str, Any], pairs: int) -> Iterator[list[float]]:
    """Every list of frequencies that `settings` can yield for so many rotated pairs.

    Formulas: the rope types as defined by transformers' configuration documentation, after the
    papers (linear and NTK interpolation, YaRN, LongRoPE) and the Llama 3.1 release.
    """
    theta = float(settings["rope_theta"])
    base = [theta ** (-j / pairs) for j in range(pairs)]
    kind = settings.get("rope_type", "default")
    factor = float(settings.get("factor") or 1.0)
    if kind in ("default", "dynamic"):
        yield base
    elif kind == "linear":
        yield [f / factor for f in base]
    elif kind == "llama3":
        yield [_llama3(f, factor, settings) for f in base]
    elif kind == "longrope":
        for name in ("short_factor", "long_factor"):
            factors = settings.get(name) or ()
            if len(factors) == pairs:
                yield [f / float(s) for f, s in zip(base, factors, strict=True)]
    elif kind == "yarn":
        yield _yarn(base, theta, factor, settings)


def attention_factor(settings: Mapping[str, Any], max_positions: float | None) -> float:
    """What the rotation multiplies queries and keys by, for yarn and longrope; else 1.

    Args:
        settings: See `normalize.rope_parameters`.
        max_positions: The configuration's longest length; longrope derives its factor from it.
    """
    kind = settings.get("rope_type", "default")
    if kind not in ("yarn", "longrope"):
        return 1.0
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])
    factor, original = settings.get("factor"), settings.get("original_max_position_embeddings")
    if kind == "longrope":
        if original and max_positions:
            factor = max_positions / float(original)
        if not factor or not original or factor <= 1.0:
            return 1.0
        return math.sqrt(1.0 + math.log(factor) / math.log(float(original)))
    scale, whole = settings.get("mscale"), settings.get("mscale_all_dim")
    if scale and whole:
        return yarn_magnitude(float(factor or 1.0), float(scale)) / yarn_magnitude(
            float(factor or 1.0), float(whole)
        )
    return yarn_magnitude(float(factor or 1.0), 1.0)


def yarn_magnitude(factor: float, weight: float) -> float:
    """YaRN's ``0.1 * weight * ln(factor) + 1`` beyond the original length, else 1."""
    return 1.0 if factor <= 1.0 else 0.1 * weight * math.log(factor) + 1.0


def _llama3(frequency: float, factor: float, settings: Mapping[str, Any]) -> float:
    """Low frequencies divided by `factor`, high ones kept, a linear blend between.

    Where both ends are the same number of turns, nothing lies between.
    """
    original = float(settings["original_max_position_embeddings"])
    low, high = float(settings["low_freq_factor"]), float(settings["high_freq_factor"])
    turns = original * frequency / (2 * math.pi)
    blend = (turns - low) / (high - low) if high != low else float(turns > low)
    share = min(1.0, max(0.0, blend))
    return (1 - share) * frequency / factor + share * frequency


def _yarn(
    base: list[float], theta: float, factor: float, settings: Mapping[str, Any]
) -> list[float]:
    """Interpolated below `beta_slow` turns, kept above `beta_fast`, a ramp over pairs between."""
    original = float(settings["original_max_position_embeddings"])
    pairs = len(base)

    def pair(turns: float) -> float:
        return pairs * math.log(original / (turns * 2 * math.pi)) / math.log(theta)

    low = pair(float(settings.get("beta_fast") or 32.0))
    high = pair(float(settings.get("beta_slow") or 1.0))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    width = max(high - low, 0.001)
    ramp = [min(1.0, max(0.0, (j - low) / width)) for j in range(pairs)]
    return [f * (1 - r) + f / factor * r for f, r in zip(base, ramp, strict=True)]


def _close(guess: list[float], seen: tuple[float, ...]) -> bool:
    if len(guess) != len(seen):
        return False
    return all(abs(a - b) <= _RTOL * max(a, b) for a, b in zip(guess, seen, strict=True))
