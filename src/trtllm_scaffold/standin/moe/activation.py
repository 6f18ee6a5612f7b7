"""What stands between the two products of an expert: 1.4's carriers, and the formulas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F

from trtllm_scaffold.standin.utils import ActivationType

ActivationConstant: TypeAlias = torch.Tensor | float


@dataclass(frozen=True, eq=False)
class ActivationConstants:
    """Constants of an activation in the order that kernels take them."""

    alpha: ActivationConstant | None = None
    beta: ActivationConstant | None = None
    limit: ActivationConstant | None = None


def _positive(value: ActivationConstant | None, what: str) -> None:
    if value is None:
        return
    smallest = float(torch.as_tensor(value).detach().min())
    if not smallest > 0:
        raise ValueError(f"{what} must be positive, got {smallest}")


@dataclass(frozen=True, eq=False)
class SwigluActivation:
    """``silu(gate) * up``; with ``clamp`` the gate is bounded above, up on both sides."""

    clamp: ActivationConstant | None = None
    kind: ClassVar[ActivationType] = ActivationType.Swiglu

    def __post_init__(self) -> None:
        _positive(self.clamp, "activation clamp")

    def constants(self) -> ActivationConstants:
        """The clamp."""
        return ActivationConstants(limit=self.clamp)


@dataclass(frozen=True, eq=False)
class SwigluBiasActivation:
    """``gate * sigmoid(scale * gate) * (up + offset)`` of clamped halves (gpt-oss)."""

    gate_sigmoid_scale: ActivationConstant
    linear_offset: ActivationConstant
    clamp: ActivationConstant | None = None
    kind: ClassVar[ActivationType] = ActivationType.SwigluBias

    def __post_init__(self) -> None:
        _positive(self.clamp, "activation clamp")

    def constants(self) -> ActivationConstants:
        """Scale, offset and clamp."""
        return ActivationConstants(self.gate_sigmoid_scale, self.linear_offset, self.clamp)


@dataclass(frozen=True, eq=False)
class SiTuActivation:
    """``cap(gate, a) * sigmoid(gate) * cap(up, b)`` with ``cap(x, c) = c * tanh(x / c)``."""

    gate_softcap: ActivationConstant
    linear_softcap: ActivationConstant
    kind: ClassVar[Any] = ActivationType.SiTu

    def __post_init__(self) -> None:
        _positive(self.gate_softcap, "SiTu gate_softcap")
        _positive(self.linear_softcap, "SiTu linear_softcap")

    def constants(self) -> ActivationConstants:
        """Both caps."""
        return ActivationConstants(self.gate_softcap, self.linear_softcap)


@dataclass(frozen=True, eq=False)
class SimpleActivation:
    """A kind without constants.

    Raises:
        ValueError: If the kind takes constants, or is none of a mixture of experts.
    """

    kind: ActivationType

    def __post_init__(self) -> None:
        carrier = ACTIVATION_PAYLOAD.get(ActivationType(self.kind))
        if carrier is None:
            raise ValueError(f"{ActivationType(self.kind).name} is not a MoE activation kind")
        if carrier is not SimpleActivation:
            raise ValueError(
                f"{ActivationType(self.kind).name} takes constants: build a {carrier.__name__}"
            )

    def constants(self) -> ActivationConstants:
        """None."""
        return ActivationConstants()


MoEActivation = SwigluActivation | SwigluBiasActivation | SiTuActivation | SimpleActivation

ACTIVATION_PAYLOAD: dict[ActivationType, Any] = {
    ActivationType.Gelu: SimpleActivation,
    ActivationType.Relu: SimpleActivation,
    ActivationType.Silu: SimpleActivation,
    ActivationType.Relu2: SimpleActivation,
    ActivationType.Geglu: SimpleActivation,
    ActivationType.Swiglu: SwigluActivation,
    ActivationType.SwigluBias: SwigluBiasActivation,
    ActivationType.SiTu: SiTuActivation,
}

DEFAULT_MOE_ACTIVATION = SwigluActivation()


class ActivationParamShape(Enum):
    """Form in which a backend takes a constant."""

    PER_EXPERT_TENSOR = auto()
    UNIFORM_SCALAR = auto()
    UNSUPPORTED = auto()


@dataclass(frozen=True)
class MoEActivationSupport:
    """Which activations a backend executes."""

    kinds: frozenset[ActivationType]
    alpha_beta: ActivationParamShape = ActivationParamShape.UNSUPPORTED
    limit: ActivationParamShape = ActivationParamShape.UNSUPPORTED
    limit_when_absent: float | None = None


#: Kinds whose first product has two halves, up and gate.
GATED = frozenset(
    {
        ActivationType.Swiglu,
        ActivationType.SwigluBias,
        ActivationType.Geglu,
        ActivationType.SiTu,
    }
)

_SIMPLE: dict[ActivationType, Callable[[torch.Tensor], torch.Tensor]] = {
    ActivationType.Gelu: F.gelu,
    ActivationType.Relu: F.relu,
    ActivationType.Silu: F.silu,
    ActivationType.Relu2: lambda x: F.relu(x).square(),
}


@dataclass(frozen=True, eq=False)
class Formula:
    """An activation ready to be computed; constants are ``[experts, 1, 1]`` or numbers."""

    kind: ActivationType
    constants: ActivationConstants

    @property
    def gated(self) -> bool:
        """Whether the experts have an up projection besides the gate."""
        return self.kind in GATED

    def __call__(
        self, first: torch.Tensor, up: torch.Tensor | None, experts: Any = slice(None)
    ) -> torch.Tensor:
        """Apply to ``[experts, rows, width]`` in float32.

        Args:
            first: Product of the gate (or only) projection.
            up: Product of the up projection of a gated kind.
            experts: Which local experts the first dimension holds.
        """
        wide = first.float()
        if up is None:
            return _SIMPLE[self.kind](wide).to(first.dtype)
        alpha, beta, limit = (
            _for_experts(value, experts, wide.device)
            for value in (self.constants.alpha, self.constants.beta, self.constants.limit)
        )
        return self._gated(wide, up.float(), alpha, beta, limit).to(first.dtype)

    def _gated(
        self, gate: torch.Tensor, up: torch.Tensor, alpha: Any, beta: Any, limit: Any
    ) -> torch.Tensor:
        if self.kind is ActivationType.Geglu:
            return F.gelu(gate) * up
        if self.kind is ActivationType.SiTu:
            return alpha * torch.tanh(gate / alpha) * gate.sigmoid() * beta * torch.tanh(up / beta)
        if limit is not None:
            # A number stays on the host: a transfer per call would wait for the device.
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        scaled = gate if alpha is None else gate * alpha
        return gate * scaled.sigmoid() * (up if beta is None else up + beta)


def _for_experts(value: Any, experts: Any, device: torch.device) -> Any:
    """A per-expert constant as ``[experts, 1, 1]`` on `device`; a number as it is."""
    if isinstance(value, torch.Tensor) and value.numel() > 1:
        return value.float()[experts].reshape(-1, 1, 1).to(device)
    return value if value is None else float(value)


def formula_of(activation: Any) -> Formula:
    """The formula of a 1.4 carrier."""
    return Formula(ActivationType(activation.kind), activation.constants())


def formula_of_arguments(kind: ActivationType, alpha: Any, beta: Any, limit: Any) -> Formula:
    """The formula of 1.2's arguments: any constant makes a SwiGLU the gpt-oss one."""
    if kind is ActivationType.Swiglu and (alpha is not None or beta is not None):
        kind = ActivationType.SwigluBias
    if kind not in (ActivationType.Swiglu, ActivationType.SwigluBias):
        assert alpha is None and beta is None and limit is None, f"{kind.name} takes no constants"
    return Formula(kind, ActivationConstants(alpha, beta, limit))
