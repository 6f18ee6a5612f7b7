"""Attention to chosen blocks of keys in a port: which layers choose, sizes, norms, parameters."""

from __future__ import annotations

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.plan.answers import Answers
from trtllm_scaffold.plan.kinds import condition_of
from trtllm_scaffold.spec import BlockIndexerSpec, LayerKind, ModelSpec, NormSpec, Quantity

#: TensorRT-LLM's modules that an indexer is made of.
SYMBOLS = ("Linear", "RMSNorm")

#: Role -> the module of the attention that holds it.
MODULES = {
    "index_q": "indexer.q_proj",
    "index_k": "indexer.k_proj",
    "index_q_norm": "indexer.q_norm",
    "index_k_norm": "indexer.k_norm",
}


def _chooses(kind: LayerKind) -> bool:
    return kind.attention.block_indexer is not None


def block_indexer_of(spec: ModelSpec) -> BlockIndexerSpec | None:
    """The choice of blocks of the layers that choose; None where there are none.

    Raises:
        Refused: They choose differently.
    """
    found = {kind.attention.block_indexer for kind in spec.layer_kinds if _chooses(kind)}
    if len(found) > 1:
        raise Refused("attention.block_indexer", "layers choose blocks of keys differently")
    return next(iter(found), None)


def block_indexer_sizes(spec: ModelSpec) -> dict[str, Quantity]:
    """Its numbers by the names that the port reads; none without it."""
    indexer = block_indexer_of(spec)
    if indexer is None:
        return {}
    return {
        "index_n_heads": indexer.num_heads,
        "index_head_dim": indexer.head_dim,
        "index_block_size": indexer.block_size,
        "index_topk_blocks": indexer.top_k,
        "index_local_blocks": indexer.local_blocks,
    }


def block_indexer_norms(spec: ModelSpec) -> dict[str, NormSpec]:
    """Its norms by the names that the template asks for; none without it."""
    indexer = block_indexer_of(spec)
    if indexer is None:
        return {}
    return {"index_q_norm": indexer.query_norm, "index_k_norm": indexer.key_norm}


def plan_block_indexer(spec: ModelSpec) -> Answers:
    """Answers of the choice of blocks, over those of a choice of keys; none without it.

    Raises:
        Refused: The cache has no room for its keys, heads do not follow its choices in groups,
            or something stands beside it that nobody has said how to express.
    """
    indexer = block_indexer_of(spec)
    if indexer is None:
        return {"block_indexer": ""}
    if indexer.local_blocks.value > indexer.top_k.value:
        raise Refused(
            "attention.block_indexer",
            f"{indexer.top_k.value} blocks are chosen, {indexer.local_blocks.value} before others",
        )
    for kind in spec.layer_kinds:
        attention = kind.attention
        if attention.sinks or attention.query_factor:
            raise Refused("attention.block_indexer", "beside sinks or a factor on queries")
        if attention.num_attention_heads.value % indexer.num_heads.value:
            raise Refused(
                "attention.block_indexer",
                f"{attention.num_attention_heads.value} heads, {indexer.num_heads.value} choices",
            )
        if indexer.head_dim.value > attention.head_dim.value:
            raise Refused(
                "attention.block_indexer",
                f"index keys of {indexer.head_dim.value} numbers, heads of "
                f"{attention.head_dim.value}",
                hint="an index key that fits into a head of the cache is expressed",
            )
    condition, kinds = (
        condition_of(spec, "attention.block_indexer", _chooses, True),
        spec.layer_kinds,
    )
    return {
        "block_indexer": indexer.style,
        "indexer_condition": condition,
        "index_layers": [
            index
            for index, kind in enumerate(spec.layer_pattern)
            if condition and _chooses(kinds[kind])
        ],
    }
