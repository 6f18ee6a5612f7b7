"""The attention axis: blocks of keys that an indexer chooses for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trtllm_scaffold.spec.norm import NormSpec
from trtllm_scaffold.spec.quantity import Quantity


@dataclass(frozen=True)
class BlockIndexerSpec:
    """Which blocks of consecutive keys a token sees.

    Index queries (several heads) and keys (one) are projected from the attention's input, each
    head normed and then rotated as the attention's are. For each head, a block's score is the
    largest product with a key of it up to the token; its own and the nearest blocks before it
    come first. The heads of attention share the index heads' choices in consecutive groups.

    Attributes:
        num_heads, head_dim: Of index queries.
        block_size: Keys of a block; the first begins at position 0.
        top_k: Blocks that are chosen.
        local_blocks: How many of them are the token's own and those before it, whatever the score.
        query_norm, key_norm: On each head.
        style: Of the rotation.
    """

    num_heads: Quantity
    head_dim: Quantity
    block_size: Quantity
    top_k: Quantity
    local_blocks: Quantity
    query_norm: NormSpec
    key_norm: NormSpec
    style: Literal["neox", "interleaved"]
