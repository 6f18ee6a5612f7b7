"""Reads latent attention: keys joined from an expanded latent and one rotated, shared part."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear, strip
from trtllm_scaffold.infer.graph import ReplayError, Value
from trtllm_scaffold.infer.latents import (
    SharedPart,
    normed_latent,
    query_latent,
    refused,
    shared_part,
)
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.matrices import matrices
from trtllm_scaffold.infer.norm import NormFacts
from trtllm_scaffold.infer.position import RopeFacts, read_rope
from trtllm_scaffold.infer.segments import Chain, follow, sources

_EXACT = 1e-6
_NO_COLUMNS = torch.empty(0, dtype=torch.long)


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
        q_factor, kv_factor: What the normed latents are multiplied by.
        rope_norm: The norm on the shared key before its rotation, or None.
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
    q_factor: float = 1.0
    kv_factor: float = 1.0
    rope_norm: NormFacts | None = None
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
        expansion: What makes the plain part.
        part: What makes the part that all heads share: a projection, or the norm on it.
        plain, turned: Places of the operand that hold the plain and the rotated part.
        columns: [heads, plain]: columns of the expansion.
        shared: [turned]: columns of `part`.
        factors: [width] at position 0.
        rotation: [sequence, turned, turned] of the shared part.
    """

    expansion: Linear
    part: SharedPart
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
    latent = normed_latent(layer, strip(k.expansion.input), "latent")
    q_latent = query_latent(layer, q)
    source = q.linear.input if q_latent is None else q_latent.projection.input
    kv_a, source = latent.projection, strip(source)
    if kv_a is not k.part.projection:
        raise refused(layer, "the latent and the shared key have projections of their own")
    if strip(kv_a.input) is not source:
        raise refused(layer, "queries and latents are projected from different values")
    mla = MlaFacts(
        nope=len(k.plain),
        rope=len(k.turned),
        value=v.columns.shape[1],
        q_a=None if q_latent is None else q_latent.projection,
        q_norm=None if q_latent is None else q_latent.norm,
        q_a_columns=_NO_COLUMNS if q_latent is None else q_latent.columns,
        kv_a=kv_a,
        kv_norm=latent.norm,
        latent_columns=latent.columns,
        rope_columns=k.part.columns[k.shared.sort().values],
        q_factor=1.0 if q_latent is None else q_latent.factor,
        kv_factor=latent.factor,
        rope_norm=k.part.norm,
        q_latent=None if q_latent is None else q_latent.value,
        raw_latent=q_latent is not None and q_latent.with_raw,
    )
    plain = Chain(key, k.expansion, None, None, [], k.columns)
    return LatentAttention(mla, q, plain, v, scales, rope, source)


def _check_value(layer: Layer, query: Chain, value: Chain) -> None:
    if bool(((value.factors - 1.0).abs() > _EXACT).any()):
        raise refused(layer, "values are multiplied by a constant")
    if any(chain.norm is not None or chain.clip is not None for chain in (query, value)):
        raise refused(layer, "heads of queries or values are normed or clipped")
    if any(rotation is not None for rotation in value.rotations):
        raise refused(layer, "the value is rotated by position")


@dataclass(frozen=True, eq=False, repr=False)
class _Probe:
    """Runs the way from both projections to the key operand on other numbers."""

    layer: Layer
    operand: Value
    heads: int
    parts: tuple[Value, Value]

    def run(self, part: Value, values: torch.Tensor) -> torch.Tensor:
        """[heads, sequence, width] of the first sequence, the other part silent."""
        graph = self.layer.graph
        inputs = {value: torch.zeros(value.shape) for value in self.parts}
        inputs[part] = values.expand(part.shape)
        try:
            made = graph.replay(graph.path(list(inputs), self.operand), inputs, self.operand)
        except ReplayError as err:
            problem = "keys pass an in-place change that cannot be followed"
            raise refused(self.layer, problem) from err
        return made.unflatten(0, (graph.tokens.shape[0], self.heads))[0].transpose(-1, -2)

    def columns(self, part: Value, factors: torch.Tensor) -> torch.Tensor:
        """[heads, width]: the column that each entry holds at position 0, by its factor there."""
        numbers = torch.arange(1, part.shape[-1] + 1, dtype=torch.float32)
        return (self.run(part, numbers)[:, 0] / factors).nan_to_num(0.0).round().long() - 1


def _shared_part(layer: Layer, operand: Value, expansion: Linear) -> SharedPart:
    """What makes the part of the keys that the expansion of the latent does not make."""
    found = sources(layer, operand)
    others = [value for value in found if value is not expansion.output]
    if len(found) != 2 or len(others) != 1:
        raise refused(layer, f"keys are made from {len(found)} values, not from two projections")
    return shared_part(layer, others[0])


def _read_key(layer: Layer, operand: Value, expansion: Linear, heads: int) -> _Key:
    """Probe the key with one of its two parts at a time."""
    part = _shared_part(layer, operand, expansion)
    wide, narrow = expansion.output, part.output
    probe = _Probe(layer, operand, heads, (wide, narrow))
    alone = probe.run(wide, torch.ones(wide.shape[-1]))
    one, two = alone[:, 0], probe.run(narrow, torch.ones(narrow.shape[-1]))[:, 0]
    plain, turned = (part[0] != 0 for part in (one, two))
    mixed = one[:, turned].any() or two[:, plain].any() or (plain == turned).any()
    if bool(mixed) or not (plain.any() and turned.any()):
        raise refused(layer, "an entry of the keys is made from both projections, or from none")
    if bool((alone != alone[:, :1]).any()) or bool((one != one[:1]).any()):
        raise refused(layer, "the plain part of the keys differs between heads or positions")
    shared = probe.columns(narrow, two)[:, turned]
    if bool((shared != shared[:1]).any()) or bool((two != two[:1]).any()):
        raise refused(layer, "the rotated part of the keys differs between heads")
    places = turned.nonzero().flatten()
    rotation = matrices(
        lambda vector: probe.run(narrow, vector)[0][:, places],
        shared[0],
        narrow.shape[-1],
        layer.graph.tokens.shape[1],
    )
    if rotation is None:
        raise refused(layer, "no part of the keys is rotated")
    return _Key(
        expansion=expansion,
        part=part,
        plain=plain.nonzero().flatten(),
        turned=places,
        columns=probe.columns(wide, one)[:, plain],
        shared=shared[0],
        factors=(one + two)[0],
        rotation=rotation,
    )


def _read_rope(layer: Layer, query: Chain, key: _Key) -> RopeFacts:
    """The rotation, the same on the turned part of queries and keys; nothing else turns."""
    turning = [rotation for rotation in query.rotations if rotation is not None]
    if len(turning) != 1:
        raise refused(layer, f"queries are rotated {len(turning)} times")
    turned, plain, columns = key.turned, key.plain, query.columns[0]
    whole = turning[0]
    still = whole[:, plain][:, :, plain]
    if (
        bool((still != still[:1]).any())
        or bool(whole[:, plain][:, :, turned].any())
        or bool(whole[:, turned][:, :, plain].any())
    ):
        raise refused(layer, "queries are rotated where keys are not")
    first = read_rope(layer, whole[:, turned][:, :, turned], columns[turned])
    second = read_rope(layer, key.rotation, key.shared)
    if not first.agrees(second):
        raise Refused("position", "queries and keys are rotated differently", where=layer.name)
    if first.dim != len(turned):
        raise refused(layer, "a part of the shared key is not rotated")
    heads = query.columns - query.columns[:, :1]
    same = bool((heads == heads[:1]).all()) and bool((columns[plain].max() < columns[turned]).all())
    for mine, theirs in ((columns[turned], key.shared), (columns[plain], key.columns[0])):
        same = same and torch.equal(mine.argsort(), theirs.argsort())
    within = key.columns - key.columns[:, :1]
    if not same or not bool((within == within[:1]).all()):
        raise refused(layer, "the numbers of a head do not meet in the order plain, rotated")
    return first


def _scales(layer: Layer, query: Chain, key: _Key) -> tuple[float, float]:
    """The factor of the operands on rotated and on plain dimensions."""
    product = query.factors[0].double() * key.factors.double()
    parts = product[key.turned], product[key.plain]
    if any(bool(((part - part.mean()).abs() > 1e-5 * part.abs()).any()) for part in parts):
        raise refused(layer, "dimensions of q and k are scaled differently")
    return float(parts[0].mean()), float(parts[1].mean())
