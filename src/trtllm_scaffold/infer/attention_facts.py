"""What is observed of one layer's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from trtllm_scaffold.infer.algebra import Linear
from trtllm_scaffold.infer.alibi import AlibiFacts
from trtllm_scaffold.infer.block_indexer import BlockIndexerFacts
from trtllm_scaffold.infer.graph import Value
from trtllm_scaffold.infer.indexer import Choice, IndexerFacts
from trtllm_scaffold.infer.mla import MlaFacts
from trtllm_scaffold.infer.norm import NormFacts
from trtllm_scaffold.infer.output import GateFacts
from trtllm_scaffold.infer.position import RopeFacts
from trtllm_scaffold.infer.query_factor import QueryFactorFacts
from trtllm_scaffold.infer.segments import Chain

Scope = Literal["head", "full", "per_head_weight"]
When = Literal["before_rope", "after_rope"]


@dataclass(frozen=True, eq=False, repr=False)
class AttentionFacts:
    """What was observed of one layer's attention.

    Attributes:
        heads, kv_heads, head_dim, window, softcap, clip: Numbers, see `AttentionSpec`.
        scale: Factor on q.k; on rotated dimensions, where there are any.
        plain_scale: The same on dimensions that are not rotated, where there are both.
        query, key, value: The way of each operand from its projection.
        key_columns, value_columns: [kv_heads, head_dim] columns of the projections.
        output: The output projection.
        input: What the projections are applied to.
        rope: The rotation, or None.
        score_bias: ``alibi`` or ``relative`` where scores get a bias by position.
        alibi: The rule of its slopes, where it is ALiBi.
        sinks: The parameter of sink logits, or None.
        norms: The query's and the key's norm.
        scope, when: See `QKNormSpec`.
        output_norm: The norm over all heads before the output projection, or None.
        gate: The gate on the heads' outputs, or None.
        mla: Its latents where keys and values are expanded from one, or None. `key` is the
            plain part of the keys then, and `head_dim` counts both parts.
        chunked: Whether the window is a chunk.
        query_factor: The factor on queries that grows with the position, or None.
        choice: The choice of the keys that are seen, by the tokens, or None.
        indexer: How it comes about; None where an earlier layer has chosen.
        block_indexer: How a choice of blocks of keys comes about, or None.
        value_dim: Width of a value head, where it is narrower than a key head; else None.
        value_scale: The factor on values, None for 1.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    plain_scale: float | None
    window: int | None
    chunked: bool
    query_factor: QueryFactorFacts | None
    softcap: float | None
    clip: float | None
    query: Chain
    key: Chain
    value: Chain
    key_columns: torch.Tensor
    value_columns: torch.Tensor
    output: Linear
    input: Value
    rope: RopeFacts | None
    score_bias: str | None
    alibi: AlibiFacts | None
    sinks: str | None
    norms: tuple[NormFacts, NormFacts] | None
    scope: Scope
    when: When
    output_norm: NormFacts | None
    gate: GateFacts | None
    mla: MlaFacts | None = None
    choice: Choice | None = None
    indexer: IndexerFacts | None = None
    block_indexer: BlockIndexerFacts | None = None
    value_dim: int | None = None
    value_scale: float | None = None
