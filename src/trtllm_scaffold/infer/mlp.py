"""Reads one layer's feed-forward: gated or plain, activation, widths, layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn import functional

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear
from trtllm_scaffold.infer.graph import ReplayError, Value
from trtllm_scaffold.infer.layers import Layer

#: Each activation name of `ACTIVATIONS` and its formula.
FORMULAS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}

_RANGE = 4.0
_TOLERANCE = 2e-5


@dataclass(frozen=True, eq=False, repr=False)
class MlpFacts:
    """What was observed of one layer's feed-forward.

    Attributes:
        kind, activation, intermediate_size: See `MlpSpec`.
        gate, up, down: Its linear layers; gate is None in a plain one.
        gate_columns, up_columns: Output columns of each; in a fused linear they share it.
    """

    kind: Literal["gated", "plain"]
    activation: str
    intermediate_size: int
    gate: Linear | None
    up: Linear
    down: Linear
    gate_columns: torch.Tensor | None
    up_columns: torch.Tensor


@dataclass(frozen=True, eq=False, repr=False)
class _Form:
    gate: Linear | None
    up: Linear
    gate_columns: torch.Tensor | None
    up_columns: torch.Tensor


def read_mlp(layer: Layer, down: Linear) -> MlpFacts:
    """Find the formula between the first projections and `down`.

    Candidate formulas are compared with a replay of the recorded operations on other numbers.

    Raises:
        Refused: No formula fits.
    """
    sources = _sources(layer, down)
    path = layer.graph.path([s.output for s in sources], down.input)
    given = {s.output: _numbers(s, seed) for seed, s in enumerate(sources)}
    try:
        result = layer.graph.replay(path, given, down.input)
    except ReplayError as err:
        raise _refused(layer, "an in-place change cannot be followed") from err
    width = down.input.shape[-1]
    flat = {s: given[s.output].reshape(-1, s.rows) for s in sources}
    result = result.reshape(-1, width)
    for form in _forms(sources, width):
        up = flat[form.up][:, form.up_columns]
        for name, formula in FORMULAS.items():
            if form.gate is None:
                guess = formula(up)
            else:
                guess = formula(flat[form.gate][:, form.gate_columns]) * up
            if torch.allclose(result, guess, atol=_TOLERANCE, rtol=_TOLERANCE):
                kind: Literal["gated", "plain"] = "plain" if form.gate is None else "gated"
                return MlpFacts(
                    kind, name, width, form.gate, form.up, down, form.gate_columns, form.up_columns
                )
    raise _refused(layer, "its formula is none of the known ones")


def _sources(layer: Layer, down: Linear) -> list[Linear]:
    """The linear layers whose outputs `down` is applied to, through other operations."""
    found: dict[Value, None] = {}
    stack, seen = [down.input], set()
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        if layer.is_atom(value):
            found[value] = None
        elif value.node is not None:
            stack.extend(value.node.inputs)
        elif value in layer.graph.parameters:
            raise _refused(layer, "its activation has parameters")
    linears = [layer.linears.get(value) for value in sorted(found, key=lambda v: v.index)]
    if not linears or None in linears or len(linears) > 2:
        raise _refused(layer, f"{len(linears)} values meet before its last projection")
    return [linear for linear in linears if linear is not None]


def _numbers(linear: Linear, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = linear.output.shape
    return _RANGE * (2.0 * torch.rand(shape, generator=generator) - 1.0)


def _forms(sources: list[Linear], width: int) -> Iterator[_Form]:
    """Every way in which the sources may be gate and up."""
    every = torch.arange(width)
    if len(sources) == 2:
        if all(source.rows == width for source in sources):
            yield _Form(sources[0], sources[1], every, every)
            yield _Form(sources[1], sources[0], every, every)
        return
    source = sources[0]
    if source.rows == width:
        yield _Form(None, source, None, every)
    if source.rows == 2 * width:
        yield _Form(source, source, every, every + width)
        yield _Form(source, source, every + width, every)


def _refused(layer: Layer, problem: str) -> Refused:
    return Refused(
        "mlp",
        f"the feed-forward has no label: {problem}",
        where=layer.name,
        hint=f"gated and plain ones with {', '.join(FORMULAS)} are expressed",
    )
