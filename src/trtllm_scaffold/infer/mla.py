"""Reads latent attention: keys joined from an expanded latent and one rotated, shared part."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear, strip
from trtllm_scaffold.infer.graph import ReplayError, Value
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.matrices import matrices
from trtllm_scaffold.infer.norm import NormFacts
from trtllm_scaffold.infer.position import RopeFacts, read_rope
from trtllm_scaffold.infer.segments import Chain, follow, sources

_EXACT = 1e-6


@dataclass(frozen=True, eq=False, repr=False)
class MlaFacts:
    """What was observed of one layer's latents. Columns are those of the projections' outputs.

    Attributes:
        nope, rope, value: Widths of a head's plain part, its rotated part and its value.
        q_a, q_norm: The projection to the query's latent and its norm; None without one.
        q_a_columns: [q_lora_rank] columns that the query's latent is made of.
        q_latent: The normed latent of queries; None without one.
        raw_latent: Queries are projected from that and the latent before its norm, in this order.
        kv_a: The projection to the latent and the shared key.
        kv_norm: The latent's norm.
        latent_columns, rope_columns: Columns of `kv_a` that hold either.
    """

    nope: int
    rope: int
    value: int
    q_a: Linear | None
    q_norm: NormFacts | None
    q_a_columns: torch.Tensor
    kv_a: Linear
    kv_norm: NormFacts
    latent_columns: torch.Tensor
    rope_columns: torch.Tensor
    q_latent: Value | None = None
    raw_latent: bool = False

    @property
    def ranks(self) -> tuple[int, int]:
        """Widths of the query's latent (0 for none) and of the latent."""
        return len(self.q_a_columns), len(self.latent_columns)


@dataclass(frozen=True, eq=False, repr=False)
class LatentAttention:
    """Latent attention as the score product shows it.

    Attributes:
        mla: The latents.
        query, key, value: The operands; `key` is the plain part alone.
        scales: The factor that the operands carry, on rotated dimensions and on the others.
        rope: The rotation.
        input: What the latents are projected from.
    """

    mla: MlaFacts
    query: Chain
    key: Chain
    value: Chain
    scales: tuple[float, float]
    rope: RopeFacts
    input: Value


@dataclass(frozen=True, eq=False, repr=False)
class _Key:
    """One head's entries of the key operand, in its order, and where they come from.

    Attributes:
        plain, turned: Places of the operand that hold the plain and the rotated part.
        columns: [heads, plain]: columns of the expansion.
        shared: [turned]: columns of the projection that all heads share.
        factors: [width] at position 0.
        rotation: [sequence, turned, turned] of the shared part.
    """

    expansion: Linear
    projection: Linear
    plain: torch.Tensor
    turned: torch.Tensor
    columns: torch.Tensor
    shared: torch.Tensor
    factors: torch.Tensor
    rotation: torch.Tensor


def read_latent(layer: Layer, query: Value, key: Value, heads: int) -> LatentAttention:
    """Read attention whose keys are made from several projections.

    Args:
        layer: The layer.
        query: Operand of the score product.
        key: The other one.
        heads: Query heads.

    Raises:
        Refused: It is not the latent attention that has a label.
    """
    q = follow(layer, query, heads, "query", transposed=False)
    v = follow(layer, layer.context.args[-1], heads, "value", transposed=False)
    k = _read_key(layer, key, v.linear, heads)
    rope = _read_rope(layer, q, k)
    scales = _scales(layer, q, k)
    _check_value(layer, q, v)
    latent, kv_norm = _normed_input(layer, k.expansion, "latent")
    kv_a, latent_columns = _columns(layer, latent, "latent")
    if kv_a is not k.projection:
        raise _refused(layer, "the latent and the shared key have projections of their own")
    found = _query_latent(layer, q)
    q_a, q_norm, q_a_columns, source = found.linear, found.norm, found.columns, found.source
    if strip(kv_a.input) is not source:
        raise _refused(layer, "queries and latents are projected from different values")
    mla = MlaFacts(
        nope=len(k.plain),
        rope=len(k.turned),
        value=v.columns.shape[1],
        q_a=q_a,
        q_norm=q_norm,
        q_a_columns=q_a_columns,
        kv_a=kv_a,
        kv_norm=kv_norm,
        latent_columns=latent_columns,
        rope_columns=k.shared.sort().values,
        q_latent=found.normed,
        raw_latent=found.with_raw,
    )
    plain = Chain(key, k.expansion, None, None, [], k.columns)
    return LatentAttention(mla, q, plain, v, scales, rope, source)


def _check_value(layer: Layer, query: Chain, value: Chain) -> None:
    if bool(((value.factors - 1.0).abs() > _EXACT).any()):
        raise _refused(layer, "values are multiplied by a constant")
    if any(chain.norm is not None or chain.clip is not None for chain in (query, value)):
        raise _refused(layer, "heads of queries or values are normed or clipped")
    if any(rotation is not None for rotation in value.rotations):
        raise _refused(layer, "the value is rotated by position")


@dataclass(frozen=True, eq=False, repr=False)
class _Probe:
    """Runs the way from both projections to the key operand on other numbers."""

    layer: Layer
    operand: Value
    heads: int
    projections: tuple[Linear, Linear]

    def run(self, linear: Linear, values: torch.Tensor) -> torch.Tensor:
        """[heads, sequence, width] of the first sequence, the other projection silent."""
        graph = self.layer.graph
        inputs = {lin.output: torch.zeros(lin.output.shape) for lin in self.projections}
        inputs[linear.output] = values.expand(linear.output.shape)
        try:
            made = graph.replay(graph.path(list(inputs), self.operand), inputs, self.operand)
        except ReplayError as err:
            problem = "keys pass an in-place change that cannot be followed"
            raise _refused(self.layer, problem) from err
        return made.unflatten(0, (graph.tokens.shape[0], self.heads))[0].transpose(-1, -2)

    def columns(self, linear: Linear, factors: torch.Tensor) -> torch.Tensor:
        """[heads, width]: the column that each entry holds at position 0, by its factor there."""
        numbers = torch.arange(1, linear.rows + 1, dtype=torch.float32)
        return (self.run(linear, numbers)[:, 0] / factors).nan_to_num(0.0).round().long() - 1


def _projections(layer: Layer, operand: Value, expansion: Linear) -> tuple[Linear, Linear]:
    """The expansion of the latent, and the projection that makes the shared part."""
    found = sources(layer, operand)
    linears = [layer.linears.get(value) for value in found]
    other = [lin for lin in linears if lin is not None and lin is not expansion]
    if len(found) != 2 or len(other) != 1 or expansion not in linears:
        raise _refused(layer, f"keys are made from {len(found)} values, not from two projections")
    return expansion, other[0]


def _read_key(layer: Layer, operand: Value, expansion: Linear, heads: int) -> _Key:
    """Probe the key with one of its two projections at a time."""
    expansion, projection = _projections(layer, operand, expansion)
    probe = _Probe(layer, operand, heads, (expansion, projection))
    alone = probe.run(expansion, torch.ones(expansion.rows))
    one, two = alone[:, 0], probe.run(projection, torch.ones(projection.rows))[:, 0]
    plain, turned = (part[0] != 0 for part in (one, two))
    mixed = one[:, turned].any() or two[:, plain].any() or (plain == turned).any()
    if bool(mixed) or not (plain.any() and turned.any()):
        raise _refused(layer, "an entry of the keys is made from both projections, or from none")
    if bool((alone != alone[:, :1]).any()) or bool((one != one[:1]).any()):
        raise _refused(layer, "the plain part of the keys differs between heads or positions")
    shared = probe.columns(projection, two)[:, turned]
    if bool((shared != shared[:1]).any()) or bool((two != two[:1]).any()):
        raise _refused(layer, "the rotated part of the keys differs between heads")
    places = turned.nonzero().flatten()
    rotation = matrices(
        lambda vector: probe.run(projection, vector)[0][:, places],
        shared[0],
        projection.rows,
        layer.graph.tokens.shape[1],
    )
    if rotation is None:
        raise _refused(layer, "no part of the keys is rotated")
    return _Key(
        expansion=expansion,
        projection=projection,
        plain=plain.nonzero().flatten(),
        turned=places,
        columns=probe.columns(expansion, one)[:, plain],
        shared=shared[0],
        factors=(one + two)[0],
        rotation=rotation,
    )


def _read_rope(layer: Layer, query: Chain, key: _Key) -> RopeFacts:
    """The rotation, the same on the turned part of queries and keys; nothing else turns."""
    turning = [rotation for rotation in query.rotations if rotation is not None]
    if len(turning) != 1:
        raise _refused(layer, f"queries are rotated {len(turning)} times")
    turned, plain, columns = key.turned, key.plain, query.columns[0]
    whole = turning[0]
    still = whole[:, plain][:, :, plain]
    if (
        bool((still != still[:1]).any())
        or bool(whole[:, plain][:, :, turned].any())
        or bool(whole[:, turned][:, :, plain].any())
    ):
        raise _refused(layer, "queries are rotated where keys are not")
    first = read_rope(layer, whole[:, turned][:, :, turned], columns[turned])
    second = read_rope(layer, key.rotation, key.shared)
    if not first.agrees(second):
        raise Refused("position", "queries and keys are rotated differently", where=layer.name)
    if first.dim != len(turned):
        raise _refused(layer, "a part of the shared key is not rotated")
    heads = query.columns - query.columns[:, :1]
    same = bool((heads == heads[:1]).all()) and bool((columns[plain].max() < columns[turned]).all())
    for mine, theirs in ((columns[turned], key.shared), (columns[plain], key.columns[0])):
        same = same and torch.equal(mine.argsort(), theirs.argsort())
    within = key.columns - key.columns[:, :1]
    if not same or not bool((within == within[:1]).all()):
        raise _refused(layer, "the numbers of a head do not meet in the order plain, rotated")
    return first


def _scales(layer: Layer, query: Chain, key: _Key) -> tuple[float, float]:
    """The factor of the operands on rotated and on plain dimensions."""
    product = query.factors[0].double() * key.factors.double()
    parts = product[key.turned], product[key.plain]
    if any(bool(((part - part.mean()).abs() > 1e-5 * part.abs()).any()) for part in parts):
        raise _refused(layer, "dimensions of q and k are scaled differently")
    return float(parts[0].mean()), float(parts[1].mean())


def _normed_input(layer: Layer, linear: Linear, what: str) -> tuple[Value, NormFacts]:
    """What goes into the norm whose output `linear` is applied to."""
    call = layer.norms.at(strip(linear.input))
    if call is None:
        raise _refused(layer, f"the {what} does not pass exactly one norm")
    return call.input, call.facts


@dataclass(frozen=True, eq=False, repr=False)
class _QueryLatent:
    """The query's latent: projection, norm, columns, what it is projected from, and itself."""

    linear: Linear | None
    norm: NormFacts | None
    columns: torch.Tensor
    source: Value
    normed: Value | None = None
    with_raw: bool = False


def _query_latent(layer: Layer, query: Chain) -> _QueryLatent:
    source = strip(query.linear.input)
    if source is layer.input or not _is_latent(layer, source):
        return _QueryLatent(None, None, torch.empty(0, dtype=torch.long), source)
    raw = _before_and_behind(layer, source)
    normed = source if raw is None else raw
    call = layer.norms.at(normed)
    if call is None:
        raise _refused(layer, "the query's latent does not pass exactly one norm")
    q_a, columns = _columns(layer, call.input, "query's latent")
    inputs = strip(q_a.input)
    return _QueryLatent(q_a, call.facts, columns, inputs, normed, raw is not None)


def _before_and_behind(layer: Layer, value: Value) -> Value | None:
    """The norm's output, where `value` is that and the norm's input side by side, else None.

    Raises:
        Refused: It joins other values, or these in another order.
    """
    node = value.node
    if node is None or node.name != "cat":
        return None
    parts = [strip(part) for part in node.args[0]]
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    call = layer.norms.at(parts[0])
    same = call is not None and len(parts) == 2 and strip(call.input) is parts[1]
    if not same or axis % len(value.shape) != len(value.shape) - 1:
        raise _refused(
            layer,
            "queries are projected from several values that are not the normed latent and then "
            "the raw one",
        )
    return parts[0]


def _is_latent(layer: Layer, value: Value) -> bool:
    """Whether a value is made from a projection of the layer, not from its input alone."""
    stop = [layer.input, *layer.linears]
    return any(parent in layer.linears for parent in layer.graph.ancestors(value, stop))


def _columns(layer: Layer, value: Value, what: str) -> tuple[Linear, torch.Tensor]:
    """The projection that `value` holds columns of, and which, unchanged and in order."""
    made_from = [v for v in sources(layer, value) if v in layer.linears]
    if value in layer.linears:
        made_from = [value]
    if len(made_from) != 1:
        raise _refused(layer, f"the {what} is made from {len(made_from)} projections")
    linear = layer.linears[made_from[0]]
    numbers = torch.arange(linear.rows, dtype=torch.float32).expand(linear.output.shape)
    path = layer.graph.path([linear.output], value)
    try:
        moved = layer.graph.replay(path, {linear.output: numbers}, value)
    except ReplayError as err:
        raise _refused(layer, f"the {what} passes a change that cannot be followed") from err
    rows = moved.flatten(0, -2)
    columns = rows[0].round().long()
    if bool((rows != columns).any()) or not torch.equal(
        columns, torch.arange(len(columns)) + columns[0]
    ):
        raise _refused(layer, f"the {what} does not hold numbers side by side")
    return linear, columns


def _refused(layer: Layer, problem: str) -> Refused:
    return Refused(
        "attention",
        f"its latents have no label: {problem}",
        where=layer.name,
        hint="multi-head latent attention with one norm on each latent is expressed",
    )
