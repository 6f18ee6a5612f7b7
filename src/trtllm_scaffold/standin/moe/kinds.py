"""RoutingMethodType as 1.4 numbers it, and the one in force."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from trtllm_scaffold.standin.generation import active
from trtllm_scaffold.standin.moe import kinds_1_2


class RoutingMethodType(IntEnum):
    """How a router picks experts, as kernels that fuse the routing number it."""

    Default = 0
    Renormalize = 1
    DeepSeekV3 = 2
    Llama4 = 3
    RenormalizeNaive = 4
    MiniMax2 = 5
    SigmoidRenorm = 6
    DeepSeekV4 = 7
    Unspecified = 8


def kind(name: str) -> Any:
    """The active generation's member ``name``; ``Unspecified`` where it has none."""
    members = kinds_1_2.RoutingMethodType if active() == "1.2" else RoutingMethodType
    return getattr(members, name, members.Unspecified)
