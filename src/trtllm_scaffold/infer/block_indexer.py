"""Reads a choice of blocks of keys by the tokens: the best score in each, and their top k."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import Linear, strip
from trtllm_scaffold.infer.graph import Node, ReplayError, Value
from trtllm_scaffold.infer.indexer import (
    Choice,
    Style,
    by_blocks,
    causal,
    choosing,
    key_choice,
    turned_heads,
)
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.norm import NormCall
from trtllm_scaffold.infer.position import RopeFacts

_MASKED = -1e4
_CLOSE = 2e-4  # of the largest score: what rounding may do to a product
_DRAWS = 2


@dataclass(frozen=True, eq=False, repr=False)
class BlockIndexerFacts:
    """What was observed of one layer's choice of blocks; see `BlockIndexerSpec`.

    Attributes:
        heads, width, block_size, top_k, local_blocks, style: Numbers and the rotation's style.
        query, key: The projections.
        query_norm, key_norm: The norms on each head behind them.
    """

    heads: int
    width: int
    block_size: int
    top_k: int
    local_blocks: int
    style: Style
    query: Linear
    key: Linear
    query_norm: NormCall
    key_norm: NormCall


def find_choice(layer: Layer, value: Value) -> Choice | None:
    """The choice of keys that `value`, which is added to the scores, masks by; None if it is none.

    Raises:
        Refused: It depends on a choice in some other way.
    """
    node = choosing(layer, value)
    if node is None:
        return None
    return block_choice(layer, node, value) if by_blocks(node) else key_choice(layer, node, value)


def block_choice(layer: Layer, node: Node, value: Value) -> Choice:
    """The choice of blocks that `node` makes, where `value` masks by it.

    Raises:
        Refused: The mask is not 0 in the chosen blocks up to the token, and -inf elsewhere.
    """
    scores, top_k = node.args[0], int(node.args[1])
    groups, size, count = scores.shape[1:]
    if top_k >= count:
        raise _refused(layer, f"{top_k} of {count} blocks are chosen, which shows nothing")
    heads = value.shape[1] if len(value.shape) == 4 else 0
    if scores.shape[2] != layer.graph.tokens.shape[1] or not heads or heads % groups:
        raise _refused(layer, f"{list(scores.shape)} scores make a mask {list(value.shape)}")
    sizes = [n for n in range(2, size) if -(-size // n) == count]
    path = layer.graph.path(node.outputs, value)
    for seed in range(_DRAWS):
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(*scores.shape[:3], count, generator=generator).argsort(-1)
        indices = drawn[..., :top_k]
        values, places = node.outputs
        given = {values: torch.zeros(values.shape), places: indices}
        try:
            made = layer.graph.replay(path, given, value)
        except ReplayError as err:
            raise _refused(layer, "the way from it to the mask cannot be followed") from err
        sizes = [n for n in sizes if _is_mask_of(made, indices, n, size, count)]
    if len(sizes) != 1:
        raise _refused(layer, "what is added to the scores is not 0 and -inf by blocks")
    return Choice(node, value, top_k, block_size=sizes[0])


def _is_mask_of(made: torch.Tensor, indices: torch.Tensor, block: int, size: int, n: int) -> bool:
    chosen = torch.zeros(*indices.shape[:-1], n, dtype=torch.bool).scatter(-1, indices, True)
    keys = chosen.repeat_interleave(block, dim=-1)[..., :size] & causal(size)
    visible = keys.repeat_interleave(made.shape[1] // keys.shape[1], dim=1)
    if made.shape != visible.shape:
        return False
    return bool((made[visible] == 0).all()) and bool((made[~visible] < _MASKED).all())


def read_block_indexer(
    layer: Layer, choice: Choice, rope: RopeFacts, source: Value
) -> BlockIndexerFacts:
    """Read how the scores that blocks are chosen by come about.

    The formula is held against the model on random numbers behind the two norms, where all but
    a positive factor must agree.

    Args:
        layer: The layer, which makes the choice itself.
        choice: The choice.
        rope: The rotation of its attention, which the scores must share.
        source: The attention's input.

    Raises:
        Refused: The scores are not those that have a label.
    """
    scores = choice.node.args[0]
    query, key = _norms(layer, scores)
    projections = [layer.linears.get(strip(norm.input)) for norm in (query, key)]
    if None in projections or any(p.bias or strip(p.input) is not source for p in projections if p):
        raise _refused(layer, "index queries and keys are no projections of the attention's input")
    width = key.output.shape[-1]
    heads = scores.shape[1]
    if rope.inverse or rope.dim > width or query.output.shape[-1] != width:
        raise _refused(layer, f"{rope.dim} dimensions are rotated, {width} scored")
    fitting = [
        (style, local)
        for style in ("neox", "interleaved")
        if (local := _fits(layer, choice, rope, style, (query, key))) is not None
    ]
    if len(fitting) != 1:
        raise _refused(layer, "the index scores follow no known formula")
    style, local = fitting[0]
    first, second = projections
    assert first is not None and second is not None
    if first.rows != heads * width or second.rows != width:
        raise _refused(layer, f"index queries of {first.rows} numbers, keys of {second.rows}")
    return BlockIndexerFacts(
        heads=heads,
        width=width,
        block_size=choice.block_size,
        top_k=choice.top_k,
        local_blocks=local,
        style=style,  # type: ignore[arg-type]
        query=first,
        key=second,
        query_norm=query,
        key_norm=key,
    )


def _norms(layer: Layer, scores: Value) -> tuple[NormCall, NormCall]:
    """The norms of index queries and of the one index key, which the scores are made from."""
    found, _ = layer.made_from(scores)
    norms = [norm for value in found if (norm := layer.norms.at(value)) is not None]
    if len(norms) != 2 or len(found) != 2:
        raise _refused(layer, f"index scores are made from {len(found)} values, not from two norms")
    key, query = sorted(norms, key=lambda norm: norm.output.data.numel())
    if query.output.data.numel() == key.output.data.numel():  # one index head: no telling apart
        raise _refused(layer, "index queries have one head, as keys have")
    return query, key


def _fits(
    layer: Layer, choice: Choice, rope: RopeFacts, style: str, norms: tuple[NormCall, NormCall]
) -> int | None:
    """Blocks that are always chosen, where the formula with this style agrees; else None."""
    generator = torch.Generator().manual_seed(0)
    scores, graph = choice.node.args[0], layer.graph
    batch, heads, size, count = scores.shape
    width = norms[1].output.shape[-1]
    locals_seen, factors = set(), []
    for _ in range(_DRAWS):
        q = torch.randn(batch, size, heads, width, generator=generator)
        k = torch.randn(batch, size, 1, width, generator=generator)
        outputs = norms[0].output, norms[1].output
        given = {o: _laid_as(x, o.shape) for o, x in zip(outputs, (q, k), strict=True)}
        try:
            seen = graph.replay(graph.path(given, scores), given, scores).double()
        except (ReplayError, RuntimeError) as err:
            raise _refused(layer, "index scores pass a change that cannot be followed") from err
        turned = [turned_heads(x.double(), rope, style, 1.0) for x in (q, k)]
        products = torch.einsum("bshd,btd->bhst", turned[0], turned[1][:, :, 0])
        products = products.masked_fill(~causal(size), float("-inf"))
        padding = count * choice.block_size - size
        padded = torch.nn.functional.pad(products, (0, padding), value=float("-inf"))
        guess = padded.unflatten(-1, (count, -1)).amax(-1)
        forced = seen == float("inf")
        local = int(forced[0, 0, -1].sum())
        own = (torch.arange(size) // choice.block_size)[:, None]
        blocks = torch.arange(count)
        expected = (blocks <= own) & (blocks > own - local)
        if local >= count or bool((forced != expected).any()):
            return None
        later = (guess == float("-inf")) & ~forced
        if bool((seen[later] > _MASKED).any()):
            return None
        open_ = ~later & ~forced
        one, other = seen[open_], guess[open_]
        factor = float((one @ other) / (other @ other))
        if factor <= 0 or bool(((one - factor * other).abs() > _CLOSE * one.abs().max()).any()):
            return None
        locals_seen.add(local)
        factors.append(factor)
    if len(locals_seen) != 1 or max(factors) - min(factors) > _CLOSE * max(factors):
        return None
    return locals_seen.pop()


def _laid_as(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """[batch, sequence, heads, width] as the forward lays it, be it heads first."""
    _, size, heads, width = x.shape
    swapped = shape[-3:] == (heads, size, width) and heads != size
    return (x.transpose(1, 2) if swapped else x).reshape(shape)


def _refused(layer: Layer, problem: str) -> Refused:
    return Refused(
        "attention",
        f"blocks of keys are chosen by the tokens in a way without a label: {problem}",
        where=layer.name,
        hint="a top k of the largest product of index queries and keys in each block is expressed",
    )
