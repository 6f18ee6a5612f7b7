"""RoutingMethodType and ActivationType as 1.2 numbers them."""

from __future__ import annotations

from enum import IntEnum


class RoutingMethodType(IntEnum):
    """How a router picks experts, as kernels that fuse the routing number it."""

    Default = 0
    Renormalize = 1
    DeepSeekV3 = 2
    Llama4 = 3
    RenormalizeNaive = 4
    Unspecified = 5


class ActivationType(IntEnum):
    """Activations of expert kernels."""

    InvalidType = 0
    Identity = 1
    Gelu = 2
    Relu = 3
    Silu = 4
    Swiglu = 5
    Geglu = 6
    SwigluBias = 7
    Relu2 = 8
