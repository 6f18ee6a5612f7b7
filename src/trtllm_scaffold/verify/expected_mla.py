"""Which parameters latent attention must fill, and the small sizes of its load proof."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.json_file import shown

#: Answers with the widths of latents; `q_lora_rank` is 0 where queries have none.
SIZES = ("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")

#: Answers with the sizes of an indexer, where there is one.
INDEXER_SIZES = ("index_n_heads", "index_head_dim", "index_topk")

#: Odd, and no two alike: a tensor that lies another way shows.
_SMALL = dict(zip(SIZES, (7, 9, 5, 6, 3), strict=True))

_SMALL_INDEXER = dict(zip(INDEXER_SIZES, (13, 8, 4), strict=True))

#: Shape of a canonical parameter, and whether it is cut by heads along dimension 0 or 1.
Row = tuple[str, tuple[int, ...], int | None]


def is_latent(answers: Mapping[str, Any]) -> bool:
    """Whether the port has latent attention."""
    return answers.get("attention_kind") == "MLA"


def reads_latents_itself(answers: Mapping[str, Any]) -> bool:
    """Whether latents are read by an attention of the port's own."""
    return is_latent(answers) and not answers.get("attention_base")


def read_latent_sizes(answers: Mapping[str, Any]) -> dict[str, int]:
    """The widths among recorded answers; none without latent attention.

    Raises:
        InputError: If one is no width.
    """
    if not is_latent(answers):
        return {}
    sizes = {}
    for name in (*SIZES, *(INDEXER_SIZES if answers.get("indexer") else ())):
        value = answers.get(name)
        least = 0 if name == "q_lora_rank" else 1
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise InputError(
                f"the answer {name} is {shown(value)}, not a width", where=".copier-answers.yml"
            )
        sizes[name] = value
    return sizes


def index_layers(answers: Mapping[str, Any]) -> list[int]:
    """The layers that have an indexer, where not all have.

    Raises:
        InputError: If they are not a list of layers.
    """
    found = answers.get("index_layers")
    if not isinstance(found, list) or not all(type(item) is int for item in found):
        raise InputError(
            f"the answer index_layers is {shown(found)}, not layers", where=".copier-answers.yml"
        )
    return found


def small_latents(sizes: Mapping[str, int]) -> dict[str, int]:
    """The widths of a small model of the same kind; none without latent attention."""
    if "kv_lora_rank" not in sizes:
        return {}
    indexer = {name: size for name, size in _SMALL_INDEXER.items() if name in sizes}
    q_rank = _SMALL["q_lora_rank"] if sizes["q_lora_rank"] else 0
    return {**_SMALL, **indexer, "q_lora_rank": q_rank}


def latent_parameters(answers: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[Row]:
    """Every parameter of one layer's attention, by its name in there."""
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    rank, q_rank = sizes["kv_lora_rank"], sizes["q_lora_rank"]
    nope, rope, value = (sizes[name] for name in SIZES[2:])
    if q_rank:
        yield "q_a_proj.weight", (q_rank, hidden), None
        yield "q_a_layernorm.weight", (q_rank,), None
    yield "o_proj.weight", (hidden, heads * value), 1
    yield "kv_a_layernorm.weight", (rank,), None
    if answers.get("latent_rope_norm"):
        yield "k_rope_layernorm.weight", (rope,), None
    query = "q_b_proj" if q_rank else "q_proj"
    rows = nope + rope + (value if answers.get("latent_gate") else 0)
    read = (q_rank or hidden) * (2 if answers.get("latent_raw") else 1)
    yield f"{query}.weight", (heads * rows, read), 0
    if reads_latents_itself(answers):
        yield "kv_a_proj_with_mqa.weight", (rank + rope, hidden), None
        yield "kv_b_proj.weight", (heads * (nope + value), rank), 0
        if "index_topk" in sizes:
            yield from _indexer_parameters(sizes)
        return
    yield "kv_a_proj.weight", (rank + rope, hidden), None
    yield "k_b_proj.weight", (heads * nope, rank), 0
    yield "v_b_proj.weight", (heads * value, rank), 0


def _indexer_parameters(sizes: Mapping[str, int]) -> Iterator[Row]:
    """Those of the choice of keys, which every rank holds whole."""
    heads, width = sizes["index_n_heads"], sizes["index_head_dim"]
    yield "indexer.wq_b.weight", (heads * width, sizes["q_lora_rank"]), None
    yield "indexer.wk.weight", (width, sizes["hidden_size"]), None
    yield "indexer.k_norm.weight", (width,), None
    yield "indexer.k_norm.bias", (width,), None
    yield "indexer.weights_proj.weight", (heads, sizes["hidden_size"]), None
