"""What a choice of blocks of keys adds to the parameters that a port must fill."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.json_file import shown
from trtllm_scaffold.verify.parameter import Parameter

#: Answers with its sizes, and odd small ones.
_SMALL = {
    "index_n_heads": 2,
    "index_head_dim": 3,
    "index_block_size": 3,
    "index_topk_blocks": 2,
    "index_local_blocks": 1,
}
_PREFIX = "model.layers.{i}.self_attn.indexer"


def read_indexer_sizes(answers: Mapping[str, Any]) -> dict[str, int]:
    """Its sizes among recorded answers; none where there is no such choice.

    Raises:
        InputError: If one is missing or is not a size.
    """
    if not answers.get("block_indexer"):
        return {}
    sizes = {}
    for name in _SMALL:
        value, least = answers.get(name), 0 if name == "index_local_blocks" else 1
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**31:
            raise InputError(
                f"the answer {name} is {shown(value)}, not a size", where=".copier-answers.yml"
            )
        sizes[name] = value
    return sizes


def small_indexer(sizes: Mapping[str, int]) -> dict[str, int]:
    """Its sizes in a small model; none without it."""
    return dict(_SMALL) if "index_block_size" in sizes else {}


def indexer_parameters(
    answers: Mapping[str, Any], sizes: Mapping[str, int]
) -> Iterator[tuple[str, Parameter]]:
    """Those of an indexer, which every rank holds whole."""
    if not answers.get("block_indexer"):
        return
    hidden, width = sizes["hidden_size"], sizes["index_head_dim"]
    yield f"{_PREFIX}.q_proj.weight", Parameter((sizes["index_n_heads"] * width, hidden))
    yield f"{_PREFIX}.k_proj.weight", Parameter((width, hidden))
    yield f"{_PREFIX}.q_norm.weight", Parameter((width,))
    yield f"{_PREFIX}.k_norm.weight", Parameter((width,))
