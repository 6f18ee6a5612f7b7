"""Classifies norm modules by calling them alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from trtllm_scaffold.infer.gated_norm import NormGateFacts, gated
from trtllm_scaffold.infer.graph import Call, Graph, Value

_LARGE = 100.0  # an amplitude at which eps is nothing
_SMALLEST = 1e-9
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class NormFacts:
    """What one norm module computes.

    Attributes:
        name: Module name.
        kind, eps, plus_one: As in `NormSpec`.
        weight, bias: Full parameter names, or None.
        weight_shape: Shape of the weight, () without one.
        by_head: Full parameter names of the weights, where each head has a module of its own;
            `weight` is the first of them then.
        gate: The gate on its output, or None.
    """

    name: str
    kind: Literal["rmsnorm", "layernorm"]
    eps: float
    weight: str | None
    bias: str | None
    plus_one: bool
    weight_shape: tuple[int, ...]
    by_head: tuple[str, ...] = ()
    gate: NormGateFacts | None = None


@dataclass(frozen=True, eq=False, repr=False)
class NormCall:
    """A norm and the values it stands between."""

    facts: NormFacts
    input: Value
    output: Value


class NormReader:
    """Finds the norms of a graph, calling each candidate module once."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._known: dict[int, NormFacts | None] = {}

    def at(self, value: Value) -> NormCall | None:
        """The norm whose output `value` is, or None."""
        for call in self._graph.calls_by_output.get(value, ()):
            facts = self._classify(call)
            if facts is not None and call.input is not None:
                return NormCall(facts, call.input, value)
        return None

    def _classify(self, call: Call) -> NormFacts | None:
        if call.input is None or call.output is None or call.input.shape != call.output.shape:
            return None
        key = id(call.module)
        if key not in self._known:
            found = classify(call.module, call.input.shape, call.name)
            self._known[key] = found or _gated(call.module, call.input.shape, call.name)
        return self._known[key]


def classify(module: nn.Module, shape: tuple[int, ...], name: str = "") -> NormFacts | None:
    """What `module` computes on an input of `shape`, or None where it is no norm.

    It is called on random inputs of a large amplitude, where eps is negligible, and its output
    is compared with every formula over its parameters; then on small ones to read eps.
    """
    parameters = dict(module.named_parameters())
    fitting = {
        k: p for k, p in parameters.items() if tuple(p.shape) == shape[len(shape) - p.dim() :]
    }
    if len(parameters) > 2 or len(fitting) != len(parameters):
        return None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) + 0.5
    y = _call(module, _LARGE * x)
    if y is None or y.shape != x.shape:
        return None
    for kind in ("rmsnorm", "layernorm"):
        unit = _unit(kind, _LARGE * x, 0.0)
        for weight, bias, plus_one in _forms(list(parameters)):
            guess = _apply(unit, parameters, weight, bias, plus_one)
            if torch.allclose(y, guess, atol=_TOLERANCE, rtol=_TOLERANCE):
                eps = _eps(module, x, kind, parameters, weight, bias, plus_one)
                prefix = f"{name}." if name else ""
                return NormFacts(
                    name=name,
                    kind=kind,  # type: ignore[arg-type]
                    eps=eps,
                    weight=None if weight is None else prefix + weight,
                    bias=None if bias is None else prefix + bias,
                    plus_one=plus_one,
                    weight_shape=() if weight is None else tuple(parameters[weight].shape),
                )
    return None


def _gated(module: nn.Module, shape: tuple[int, ...], name: str) -> NormFacts | None:
    """The one norm inside `module` with a gate on its output, or None for another module."""
    if len(list(module.parameters())) > 4:  # not a whole layer, which would run for each part
        return None
    for key, child in module.named_modules():
        if child is module:
            continue
        inner = classify(child, shape, f"{name}.{key}")
        if inner is not None:
            return gated(module, shape, name, (key, inner))
    return None


def _call(module: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    try:
        with torch.no_grad():
            y = module(x)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return None  # it needs other arguments: no norm
    return y if isinstance(y, torch.Tensor) else None


def _forms(names: list[str]) -> Iterator[tuple[str | None, str | None, bool]]:
    """(weight, bias, plus_one) for every way to use all the parameters."""
    if not names:
        yield None, None, False
    elif len(names) == 1:
        yield names[0], None, False
        yield names[0], None, True
        yield None, names[0], False
    else:
        for weight, bias in (names, names[::-1]):
            yield weight, bias, False
            yield weight, bias, True


def _unit(kind: str, x: torch.Tensor, eps: float) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True) if kind == "layernorm" else x
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def _apply(
    unit: torch.Tensor,
    parameters: dict[str, nn.Parameter],
    weight: str | None,
    bias: str | None,
    plus_one: bool,
) -> torch.Tensor:
    with torch.no_grad():
        if weight is not None:
            unit = unit * (parameters[weight] + (1.0 if plus_one else 0.0))
        return unit if bias is None else unit + parameters[bias]


def _eps(
    module: nn.Module,
    x: torch.Tensor,
    kind: str,
    parameters: dict[str, nn.Parameter],
    weight: str | None,
    bias: str | None,
    plus_one: bool,
) -> float:
    """Solve y = w * x / sqrt(mean_square + eps) + b for eps.

    The amplitude of x is lowered until eps matters, then set to its root, where the solution
    is well conditioned.
    """
    centred = x.double() - x.double().mean(-1, keepdim=True) if kind == "layernorm" else x.double()
    square = float(centred.pow(2).mean(-1, keepdim=True).flatten()[0])
    factor = _apply(torch.ones_like(x), parameters, weight, None, plus_one).double()
    shift = _apply(torch.zeros_like(x), parameters, None, bias, False).double()
    amplitude, eps, polished = 1e-2, 0.0, 0
    while amplitude > _SMALLEST and polished < 2:
        y = _call(module, (amplitude * x))
        if y is None:
            return 0.0
        unit = (y.double() - shift) / factor
        mean = (amplitude * centred).pow(2).mean(-1, keepdim=True)
        solved = ((amplitude * centred / unit).pow(2) - mean).flatten()
        eps = float(solved[torch.isfinite(solved)].median())
        if eps > 1e-4 * amplitude**2 * square:
            amplitude, polished = eps**0.5, polished + 1
        else:
            amplitude, eps = amplitude * 0.03, 0.0
    return eps
