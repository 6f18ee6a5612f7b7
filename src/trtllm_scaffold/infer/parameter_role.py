"""What one module parameter holds: the hand-over from tracing to the checkpoint axis."""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_scaffold.spec.checkpoint import Layout


@dataclass(frozen=True)
class ParameterRole:
    """The parts of a module parameter, as `TensorSpec` says them.

    Attributes:
        roles: What it holds, in order (the names are those of `TensorSpec.roles`).
        layout: How the parts lie in it.
        transposed: Held [in, out] instead of [out, in].
    """

    roles: tuple[str, ...]
    layout: Layout = "whole"
    transposed: bool = False
