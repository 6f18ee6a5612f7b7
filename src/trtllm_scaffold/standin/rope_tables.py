"""Rotary frequency and cos/sin tables for each scaling type, in numpy float32.

Formulas: RoFormer (arXiv:2104.09864), linear and dynamic NTK interpolation, YaRN
(arXiv:2309.00071), LongRoPE (arXiv:2402.13753) and the Llama 3.1 frequency smoothing, in the
form in which the library evaluates them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtllm_scaffold.standin.functional import RotaryScalingType

if TYPE_CHECKING:
    from trtllm_scaffold.standin.interface import RopeParams

Array = npt.NDArray[np.float32]


def inverse_frequencies(params: RopeParams) -> tuple[Array, float]:
    """Inverse frequencies and the factor on cos and sin of one parameter set.

    Returns:
        ``[dim / 2]`` float32 and the magnitude (1 for all but yarn and longrope).
    """
    return _BUILDERS[params.scale_type](params)


def cos_sin_table(params: RopeParams, frequencies: Array, magnitude: float) -> Array:
    """``[max_positions, dim / 2, 2]`` float32: cos and sin of each position and frequency."""
    positions = np.arange(params.max_positions, dtype=np.float32)
    angles = positions[:, None] * frequencies[None, :]
    return np.stack((np.cos(angles), np.sin(angles)), axis=-1) * np.float32(magnitude)


def _powers(dim: int, theta: float) -> Array:
    return (theta ** (np.arange(0, dim, 2) / dim)).astype(np.float32)


def _plain(params: RopeParams) -> tuple[Array, float]:
    return np.float32(1) / _powers(params.dim, params.theta), 1.0


def _linear(params: RopeParams) -> tuple[Array, float]:
    return np.float32(1 / params.scale) / _powers(params.dim, params.theta), 1.0


def _dynamic(params: RopeParams) -> tuple[Array, float]:
    """NTK with a fixed ``alpha``: the library does not grow the base with the sequence length."""
    base = params.theta * params.alpha ** (params.dim / (params.dim - 2))
    return np.float32(1) / _powers(params.dim, base), 1.0


def _llama3(params: RopeParams) -> tuple[Array, float]:
    plain, _ = _plain(params)
    wavelength = 2 * math.pi / plain
    low, high = params.low_freq_factor, params.high_freq_factor
    original = params.original_max_positions
    smooth = (original / wavelength - low) / (high - low) if high != low else np.zeros_like(plain)
    between = (1 - smooth) * plain / params.scale + smooth * plain
    stretched = np.where(wavelength > original / low, plain / params.scale, between)
    return np.where(wavelength < original / high, plain, stretched).astype(np.float32), 1.0


def _yarn(params: RopeParams) -> tuple[Array, float]:
    dim, original = params.dim, params.original_max_positions

    def dimension_of(rotations: float) -> float:
        turns = original / (rotations * 2 * math.pi)
        return dim * math.log(turns) / (2 * math.log(params.theta))

    low = max(math.floor(dimension_of(params.beta_fast)), 0)
    high = float(min(math.ceil(dimension_of(params.beta_slow)), dim - 1))
    if low == high:
        high += 0.001  # avoids a division by zero
    ramp = np.clip((np.arange(dim // 2, dtype=np.float32) - low) / (high - low), 0, 1)
    plain, _ = _plain(params)
    frequencies = plain / np.float32(params.scale) * ramp + plain * (1 - ramp)
    magnitude = yarn_magnitude(params.scale, params.mscale)
    magnitude /= yarn_magnitude(params.scale, params.mscale_all_dim)
    return frequencies.astype(np.float32), magnitude


def yarn_magnitude(scale: float, mscale: float) -> float:
    """``0.1 * mscale * ln(scale) + 1`` beyond the original length, else 1 (YaRN, section 3.4)."""
    return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0


def _longrope(params: RopeParams) -> tuple[Array, float]:
    """One factor set for all positions, chosen once from the longest sequence to expect."""
    original, longest = params.original_max_positions, params.max_seq_len
    is_long = longest is None or longest > original
    factors = params.long_factor if is_long else params.short_factor
    assert factors is not None, "longrope needs short_factor and long_factor"
    plain, _ = _plain(params)
    stretch = params.max_positions / original
    magnitude = 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))
    return np.divide(plain, np.array(factors, dtype=np.float32), dtype=np.float32), magnitude


_BUILDERS = {
    RotaryScalingType.none: _plain,
    RotaryScalingType.linear: _linear,
    RotaryScalingType.dynamic: _dynamic,
    RotaryScalingType.longrope: _longrope,
    RotaryScalingType.llama3: _llama3,
    RotaryScalingType.yarn: _yarn,
    RotaryScalingType.mrope: _plain,
}
