"""What a check says, and the report that a proof hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Status = Literal["passed", "failed", "skipped"]

_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Check:
    """One check: what was measured, against which bound, and why it did not pass.

    Attributes:
        name: Stable name, such as ``contract 1.2`` or ``parity fp32 decode``.
        status: ``passed``, ``failed`` or ``skipped``. A skipped check proves nothing.
        measured: JSON-plain figures.
        bound: The figures that `measured` was held against.
        reason: Empty when passed, else a sentence that its reader can act on.
    """

    name: str
    status: Status
    measured: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    bound: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The entry of the check list that ``--json`` prints."""
        return {
            "name": self.name,
            "status": self.status,
            "measured": dict(self.measured),
            "bound": dict(self.bound),
            "reason": self.reason,
        }


def verdict(
    name: str,
    problems: list[str],
    *,
    measured: Mapping[str, Any] | None = None,
    bound: Mapping[str, Any] | None = None,
    shown: int = 5,
) -> Check:
    """A check that failed if there are `problems`; the first `shown` of them are its reason."""
    reason = "; ".join(problems[:shown])
    if len(problems) > shown:
        reason += f"; and {len(problems) - shown} more"
    status: Status = "failed" if problems else "passed"
    return Check(name, status, measured or _EMPTY, bound or _EMPTY, reason)


def skipped(name: str, reason: str) -> Check:
    """A check that was not made, and why."""
    return Check(name, "skipped", reason=reason)


def all_passed(checks: tuple[Check, ...] | list[Check]) -> bool:
    """Whether something was checked and nothing failed."""
    return not any(check.status == "failed" for check in checks) and any(
        check.status == "passed" for check in checks
    )


@dataclass(frozen=True)
class ProofReport:
    """Everything that one `prove` found out about a port.

    Attributes:
        port: The port's folder as given.
        runtime: Name (``standin`` or ``tensorrt_llm``) and version of what the port ran on.
        device: ``cpu`` or ``cuda`` and, for a GPU, its name.
        reference: Versions of what it was compared with.
        checks: In the order they were made.
        layers: For each compared run, the error after each layer: rows for the plot.
    """

    port: str
    runtime: Mapping[str, str]
    device: str
    reference: Mapping[str, str]
    checks: tuple[Check, ...]
    layers: tuple[LayerErrors, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether something was checked and nothing failed."""
        return all_passed(self.checks)

    def to_json(self) -> dict[str, Any]:
        """The document that ``prove --json`` prints."""
        return {
            "port": self.port,
            "runtime": dict(self.runtime),
            "device": self.device,
            "reference": dict(self.reference),
            "checks": [check.to_json() for check in self.checks],
            "passed": self.passed,
        }


@dataclass(frozen=True)
class LayerErrors:
    """Distance of the port's output from HF's, stage by stage, in one prefill.

    Attributes:
        title: What was run, such as ``tiny.json, TRTLLM backend``.
        stages: Module paths in order: embedding, layers, final norm, logits.
        errors: For each stage max |port - HF| / max(1, max |HF|).
        bound: What an error must not exceed.
    """

    title: str
    stages: tuple[str, ...]
    errors: tuple[float, ...]
    bound: float
