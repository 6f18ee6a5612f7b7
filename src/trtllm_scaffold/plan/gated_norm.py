"""Norms with a gate on their output, which a module of the port computes."""

from __future__ import annotations

import dataclasses

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.spec import LayerKind, ModelSpec, NormSpec, Quantity, TensorSpec


def gated_norms(spec: ModelSpec) -> list[str]:
    """Names of the layers' norms that have a gate in some layers or in all."""
    return list(
        dict.fromkeys(
            name for kind in spec.layer_kinds for name, norm in kind.block.norms if norm.gate
        )
    )


def gate_sizes(spec: ModelSpec) -> dict[str, Quantity]:
    """The width of the gates by the name that the port reads; none without gates.

    Raises:
        Refused: Norms differ in it.
    """
    ranks = [
        norm.gate.rank for kind in spec.layer_kinds for _, norm in kind.block.norms if norm.gate
    ]
    if len({rank.expr for rank in ranks}) > 1:
        raise Refused("norm", f"gates of several widths: {sorted({r.expr for r in ranks})}")
    return {"norm_gate_rank": ranks[0]} if ranks else {}


def _in_all(spec: ModelSpec, name: str) -> bool:
    return all(_has_gate(kind, name) for kind in spec.layer_kinds)


def _has_gate(kind: LayerKind, name: str) -> bool:
    norm = dict(kind.block.norms).get(name)
    return norm is not None and norm.gate is not None


def _partly_gated(spec: ModelSpec) -> str:
    """The norm that some layers gate and others do not; empty for none."""
    some = [name for name in gated_norms(spec) if not _in_all(spec, name)]
    if len(some) > 1:
        raise Refused("norm", f"{' and '.join(some)} have gates in some layers", where=spec.source)
    return some[0] if some else ""


def is_partly_gated(spec: ModelSpec, tensor: TensorSpec) -> bool:
    """Whether a tensor belongs to the norm that some layers gate and others do not."""
    name = _partly_gated(spec)
    return bool(name) and tensor.roles[0].startswith(f"norm.{name}.")


def plan_gated_norm(spec: ModelSpec) -> Answers:
    """Answers on the gates of norms.

    Raises:
        Refused: They stand where no port has a way to compute them.
    """
    _check(spec)
    partly = _partly_gated(spec)
    return {"gated_norms": gated_norms(spec), "expert_gated_norm": partly}


def _check(spec: ModelSpec) -> None:
    if spec.head.final_norm is not None and spec.head.final_norm.gate is not None:
        raise Refused("norm", "the final norm has a gate", where=spec.source)
    if spec.head.dense is not None and spec.head.dense.norm.gate is not None:
        raise Refused("norm", "the head's norm has a gate", where=spec.source)
    if not gated_norms(spec):
        return
    plain: dict[str, NormSpec] = {}
    for kind in spec.layer_kinds:
        for name, norm in kind.block.norms:
            own = dataclasses.replace(norm, gate=None)
            if plain.setdefault(name, own) != own:
                raise Refused("norm", f"layers differ in {name} by more than its gate")
    partly = _partly_gated(spec)
    if partly and any(
        _has_gate(kind, partly) != (kind.moe is not None) for kind in spec.layer_kinds
    ):
        raise Refused(
            "norm",
            f"some layers gate {partly}, and these are not those with experts",
            where=spec.source,
            hint="a gate in all layers, or in just those with experts, is expressed",
        )
    if any(kind.block.attention_input_norm is None for kind in spec.layer_kinds):
        raise Refused("norm", "a norm has a gate, and layers lack one before attention")
    if spec.quantization is not None:
        raise Refused("quantization", "beside gates on norms, whose weights may be quantized")
