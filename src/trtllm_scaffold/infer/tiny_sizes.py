"""Chooses the sizes of a tiny configuration that keeps the real one's proportions of kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.keys import SYNONYMS, is_size, keys_of
from trtllm_scaffold.infer.normalize import ORIGINAL

Style = Literal["odd", "published"]

#: Roles without which a configuration cannot be shrunk, and the axis that lacks its size.
_AXES = {
    "hidden_size": "embedding",
    "num_attention_heads": "attention",
    "num_hidden_layers": "block",
    "vocab_size": "embedding",
}
REQUIRED = tuple(_AXES)


@dataclass(frozen=True)
class Real:
    """Sizes of the real configuration; None where it has no such key.

    Attributes:
        sizes: By role (see `keys.SYNONYMS`).
        head_dim: Explicit or hidden_size / heads.
        fraction: Rotated share of a head.
        rope_type: Type of the rope scaling, ``default`` for none.
        original: Length before the rope scaling.
    """

    sizes: Mapping[str, int]
    head_dim: int
    fraction: float
    rope_type: str
    original: int | None


@dataclass(frozen=True)
class Base:
    """The numbers that one style starts from; no two are equal, and none is a usual size.

    `mha` is the number of heads where the real one is a power of two, and `uneven` where it is
    not: ALiBi's slopes follow another rule there.
    """

    head_dims: tuple[int, ...]
    mha: int
    uneven: int
    kv_heads: int
    intermediate: int
    vocab: int
    layers: int
    positions: int
    original: int
    window: int
    embedding: int
    latents: tuple[int, int, int, int, int]
    indexer: tuple[int, int]


#: Roles of the widths of latent attention, in the order of `Base.latents`.
LATENT_ROLES = (
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)
#: Keys of a block and chosen blocks: fewer than any traced or compared input has.
BLOCKS: dict[tuple[str, int], tuple[int, int]] = {
    ("published", 0): (4, 2),
    ("published", 1): (3, 3),
    ("odd", 0): (3, 2),
    ("odd", 1): (2, 3),
}

#: Roles of an indexer's sizes, in the order of `Base.indexer`.
INDEXER_ROLES = ("index_head_dim", "index_n_heads")

#: Odd sizes differ between the variants in every entry. `published` sizes divide by 8 where
#: tensor parallelism splits them; its head_dim is one that TensorRT-LLM's kernels know. An indexer
#: has many heads: a score that all of them rectify away is 0, and equal scores leave open which
#: key is chosen.
BASES: dict[tuple[str, int], Base] = {
    ("published", 0): Base(
        (32, 40, 64, 48), 4, 4, 2, 176, 131, 3, 96, 32, 5, 112, (48, 40, 24, 16, 20), (36, 14)
    ),
    ("published", 1): Base(
        (64, 80, 96), 4, 4, 2, 208, 139, 4, 112, 28, 6, 144, (56, 32, 16, 24, 28), (44, 15)
    ),
    ("odd", 0): Base(
        (48, 80, 112, 144), 4, 6, 2, 156, 137, 3, 72, 24, 5, 84, (68, 36, 20, 12, 28), (22, 11)
    ),
    ("odd", 1): Base(
        (40, 44, 52, 56), 8, 7, 3, 228, 157, 4, 104, 28, 7, 124, (92, 60, 32, 16, 36), (34, 13)
    ),
}


def real_sizes(full: Mapping[str, Any], attribute_map: Mapping[str, str]) -> dict[str, int]:
    """Return the sizes of a configuration by role.

    Args:
        full: Every value of the configuration object.
        attribute_map: The class's own map from canonical names to its keys.

    Raises:
        Refused: A size without which no decoder can be built is missing.
    """
    found = {}
    for role in SYNONYMS:
        for key in reversed(keys_of(role, attribute_map)):
            value = full.get(key)
            if isinstance(value, list) and value and all(is_size(item) for item in value):
                found[role] = max(value)  # one size a layer
            elif is_size(value):
                found[role] = value
    for role in REQUIRED:
        if role not in found:
            raise Refused(
                _AXES[role],
                f"no key of the configuration gives {role}",
                where="config.json",
                hint="looked for " + ", ".join(keys_of(role, attribute_map)),
            )
    return found


def tiny_sizes(real: Real, style: Style, variant: int, layers: int) -> dict[str, int]:
    """Return the tiny size of every role that the real configuration has.

    Kept: MHA, GQA or MQA and the group size up to 4; whether head_dim is hidden_size / heads;
    the rotated share; whether embeddings are projected; the ratio of the lengths around a rope
    scaling. `layers` is the number of layers that are kept.
    """
    base = BASES[style, variant]
    heads, kv_heads = _heads(real.sizes, base)
    head_dim = _head_dim(real, base)
    hidden = heads * _hidden_per_head(real, head_dim, 4 * variant if style == "odd" else 0)
    positions, original = _lengths(real, base)
    tiny = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": base.intermediate,
        "num_hidden_layers": layers,
        "vocab_size": base.vocab,
        "max_position_embeddings": positions,
        "embedding_size": base.embedding,
        "sliding_window": base.window,
        "rotary_dim": _rotary_dim(real, head_dim),
        "norm_gate_rank": base.window + 4,
        **dict(zip(LATENT_ROLES, base.latents, strict=True)),
        **dict(zip(INDEXER_ROLES, base.indexer, strict=True)),
    }
    if "index_block_size" in real.sizes:
        tiny.update(_block_sizes(real, tiny, (style, variant)))
    tiny["qk_head_dim"] = tiny["qk_nope_head_dim"] + tiny["qk_rope_head_dim"]
    if real.sizes.get("qk_rope_head_dim") == real.head_dim:  # what some call the rotated part
        tiny["head_dim"] = tiny["qk_rope_head_dim"]
    parts = real.sizes.get("qk_nope_head_dim", 0), real.sizes.get("qk_rope_head_dim", 0)
    if all(parts) and real.sizes.get("head_dim") == sum(parts):
        tiny["head_dim"] = tiny["qk_head_dim"]
    if real.sizes.get("embedding_size") == real.sizes["hidden_size"]:
        tiny["embedding_size"] = hidden
    sizes = {role: size for role, size in tiny.items() if role in real.sizes}
    window = real.sizes.get("sliding_window", 0)
    if window >= real.sizes.get("max_position_embeddings", window + 1):
        del sizes["sliding_window"]  # never bites; kept as it is
    return {**sizes, ORIGINAL: original, "effective_head_dim": tiny["head_dim"]}


def _block_sizes(real: Real, tiny: Mapping[str, int], which: tuple[Style, int]) -> dict[str, int]:
    """The sizes of a choice of blocks of keys: heads for each group, and what is turned fits."""
    block, chosen = BLOCKS[which]
    groups = real.sizes.get("index_n_heads") == real.sizes.get("num_key_value_heads")
    spare = 4 if real.fraction <= 0.75 else 0
    return {
        "index_block_size": block,
        "index_topk_blocks": chosen,
        "index_head_dim": tiny["head_dim"] - spare,
        "index_n_heads": tiny["num_key_value_heads" if groups else "num_attention_heads"],
    }


def _heads(sizes: Mapping[str, int], base: Base) -> tuple[int, int]:
    """Return the tiny heads and the tiny heads of keys and values."""
    heads = sizes["num_attention_heads"]
    kv_heads = sizes.get("num_key_value_heads", heads)
    mha = base.mha if heads & (heads - 1) == 0 else base.uneven
    if kv_heads >= heads:
        return mha, mha
    if kv_heads == 1:
        return mha, 1
    group = heads // kv_heads if heads // kv_heads in (2, 4) else 4
    if heads // kv_heads == 3:
        return (12, 4) if base.kv_heads % 2 == 0 else (9, 3)
    return group * base.kv_heads, base.kv_heads


def _head_dim(real: Real, base: Base) -> int:
    """Return a width whose rotated share is even, as the real one's is."""
    for width in base.head_dims:
        rotated = int(width * real.fraction)
        if rotated % 2 == 0 and rotated >= 4 and (real.fraction == 1.0 or rotated < width):
            return width
    return base.head_dims[0]


def _hidden_per_head(real: Real, head_dim: int, extra: int) -> int:
    """Return hidden_size / heads: head_dim itself only where that is so in the real model.

    `extra` keeps the odd variants from sharing a ratio, which would pass for a factor.
    """
    hidden = real.sizes["hidden_size"]
    width = real.head_dim * real.sizes["num_attention_heads"]
    if hidden == width:
        return head_dim
    scaled = max(4, 4 * round(head_dim * hidden / width / 4)) + extra
    return scaled if scaled != head_dim else head_dim + 4


def _rotary_dim(real: Real, head_dim: int) -> int:
    rotated = real.sizes.get("rotary_dim", real.head_dim)
    return max(4, 2 * round(head_dim * rotated / real.head_dim / 2))


def _lengths(real: Real, base: Base) -> tuple[int, int]:
    """Return max_position_embeddings and the length before the rope scaling."""
    longest = real.sizes.get("max_position_embeddings", 0)
    if real.rope_type == "dynamic":
        return base.original, base.original
    if real.rope_type != "default" and real.original and longest >= real.original:
        return max(1, round(longest / real.original)) * base.original, base.original
    if real.original and longest:
        return base.positions, max(1, round(base.positions * real.original / longest))
    return base.positions, base.positions
