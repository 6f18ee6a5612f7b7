"""Reads a choice of keys by the tokens: index scores, their top k, and the mask made from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear, strip
from trtllm_scaffold.infer.graph import Node, ReplayError, Value
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.norm import NormCall
from trtllm_scaffold.infer.position import RopeFacts
from trtllm_scaffold.infer.segments import sources

Style = Literal["neox", "interleaved"]

_PRODUCTS = frozenset({"mm", "addmm", "bmm", "baddbmm"})
_MASKED = -1e4  # masks hold -inf or the smallest float, index scores never come near
_CLOSE = 2e-4  # of the largest score: what rounding may do to a product
_DRAWS = 2


@dataclass(frozen=True, eq=False, repr=False)
class Choice:
    """A mask that leaves each token the keys with the largest scores of some kind.

    Attributes:
        node: The ``topk`` that chooses.
        mask: What it makes of the choice, [batch, 1, sequence, keys] or without the 1.
        top_k: How many keys are chosen, or blocks of keys.
        block_size: Keys of a block; 0 where keys are chosen one by one.
    """

    node: Node
    mask: Value
    top_k: int
    block_size: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class IndexerFacts:
    """What was observed of one layer's index scores; see `IndexerSpec`.

    Attributes:
        heads, width, top_k, style: Numbers and the rotation's style.
        query, key, weights: The projections.
        norm: The norm on keys.
    """

    heads: int
    width: int
    top_k: int
    style: Style
    query: Linear
    key: Linear
    weights: Linear
    norm: NormCall


def choosing(layer: Layer, value: Value) -> Node | None:
    """The last ``topk`` whose choice `value` is made from, with no product behind it."""
    products = [v for n in layer.graph.nodes if n.name in _PRODUCTS for v in n.outputs]
    nearest = [
        v.node
        for v in layer.graph.ancestors(value, products)
        if v.node is not None and v.node.name == "topk" and v is v.node.outputs[1]
    ]
    return max(nearest, key=lambda found: found.index) if nearest else None


def key_choice(layer: Layer, node: Node, value: Value) -> Choice:
    """The choice of keys that `node` makes, where `value`, added to the scores, masks by it.

    It must be 0 where a key is chosen and not later than the token, and a mask everywhere else,
    whatever is chosen: the way from the choice to the mask is run again on other choices.

    Raises:
        Refused: It depends on a choice in some other way.
    """
    graph = layer.graph
    scores, top_k = node.args[0], int(node.args[1])
    size, axis = scores.shape[-1], node.args[2] if len(node.args) > 2 else -1
    largest = node.args[3] if len(node.args) > 3 else node.kwargs.get("largest", True)
    if scores.data.dim() != 3 or axis % 3 != 2 or not largest or scores.shape[1] != size:
        raise _refused(layer, "it is no choice of the largest among [batch, sequence, keys]")
    if top_k >= size:
        raise _refused(layer, f"{top_k} of {size} keys are chosen, which shows nothing")
    for indices in (node.outputs[1].data, _others(node.outputs[1].data, size)):
        path = graph.path([node.outputs[1]], value)
        try:
            made = graph.replay(path, {node.outputs[1]: indices}, value)
        except ReplayError as err:
            raise _refused(layer, "the way from it to the mask cannot be followed") from err
        if not _is_mask_of(made, indices, size):
            raise _refused(layer, "what is added to the scores is not 0 and -inf by the choice")
    return Choice(node, value, top_k)


def by_blocks(node: Node) -> bool:
    """Whether a ``topk`` chooses the largest of each token's and group's scores of blocks."""
    axis = node.args[2] if len(node.args) > 2 else -1
    largest = node.args[3] if len(node.args) > 3 else node.kwargs.get("largest", True)
    return node.args[0].data.dim() == 4 and axis % 4 == 3 and bool(largest)


def _others(indices: torch.Tensor, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(*indices.shape[:-1], size, generator=generator).argsort(-1)
    return drawn[..., : indices.shape[-1]].to(indices.dtype)


def _is_mask_of(made: torch.Tensor, indices: torch.Tensor, size: int) -> bool:
    chosen = torch.zeros(*indices.shape[:-1], size, dtype=torch.bool)
    chosen.scatter_(-1, indices.long(), True)
    visible = (chosen & causal(size)).reshape(-1, size, size)
    flat = made.reshape(-1, size, size)
    if flat.shape != visible.shape:
        return False
    return bool((flat[visible] == 0).all()) and bool((flat[~visible] < _MASKED).all())


def causal(size: int) -> torch.Tensor:
    """[size, size]: whether a key is no later than the token of the row."""
    return torch.ones(size, size, dtype=torch.bool).tril()


def check_visible(layer: Layer, choice: Choice) -> None:
    """Refuse attention weights that see other keys than the mask leaves."""
    weights = layer.softmax.outputs[0].data
    size = weights.shape[-2]
    mask = choice.mask.data.reshape(len(weights), -1, size, size)
    if weights.shape[-1] != size or bool(((weights > 0) != (mask == 0)).any()):
        raise _refused(layer, "other keys are seen than those chosen")


@dataclass(frozen=True, eq=False, repr=False)
class _Parts:
    """What index scores are made from."""

    layer: Layer
    target: Value
    query: Linear
    key: NormCall
    weights: Linear

    @property
    def width(self) -> int:
        return self.key.output.shape[-1]

    def scores(self, q: torch.Tensor, k: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """[batch, sequence, keys] of the model, for other projections."""
        graph = self.layer.graph
        given = {self.query.output: q, self.key.output: k, self.weights.output: w}
        given = {value: new.reshape(value.shape) for value, new in given.items()}
        try:
            return graph.replay(graph.path(list(given), self.target), given, self.target)
        except ReplayError as err:
            raise _refused(self.layer, "index scores pass an in-place change") from err


def read_indexer(
    layer: Layer, choice: Choice, rope: RopeFacts, latent: Value, source: Value, amplitude: float
) -> IndexerFacts:
    """Read how the scores that keys are chosen by come about.

    The formula is held against the model on random numbers in place of the three projections,
    where all but a positive factor must agree.

    Args:
        layer: The layer, which makes the choice itself.
        choice: The choice.
        rope: The rotation of its attention, whose frequencies the scores must share.
        latent: The normed latent of queries.
        source: The attention's input.
        amplitude: The factor that the rotation carries.

    Raises:
        Refused: The scores are not those that have a label.
    """
    parts = _parts(layer, choice.node.args[0])
    key = layer.linears.get(strip(parts.key.input))
    if key is None:
        raise _refused(layer, "the index key's norm is not applied to a projection")
    inputs = strip(parts.query.input), strip(key.input), strip(parts.weights.input)
    if inputs[0] is not strip(latent) or any(v is not source for v in inputs[1:]):
        raise _refused(layer, "index queries, keys and weights are projected from other values")
    if any(linear.bias is not None for linear in (parts.query, key, parts.weights)):
        raise _refused(layer, "a projection of the indexer has a bias")
    if rope.inverse or rope.dim > parts.width:
        raise _refused(layer, f"{rope.dim} dimensions are rotated, {parts.width} scored")
    fitting = [s for s in ("neox", "interleaved") if _fits(parts, rope, s, amplitude)]
    if len(fitting) != 1:
        raise _refused(layer, "the index scores follow no known formula")
    return IndexerFacts(
        heads=parts.weights.rows,
        width=parts.width,
        top_k=choice.top_k,
        style=fitting[0],  # type: ignore[arg-type]
        query=parts.query,
        key=key,
        weights=parts.weights,
        norm=parts.key,
    )


def _parts(layer: Layer, scores: Value) -> _Parts:
    """The projections and the norm that index scores are made from."""
    found = sources(layer, scores)
    linears = [layer.linears[value] for value in found if value in layer.linears]
    norms = [n for n in (layer.norms.at(v) for v in found if v not in layer.linears) if n]
    if len(found) != 3 or len(linears) != 2 or len(norms) != 1:
        raise _refused(layer, f"index scores are made from {len(found)} values, not from three")
    width = norms[0].output.shape[-1]
    weights, query = sorted(linears, key=lambda linear: linear.rows)
    if query.rows != width * weights.rows:
        raise _refused(
            layer, f"index queries of {query.rows} numbers, {weights.rows} weights, keys of {width}"
        )
    return _Parts(layer, scores, query, norms[0], weights)


def _fits(parts: _Parts, rope: RopeFacts, style: str, amplitude: float) -> bool:
    """Whether the formula with this style agrees, but for one positive factor."""
    generator = torch.Generator().manual_seed(0)
    batch, size = parts.layer.graph.tokens.shape
    heads, width = parts.weights.rows, parts.width
    factors = []
    for _ in range(_DRAWS):
        q = torch.randn(batch, size, heads, width, generator=generator)
        k = torch.randn(batch, size, width, generator=generator)
        w = torch.randn(batch, size, heads, generator=generator)
        seen = parts.scores(q, k, w)
        if seen.shape != (batch, size, size):
            return False
        turned = (turned_heads(x.double(), rope, style, amplitude) for x in (q, k[:, :, None]))
        products = torch.einsum("bshd,btxd->bsht", *turned).relu()
        guess = torch.einsum("bsh,bsht->bst", w.double(), products)
        visible = causal(size).expand_as(seen)
        if bool((seen[~visible] > _MASKED).any()):
            return False
        one, other = seen[visible].double(), guess[visible]
        factor = float((one @ other) / (other @ other))
        if factor <= 0 or bool(((one - factor * other).abs() > _CLOSE * one.abs().max()).any()):
            return False
        factors.append(factor)
    return max(factors) - min(factors) <= _CLOSE * max(factors)


def turned_heads(x: torch.Tensor, rope: RopeFacts, style: str, amplitude: float) -> torch.Tensor:
    """[batch, sequence, heads, width] with the first dimensions rotated by the position."""
    positions = torch.arange(x.shape[1], dtype=torch.float64)
    angles = positions[:, None, None] * torch.tensor(rope.frequencies, dtype=torch.float64)
    cos, sin = angles.cos() * amplitude, angles.sin() * amplitude
    turned, rest = x[..., : rope.dim], x[..., rope.dim :]
    if style == "neox":
        first, second = turned.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
    first, second = turned[..., ::2], turned[..., 1::2]
    pairs = torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((pairs.flatten(-2), rest), dim=-1)


def _refused(layer: Layer, problem: str) -> Refused:
    return Refused(
        "attention",
        f"keys are chosen by the tokens in a way without a label: {problem}",
        where=layer.name,
        hint="a top k of rectified products, weighted by head, is expressed with latent attention",
    )
