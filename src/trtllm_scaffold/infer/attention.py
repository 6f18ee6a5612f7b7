"""Reads one layer's attention: heads, biases, scale, window, query-key norm, rotation."""

from __future__ import annotations

import torch

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.algebra import strip
from trtllm_scaffold.infer.alibi import bias_kind, read_alibi
from trtllm_scaffold.infer.attention_facts import AttentionFacts, Scope, When
from trtllm_scaffold.infer.block_indexer import BlockIndexerFacts, read_block_indexer
from trtllm_scaffold.infer.graph import Value
from trtllm_scaffold.infer.indexer import Choice, IndexerFacts, read_indexer
from trtllm_scaffold.infer.layers import Layer
from trtllm_scaffold.infer.mla import LatentAttention, read_latent
from trtllm_scaffold.infer.norm import NormCall, NormFacts
from trtllm_scaffold.infer.output import read_output
from trtllm_scaffold.infer.position import RopeFacts, read_rope
from trtllm_scaffold.infer.query_factor import QueryFactorFacts, grown, read_query_factor
from trtllm_scaffold.infer.scores import Scores, read_scores, read_window
from trtllm_scaffold.infer.segments import Chain, follow, sources

_EQUAL = 1e-5


def read_attention(layer: Layer) -> AttentionFacts:
    """Read one layer's attention.

    Raises:
        Refused: Part of it has no label.
    """
    scores = read_scores(layer)
    heads = _heads(layer)
    if len(sources(layer, scores.key)) > 1:
        return _read_latent(layer, scores, heads)
    if scores.choice is not None and not scores.choice.block_size:
        raise _refused(layer, "keys are chosen by the tokens, and there are no latents")
    query = follow(layer, scores.query, heads, "query", transposed=False)
    key = follow(layer, scores.key, heads, "key", transposed=True)
    value = follow(layer, layer.context.args[-1], heads, "value", transposed=False)
    key_columns = _kv_columns(layer, key, heads)
    value_columns = _kv_columns(layer, value, heads)
    value_scale = _value_scale(layer, value, key_columns, value_columns, query)
    factor = _query_factor(layer, query, key, heads)
    rope = None if factor else _rope(layer, query, key)
    if factor is not None:  # its value at position 0 is no part of the scale
        query.factors = query.factors / factor.at(torch.zeros(1))
    scales = _scales(layer, scores, query, key, rope)
    bias = bias_kind(layer, scores.biases)
    norms, scope, when = _norms(layer, query, key)
    source = _input(layer, query, key, value)
    output = read_output(layer, heads, source)
    clips = {query.clip, key.clip, value.clip}
    if len(clips) > 1:
        raise _refused(layer, f"q, k and v are clipped differently: {sorted(map(str, clips))}")
    if query.clips_normed != key.clips_normed:
        raise _refused(layer, "queries and keys are clipped at different places")
    window, chunked = read_window(layer, scores.choice)
    return AttentionFacts(
        heads=heads,
        kv_heads=key_columns.shape[0],
        head_dim=query.columns.shape[1],
        scale=scales[0],
        plain_scale=scales[1],
        window=window,
        chunked=chunked,
        query_factor=factor,
        softcap=scores.softcap,
        clip=query.clip,
        query=query,
        key=key,
        value=value,
        key_columns=key_columns,
        value_columns=value_columns,
        output=output.linear,
        input=source,
        rope=rope,
        score_bias=bias,
        alibi=read_alibi(layer, scores.biases, scales[0]) if bias == "alibi" else None,
        sinks=output.sinks if scores.sinks is None else layer.graph.names[scores.sinks][0],
        norms=norms,
        scope=scope,
        when=when,
        output_norm=output.norm,
        gate=output.gate,
        choice=scores.choice,
        block_indexer=_block_indexer(layer, scores.choice, rope, source),
        value_dim=narrow if (narrow := value_columns.shape[1]) < query.columns.shape[1] else None,
        value_scale=value_scale,
    )


def _block_indexer(
    layer: Layer, choice: Choice | None, rope: RopeFacts | None, source: Value
) -> BlockIndexerFacts | None:
    """How the layer itself chooses blocks; None where all keys are seen."""
    if choice is None:
        return None
    if choice.node not in layer.nodes:
        raise _refused(layer, "blocks of keys are chosen by another layer")
    if rope is None:
        raise _refused(layer, "blocks of keys are chosen by the tokens, and nothing is rotated")
    return read_block_indexer(layer, choice, rope, source)


def _read_latent(layer: Layer, scores: Scores, heads: int) -> AttentionFacts:
    """Read attention whose keys are made from several projections."""
    if scores.choice is not None and scores.choice.block_size:
        raise _refused(layer, "blocks of keys are chosen by the tokens, and there are latents")
    found = read_latent(layer, scores.query, scores.key, heads)
    bias = bias_kind(layer, scores.biases)
    output = read_output(layer, heads, found.input, found.query.linear)
    window, chunked = read_window(layer, scores.choice)
    return AttentionFacts(
        heads=heads,
        kv_heads=heads,
        head_dim=found.query.columns.shape[1],
        scale=found.scales[0] * scores.factor,
        plain_scale=found.scales[1] * scores.factor,
        window=window,
        chunked=chunked,
        query_factor=None,
        softcap=scores.softcap,
        clip=None,
        query=found.query,
        key=found.key,
        value=found.value,
        key_columns=found.key.columns,
        value_columns=found.value.columns,
        output=output.linear,
        input=found.input,
        rope=found.rope,
        score_bias=bias,
        alibi=None,
        sinks=output.sinks if scores.sinks is None else layer.graph.names[scores.sinks][0],
        norms=None,
        scope="head",
        when="before_rope",
        output_norm=output.norm,
        gate=output.gate,
        mla=found.mla,
        choice=scores.choice,
        indexer=_indexer(layer, scores.choice, found),
    )


def _indexer(layer: Layer, choice: Choice | None, found: LatentAttention) -> IndexerFacts | None:
    """How the layer itself chooses keys; None where it does not."""
    if choice is None or choice.node not in layer.nodes:
        return None
    if found.mla.q_norm is None:
        raise _refused(layer, "keys are chosen by the tokens, and queries have no latent")
    latent = found.mla.q_latent
    assert latent is not None
    amplitude = (found.scales[0] / found.scales[1]) ** 0.5
    return read_indexer(layer, choice, found.rope, latent, found.input, amplitude)


def _heads(layer: Layer) -> int:
    shape = layer.softmax.outputs[0].shape
    batch, sequence = layer.graph.tokens.shape
    if len(shape) != 4 or shape[0] != batch or shape[2] != sequence:
        raise _refused(
            layer, f"attention weights of shape {list(shape)} are not [batch, heads, q, k]"
        )
    return shape[1]


def _kv_columns(layer: Layer, chain: Chain, heads: int) -> torch.Tensor:
    """[kv_heads, head_dim]: the distinct heads, each shared by consecutive query heads."""
    distinct: list[torch.Tensor] = []
    owner: list[int] = []
    for head in range(heads):
        same = [i for i, d in enumerate(distinct) if bool((d == chain.columns[head]).all())]
        owner.append(same[0] if same else len(distinct))
        if not same:
            distinct.append(chain.columns[head])
    count = len(distinct)
    if heads % count or owner != [head // (heads // count) for head in range(heads)]:
        raise _refused(layer, f"{heads} query heads share {count} key-value heads as {owner}")
    return torch.stack(distinct)


def _value_scale(
    layer: Layer, value: Chain, keys: torch.Tensor, values: torch.Tensor, query: Chain
) -> float | None:
    """The factor on values, None for 1."""
    if value.norm is not None:
        raise _refused(layer, "the value passes a norm")
    if any(rotation is not None for rotation in value.rotations):
        raise _refused(layer, "the value is rotated by position")
    if keys.shape[0] != values.shape[0]:
        raise _refused(layer, f"{keys.shape[0]} key heads but {values.shape[0]} value heads")
    if values.shape[1] > query.columns.shape[1]:
        raise _refused(
            layer, f"value heads of width {values.shape[1]}, key heads of {query.columns.shape[1]}"
        )
    factor = float(value.factors.double().mean())
    if bool(((value.factors - factor).abs() > 1e-6 * abs(factor)).any()):
        raise _refused(layer, "the value is multiplied by several constants")
    return None if abs(factor - 1.0) < 1e-6 else factor


def _query_factor(layer: Layer, query: Chain, key: Chain, heads: int) -> QueryFactorFacts | None:
    """The factor on queries, where nothing else depends on the position."""
    queries = [r for r in query.rotations if r is not None]
    if len(queries) != 1 or any(r is not None for r in key.rotations):
        return None
    order = torch.argsort(query.columns[0])
    last = query.rotations[0] is not None
    far = grown(layer, query.segments[0], heads) if last else None
    return read_query_factor(layer, queries[0][:, order][:, :, order], far)


def _rope(layer: Layer, query: Chain, key: Chain) -> RopeFacts | None:
    found = []
    for chain in (query, key):
        rotations = [r for r in chain.rotations if r is not None]
        if len(rotations) > 1:
            raise _refused(layer, "queries or keys are rotated twice")
        found.append(read_rope(layer, rotations[0], chain.columns[0]) if rotations else None)
    first, second = found
    if first is None or second is None:
        if first is not second:
            raise _refused(layer, "only one of queries and keys is rotated")
        return None
    if not first.agrees(second):
        raise _refused(layer, "queries and keys are rotated differently")
    return first


def _scales(
    layer: Layer, scores: Scores, query: Chain, key: Chain, rope: RopeFacts | None
) -> tuple[float, float | None]:
    """The factor on q.k: on rotated dimensions, and on the others where there are both."""
    product = query.factors[0].double() * key.factors[0].double() * scores.factor
    width = len(product)
    rotated = torch.ones(width, dtype=torch.bool)
    if rope is not None and rope.dim < width:
        rotated = rope.rotates(query.columns[0])
    found = []
    for part in (product[rotated], product[~rotated]):
        if bool(((part - part.mean()).abs() > _EQUAL * part.abs()).any()):
            raise _refused(layer, "dimensions of q and k are scaled differently")
        found.append(float(part.mean()) if len(part) else None)
    assert found[0] is not None
    return found[0], found[1]


def _norms(
    layer: Layer, query: Chain, key: Chain
) -> tuple[tuple[NormFacts, NormFacts] | None, Scope, When]:
    if query.norm is None or key.norm is None:
        if query.norm is not key.norm:
            raise _refused(layer, "only one of queries and keys is normed")
        return None, "head", "before_rope"
    width, heads = query.columns.shape[1], query.columns.shape[0]
    scopes = [_scope(layer, query.norm, width, heads)]
    scopes.append(_scope(layer, key.norm, width, heads))
    whens: list[When] = [
        "after_rope" if any(r is not None for r in chain.rotations[1:]) else "before_rope"
        for chain in (query, key)
    ]
    q, k = query.norm.facts, key.norm.facts
    alike = (
        q.kind,
        q.plus_one,
        q.weight is None,
        q.bias is None,
        abs(q.eps - k.eps) < 1e-3 * q.eps,
    )
    if alike[:4] != (k.kind, k.plus_one, k.weight is None, k.bias is None) or not (
        alike[4] or q.eps == k.eps
    ):
        raise _refused(layer, f"queries pass a {q.kind} and keys another norm ({k.kind})")
    if scopes[0] != scopes[1] or whens[0] != whens[1]:
        raise _refused(layer, f"queries are normed per {scopes[0]}, keys per {scopes[1]}")
    ordered = all(bool((chain.columns.diff(dim=1) == 1).all()) for chain in (query, key))
    if whens[0] == "after_rope" and q.weight is not None and not ordered:
        raise _refused(layer, "the rotary embedding reorders heads that a norm's weight follows")
    return (q, k), scopes[0], whens[0]


def _scope(layer: Layer, norm: NormCall, head_dim: int, heads: int) -> Scope:
    if norm.input.shape[-1] == head_dim and heads > 1:
        return "per_head_weight" if len(norm.facts.weight_shape) == 2 else "head"
    if norm.input.shape[-1] % head_dim == 0:
        return "full"
    raise _refused(layer, f"the norm of q or k spans {norm.input.shape[-1]} numbers")


def _input(layer: Layer, *chains: Chain) -> Value:
    inputs = {strip(chain.linear.input): None for chain in chains}
    if len(inputs) != 1:
        raise _refused(layer, "q, k and v are projected from different values")
    return next(iter(inputs))


def _refused(layer: Layer, problem: str, hint: str = "") -> Refused:
    return Refused("attention", problem, where=layer.name, hint=hint)
