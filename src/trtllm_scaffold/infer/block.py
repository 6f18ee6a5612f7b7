"""Reads one layer's equation from the value graph."""

from __future__ import annotations

from dataclasses import dataclass, replace

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear, terms
from trtllm_scaffold.infer.graph import Value
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.norm import NormCall, NormFacts

_HINT = (
    "sequential and parallel residual blocks with norms before, after or inside the branches "
    "are expressed"
)
_ROUNDING = 1e-6  # of products of factors


@dataclass(frozen=True, eq=False, repr=False)
class BlockFacts:
    """What was observed of one layer's equation; see `BlockSpec` for the two forms.

    Attributes:
        parallel: Which of the two.
        norms: The norm at each place of `BlockSpec` (``attention_input_norm``, ...).
        attention_coefficient, mlp_coefficient: Factors on the branches.
        attention_residual, mlp_residual: Factors on what each branch is added to.
        down: The last projection of the feed-forward, or the result of its experts.
        residual_after_norm: See `BlockSpec`.
        beside: The last projection of a dense feed-forward that is added to the experts.
    """

    parallel: bool
    norms: dict[str, NormFacts]
    attention_coefficient: float
    mlp_coefficient: float
    down: Linear
    residual_after_norm: bool = False
    beside: Linear | None = None
    attention_residual: float = 1.0
    mlp_residual: float = 1.0


@dataclass(frozen=True)
class _Branch:
    """One term of a sum: the projection it ends in, its factor, and the norm behind it."""

    linear: Linear
    factor: float
    output_norm: NormFacts | None


def read_block(layer: Layer, attention_input: Value, attention_output: Linear) -> BlockFacts:
    """Read one layer's equation.

    Args:
        layer: The layer.
        attention_input: What q, k and v are projected from.
        attention_output: The attention's last projection.

    Raises:
        Refused: The equation has no label.
    """
    norms: dict[str, NormFacts] = {}
    total, post = _peel(layer, layer.output)
    if post is not None:
        norms["post_mlp_norm"] = post
    inner = [value for value, _ in total if _is_norm_of_sum(layer, value)]
    if inner:
        return _post(layer, total, inner[0], attention_input, attention_output, norms)
    normed = _residual_after_norm(layer, total, attention_input, attention_output, norms)
    if normed is not None:
        return normed
    branches, whole = _scaled_branches(layer, total)
    attention = [b for b in branches if b.linear is attention_output]
    others, beside = _apart(layer, [b for b in branches if b.linear is not attention_output])
    if len(attention) != 1 or len(others) != 1:
        raise _unlabelled(layer, total)
    mlp = others[0]
    source, mlp_norm = _input_of(layer, mlp.linear)
    parallel = source is layer.input
    residuals = 1.0, whole
    if not parallel:
        attention, residuals = _middle(layer, source, attention[0], whole)
    elif whole != 1.0:
        raise _unlabelled(layer, total)
    _put(norms, "attention_input_norm", _norm_of_input(layer, attention_input))
    _put(norms, "attention_output_norm", attention[0].output_norm)
    _put(norms, "mlp_input_norm", mlp_norm)
    _put(norms, "mlp_output_norm", mlp.output_norm)
    factors = attention[0].factor, mlp.factor
    facts = BlockFacts(parallel, norms, *factors, mlp.linear, beside=beside)
    return replace(facts, attention_residual=residuals[0], mlp_residual=residuals[1])


def _post(
    layer: Layer,
    total: list[tuple[Value, float]],
    middle: Value,
    attention_input: Value,
    attention_output: Linear,
    norms: dict[str, NormFacts],
) -> BlockFacts:
    """The form whose residual stream is normed after the attention's sum."""
    found = layer.norms.at(middle)
    assert found is not None
    norms["post_attention_norm"] = found.facts
    rest = [(value, factor) for value, factor in total if value is not middle]
    if dict(total)[middle] != 1.0 or len(rest) != 1:
        raise _unlabelled(layer, total)
    mlp = _branch(layer, *rest[0])
    inner = _branches(layer, _sum(layer, found.input))
    if mlp is None or len(inner) != 1 or inner[0].linear is not attention_output:
        raise _unlabelled(layer, total)
    source, mlp_norm = _input_of(layer, mlp.linear, middle)
    if source is not middle:
        raise _unlabelled(layer, total)
    _put(norms, "attention_input_norm", _norm_of_input(layer, attention_input))
    _put(norms, "attention_output_norm", inner[0].output_norm)
    _put(norms, "mlp_input_norm", mlp_norm)
    _put(norms, "mlp_output_norm", mlp.output_norm)
    return BlockFacts(False, norms, inner[0].factor, mlp.factor, mlp.linear)


def _residual_after_norm(
    layer: Layer,
    total: list[tuple[Value, float]],
    attention_input: Value,
    attention_output: Linear,
    norms: dict[str, NormFacts],
) -> BlockFacts | None:
    """The form whose sums add to the branch's normed input, or None where it is another."""
    middles = [value for value, factor in total if factor == 1.0 and layer.norms.at(value)]
    if len(total) != 2 or len(middles) != 1:
        return None
    middle = layer.norms.at(middles[0])
    assert middle is not None
    inner = _sum(layer, middle.input)
    starts = [value for value, factor in inner if factor == 1.0 and layer.norms.at(value)]
    start = layer.norms.at(starts[0]) if len(starts) == 1 and len(inner) == 2 else None
    if start is None or not _is_input(layer, start):
        return None
    attention = [_branch(layer, v, factor) for v, factor in inner if v is not starts[0]][0]
    mlp = [_branch(layer, v, factor) for v, factor in total if v is not middles[0]][0]
    if attention is None or mlp is None or attention.linear is not attention_output:
        return None
    source = {_single(layer, linear.input) for linear in _first_linears(layer, mlp.linear)}
    if _single(layer, attention_input) is not starts[0] or source != {middles[0]}:
        return None
    _put(norms, "attention_input_norm", start.facts)
    _put(norms, "attention_output_norm", attention.output_norm)
    _put(norms, "mlp_input_norm", middle.facts)
    _put(norms, "mlp_output_norm", mlp.output_norm)
    return BlockFacts(False, norms, attention.factor, mlp.factor, mlp.linear, True)


def _sum(layer: Layer, value: Value) -> list[tuple[Value, float]]:
    return terms(value, layer.graph, layer.is_atom)


def _peel(layer: Layer, value: Value) -> tuple[list[tuple[Value, float]], NormFacts | None]:
    """The sum that the layer returns, and the norm of the whole of it, if any."""
    total = _sum(layer, value)
    if len(total) != 1 or total[0][1] != 1.0:
        return total, None
    found = layer.norms.at(total[0][0])
    if found is None:
        return total, None
    return _sum(layer, found.input), found.facts


def _is_norm_of_sum(layer: Layer, value: Value) -> bool:
    """Whether `value` norms the layer's input plus the attention's branch."""
    found = layer.norms.at(value)
    if found is None:
        return False
    return any(part is layer.input for part, _ in _sum(layer, found.input))


def _branches(layer: Layer, total: list[tuple[Value, float]]) -> list[_Branch]:
    """The terms beside the layer's input, which must be there once, unscaled."""
    branches, residual = _scaled_branches(layer, total)
    if residual != 1.0:
        raise _unlabelled(layer, total)
    return branches


def _scaled_branches(layer: Layer, total: list[tuple[Value, float]]) -> tuple[list[_Branch], float]:
    """The terms beside the layer's input, and the factor on that."""
    branches = []
    residual = 0.0
    for value, factor in total:
        if value is layer.input:
            residual = factor
            continue
        branch = _branch(layer, value, factor)
        if branch is None:
            raise _unlabelled(layer, total)
        branches.append(branch)
    if residual == 0.0:
        raise _unlabelled(layer, total)
    return branches, residual


def _branch(layer: Layer, value: Value, factor: float) -> _Branch | None:
    if value in layer.linears:
        return _Branch(layer.linears[value], factor, None)
    found = layer.norms.at(value)
    if found is None:
        return None
    inside = _sum(layer, found.input)
    if len(inside) != 1 or inside[0][0] not in layer.linears or inside[0][1] != 1.0:
        return None
    return _Branch(layer.linears[inside[0][0]], factor, found.facts)


def _apart(layer: Layer, others: list[_Branch]) -> tuple[list[_Branch], Linear | None]:
    """The feed-forward's branches without a dense one that is added to the experts, and that."""
    routed = layer.routed
    experts = [b for b in others if routed is not None and b.linear is routed.linear]
    if len(others) != 2 or len(experts) != 1:
        return others, None
    dense = next(branch for branch in others if branch is not experts[0])
    plain = dense.output_norm is None and experts[0].output_norm is None
    same = _input_of(layer, dense.linear) == _input_of(layer, experts[0].linear)
    if not plain or not same or dense.factor != experts[0].factor:
        return others, None
    return experts, dense.linear


def _input_of(
    layer: Layer, down: Linear, middle: Value | None = None
) -> tuple[Value, NormFacts | None]:
    """What the feed-forward that ends in `down` is applied to, before its input norm."""
    first = _first_linears(layer, down)
    inputs: dict[Value, None] = {}
    for linear in first:
        inputs[_single(layer, linear.input)] = None
    if len(inputs) != 1:
        raise Refused("mlp", "its projections have different inputs", where=layer.name, hint=_HINT)
    value = next(iter(inputs))
    if value is layer.input or value is middle:
        return value, None
    found = layer.norms.at(value)
    return (value, None) if found is None else (_single(layer, found.input), found.facts)


def _first_linears(layer: Layer, down: Linear) -> list[Linear]:
    """The linear layers right before `down`; the experts' result stands for its own."""
    if layer.routed is not None and down is layer.routed.linear:
        return [down]
    found = [
        layer.linears[value]
        for value in layer.graph.ancestors(down.input, [layer.input, *layer.linears])
        if value in layer.linears
    ]
    if not found:
        raise Refused("mlp", "one projection alone", where=layer.name, hint=_HINT)
    return found


def _single(layer: Layer, value: Value) -> Value:
    """The atom or sum behind rearrangements."""
    total = _sum(layer, value)
    return total[0][0] if len(total) == 1 and total[0][1] == 1.0 else value


def _norm_of_input(layer: Layer, value: Value) -> NormFacts | None:
    """The norm between the layer's input and the attention's projections."""
    total = _sum(layer, value)
    if len(total) == 1 and total[0][1] == 1.0:
        if total[0][0] is layer.input:
            return None
        found = layer.norms.at(total[0][0])
        if found is not None and _is_input(layer, found):
            return found.facts
    raise Refused(
        "block",
        "the attention's input is neither the layer's input nor a norm of it",
        where=layer.name,
        hint=_HINT,
    )


def _is_input(layer: Layer, norm: NormCall) -> bool:
    return _sum(layer, norm.input) == [(layer.input, 1.0)]


def _middle(
    layer: Layer, source: Value, attention: _Branch, whole: float
) -> tuple[list[_Branch], tuple[float, float]]:
    """The attention's branch as the feed-forward sees it, and the factors on both residuals.

    The feed-forward of a sequential block must see the input and the attention alone, and the
    sum behind it both in the same proportion.

    Args:
        layer: The layer.
        source: What the feed-forward is applied to.
        attention: The attention's branch in the layer's output.
        whole: The factor on the layer's input there.
    """
    middle = _sum(layer, source)
    seen, first = _scaled_branches(layer, middle)
    second = whole / first
    expected = [replace(branch, factor=attention.factor) for branch in seen]
    if expected != [attention] or not _close(seen[0].factor * second, attention.factor):
        raise _unlabelled(layer, middle)
    return seen, (first, second)


def _close(left: float, right: float) -> bool:
    return abs(left - right) <= _ROUNDING * abs(right)


def _put(norms: dict[str, NormFacts], place: str, facts: NormFacts | None) -> None:
    if facts is not None:
        norms[place] = facts


def _unlabelled(layer: Layer, total: list[tuple[Value, float]]) -> Refused:
    if _is_routed(layer, total):
        return Refused(
            "moe",
            "the feed-forward routes tokens to experts",
            where=layer.name,
            hint="decoders with dense feed-forwards are expressed",
        )
    shown = " + ".join(f"{factor:g} * {_name(layer, value)}" for value, factor in total)
    return Refused(
        "block", f"the layer's equation has no label: {shown}", where=layer.name, hint=_HINT
    )


def _is_routed(layer: Layer, total: list[tuple[Value, float]]) -> bool:
    """Whether a term depends on a choice between several parts."""
    return any(
        node.name in ("topk", "index_add", "one_hot", "scatter")
        for value, _ in total
        for node in [v.node for v in layer.graph.ancestors(value, [layer.input])]
        if node is not None
    )


def _name(layer: Layer, value: Value) -> str:
    if value is layer.input:
        return "x"
    if value in layer.linears:
        return layer.linears[value].names[0].removeprefix(f"{layer.name}.")
    found = layer.norms.at(value)
    if found is not None:
        return found.facts.name.removeprefix(f"{layer.name}.")
    return "?" if value.node is None else (value.node.name or "?")
