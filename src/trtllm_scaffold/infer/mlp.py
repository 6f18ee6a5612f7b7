"""Reads one layer's feed-forward: gated or plain, activation, norm, widths, layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.activation import FORMULAS, Parametric, xielu
from trtllm_scaffold.infer.algebra import Linear, strip
from trtllm_scaffold.infer.gating import fit_gating
from trtllm_scaffold.infer.graph import ReplayError, Value
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.norm import NormFacts


@dataclass(frozen=True, eq=False, repr=False)
class MlpFacts:
    """What was observed of one layer's feed-forward.

    Attributes:
        kind, activation, intermediate_size: See `MlpSpec`.
        gate, up, down: Its linear layers; gate is None in a plain one.
        gate_columns, up_columns: Output columns of each; in a fused linear they share it.
        down_norm: The norm before the last projection, or None.
        parameters: Name of each parameter of the activation, by its own name there.
        constants: See `MlpSpec.activation_parameters`.
        clamp, swish_beta, up_offset: See `MlpSpec`; 1 and 0 for no slope and no offset.
        buffers: Names of stored buffers that hold the constants.
    """

    kind: Literal["gated", "plain"]
    activation: str
    intermediate_size: int
    gate: Linear | None
    up: Linear
    down: Linear
    gate_columns: torch.Tensor | None
    up_columns: torch.Tensor
    down_norm: NormFacts | None = None
    parameters: tuple[tuple[str, str], ...] = ()
    constants: tuple[tuple[str, float], ...] = ()
    buffers: tuple[str, ...] = ()
    clamp: float | None = None
    swish_beta: float = 1.0
    up_offset: float = 0.0


@dataclass(frozen=True, eq=False, repr=False)
class _Sources:
    """What the last projection (or the norm before it) is computed from."""

    linears: list[Linear]
    parameters: list[Value]


def read_mlp(layer: Layer, down: Linear) -> MlpFacts:
    """Find the formula between the first projections and `down`.

    Candidate formulas are compared with a replay of the recorded operations on other numbers.

    Raises:
        Refused: No formula fits.
    """
    norm = layer.norms.at(strip(down.input))
    target = down.input if norm is None else norm.input
    facts = None if norm is None else norm.facts
    sources = _sources(layer, target)
    if sources.parameters:
        return _parametric(layer, sources, down, target, facts)
    linears = sources.linears
    path = layer.graph.path([s.output for s in linears], target)

    def between(first: Sequence[torch.Tensor]) -> torch.Tensor:
        given = {s.output: numbers for s, numbers in zip(linears, first, strict=True)}
        return layer.graph.replay(path, given, target)

    width = target.shape[-1]
    try:
        gating = fit_gating(between, [s.output.shape for s in linears], width)
    except ReplayError as err:
        raise _refused(layer, "an in-place change cannot be followed") from err
    if gating is None:
        raise _refused(layer, "its formula is none of the known ones")
    return MlpFacts(
        "plain" if gating.gate is None else "gated",
        gating.activation,
        width,
        gate=None if gating.gate is None else linears[gating.gate[0]],
        up=linears[gating.up[0]],
        down=down,
        gate_columns=None if gating.gate is None else gating.gate[1],
        up_columns=gating.up[1],
        down_norm=facts,
        clamp=gating.clamp,
        swish_beta=gating.beta,
        up_offset=gating.offset,
    )


def _parametric(
    layer: Layer, sources: _Sources, down: Linear, target: Value, norm: NormFacts | None
) -> MlpFacts:
    """The form whose activation has parameters; constants as its class sets them.

    Stored constants were drawn at random like every stored number: the replay undoes that.
    """
    graph, width = layer.graph, target.shape[-1]
    constants = {
        value: graph.constants[name]
        for value in graph.ancestors(target, [s.output for s in sources.linears])
        for name in graph.names.get(value, ())
        if name in graph.constants
    }
    found: Parametric | None = None
    if len(sources.linears) == 1 and sources.linears[0].rows == width:
        source = sources.linears[0].output
        path = graph.path([source, *constants], target)

        def function(x: torch.Tensor) -> torch.Tensor:
            repeated = x.repeat(source.data.numel() // len(x) + 1)[: source.data.numel()]
            given = {source: repeated.reshape(source.shape), **constants}
            return graph.replay(path, given, target).flatten()[: len(x)]

        found = xielu(function, [p.data for p in sources.parameters])
    if found is None:
        raise _refused(layer, "its activation has parameters")
    every = torch.arange(width)
    return MlpFacts(
        "plain",
        found.name,
        width,
        None,
        sources.linears[0],
        down,
        None,
        every,
        norm,
        tuple((role, graph.names[sources.parameters[i]][0]) for role, i in found.parameters),
        found.constants,
        tuple(graph.names[value][0] for value in constants),
    )


def _sources(layer: Layer, target: Value) -> _Sources:
    """The linear layers whose outputs `target` is computed from, through other operations."""
    found, leaves = layer.made_from(target)
    parameters = [value for value in leaves if value in layer.graph.parameters]
    linears = [layer.linears.get(value) for value in sorted(found, key=lambda v: v.index)]
    if not linears or None in linears or len(linears) > 2:
        raise _refused(layer, f"{len(linears)} values meet before its last projection")
    kept = [linear for linear in linears if linear is not None]
    return _Sources(kept, sorted(parameters, key=lambda v: v.index))


def _refused(layer: Layer, problem: str) -> Refused:
    return Refused(
        "mlp",
        f"the feed-forward has no label: {problem}",
        where=layer.name,
        hint=f"gated and plain ones with {', '.join(FORMULAS)}, and plain xielu, are expressed",
    )
