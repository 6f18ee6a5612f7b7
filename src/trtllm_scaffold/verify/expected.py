"""Which parameters a port must fill, and their shapes: from the recorded axis facts alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.json_file import shown
from trtllm_scaffold.verify.expected_indexer import (
    indexer_parameters,
    read_indexer_sizes,
    small_indexer,
)
from trtllm_scaffold.verify.expected_mla import (
    is_latent,
    latent_parameters,
    read_latent_sizes,
    small_latents,
)
from trtllm_scaffold.verify.expected_moe import (
    expert_parameters,
    read_moe_sizes,
    small_moe_sizes,
)
from trtllm_scaffold.verify.parameter import Parameter, linear
from trtllm_scaffold.verify.port_files import MAX_LAYERS

__all__ = [
    "TP_SIZES",
    "Parameter",
    "expected_parameters",
    "obstacle",
    "read_sizes",
    "shard",
    "small_sizes",
    "tiling_problems",
]

#: Tensor-parallel sizes that a load proof tries.
TP_SIZES = (1, 2, 4, 8)

_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "embedding_size",
)
_LAYER = "model.layers.{i}"
_FILE = ".copier-answers.yml"


def read_sizes(answers: Mapping[str, Any]) -> dict[str, int]:
    """The sizes among recorded answers, by the names that the runtime reads.

    Raises:
        InputError: If one is missing or is not a positive number.
    """
    sizes = {}
    for name in _SIZES:
        fallback = answers.get("hidden_size") if name == "embedding_size" else None
        sizes[name] = _size(answers, name, fallback)
    sizes.update(read_latent_sizes(answers))
    sizes.update(read_indexer_sizes(answers))
    if answers.get("gated_norms"):
        sizes["norm_gate_rank"] = _size(answers, "norm_gate_rank")
    if answers.get("attention_narrow"):
        sizes["v_head_dim"] = _size(answers, "v_head_dim")
    if sizes["num_hidden_layers"] > MAX_LAYERS:
        raise InputError(f"{sizes['num_hidden_layers']} layers, at most {MAX_LAYERS} are accepted")
    return {**sizes, **read_moe_sizes(answers)}


def _size(answers: Mapping[str, Any], name: str, fallback: Any = None) -> int:
    value = answers.get(name, fallback)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise InputError(f"the answer {name} is {shown(value)}, not a size", where=_FILE)
    return value


def expected_parameters(
    answers: Mapping[str, Any], sizes: Mapping[str, int]
) -> dict[str, Parameter]:
    """Every canonical parameter that a checkpoint fills, layers written as ``{i}``.

    Args:
        answers: Recorded answers: which biases, norms and projections there are.
        sizes: Sizes of the real model or of a small one, as `read_sizes` gives them, and
            ``embedding_rows`` where the table is longer than the vocabulary.

    Raises:
        InputError: If an answer has the wrong type.
    """
    zero = {f"{module}.bias" for module in _names(answers, "zero_biases")}
    found = {
        **dict(_outside(answers, sizes)),
        **dict(_attention(answers, sizes)),
        **dict(_norms(answers, sizes)),
        **dict(_mlp(answers, sizes)),
        **dict(expert_parameters(answers, sizes)),
    }
    return {name: item for name, item in found.items() if name not in zero}


def _outside(
    answers: Mapping[str, Any], sizes: Mapping[str, int]
) -> Iterator[tuple[str, Parameter]]:
    hidden, width = sizes["hidden_size"], sizes["embedding_size"]
    vocab = sizes["vocab_size"]
    rows = sizes.get("embedding_rows", vocab)
    yield "model.embed_tokens.weight", Parameter((rows, width), split=0)
    yield from _norm(answers, "embed_norm", "model.embed_norm", (width,))
    if answers.get("embedding_projection"):
        yield "model.project_in.weight", Parameter((hidden, width))
    if answers.get("position_kind") == "learned":
        length = sizes["max_position_embeddings"] + _integer(answers, "learned_offset")
        yield "model.embed_positions.weight", Parameter((length, hidden))
    yield from _norm(answers, "norm", "model.norm", (hidden,))
    if answers.get("head_dense"):
        bias = answers.get("head_dense_bias")
        yield from linear("model.head_dense", (hidden, hidden), bias=bias)
    yield from _norm(answers, "head_norm", "model.head_norm", (hidden,))
    if answers.get("head_projection"):
        yield "model.project_out.weight", Parameter((width, hidden))
    if not answers.get("head_tied"):
        yield "lm_head.weight", Parameter((vocab, width), split=0)
    if answers.get("head_bias"):
        yield "lm_head_bias", Parameter((vocab,))


def _attention(
    answers: Mapping[str, Any], sizes: Mapping[str, int]
) -> Iterator[tuple[str, Parameter]]:
    if is_latent(answers):
        for part, widths, split in latent_parameters(answers, sizes):
            cut = None if split is None else sizes["num_attention_heads"]
            yield f"{_LAYER}.self_attn.{part}", Parameter(widths, split=split, heads=cut)
        yield from _gate(answers, sizes, sizes["v_head_dim"])
        return
    hidden, head_dim = sizes["hidden_size"], sizes["head_dim"]
    value_dim = sizes.get("v_head_dim", head_dim)
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    for part, count, width in (
        ("q_proj", heads, head_dim),
        ("k_proj", kv_heads, head_dim),
        ("v_proj", kv_heads, value_dim),
    ):
        name, shape = f"{_LAYER}.self_attn.{part}", (count * width, hidden)
        bias = answers.get("attention_qkv_bias")
        yield from linear(name, shape, bias=bias, split=0, heads=count)
    name, shape = f"{_LAYER}.self_attn.o_proj", (hidden, heads * value_dim)
    yield from linear(name, shape, bias=answers.get("attention_o_bias"), split=1, heads=heads)
    yield from _gate(answers, sizes, head_dim)
    for part, count in (("q_norm", heads), ("k_norm", kv_heads)):
        if answers.get("qk_norm_apart"):
            name = f"{_LAYER}.self_attn.{part}.{{j}}.weight"
            yield name, Parameter((head_dim,), heads=count)
            continue
        scope = str(answers.get("qk_norm") or "head")
        sizes_by_scope = {"head": (head_dim,), "per_head_weight": (count, head_dim)}
        size = sizes_by_scope.get(scope, (count * head_dim,))
        yield from _norm(answers, "qk_norm", f"{_LAYER}.self_attn.{part}", size)
    name = f"{_LAYER}.self_attn.output_norm"
    yield from _norm(answers, "output_norm", name, (heads * head_dim,))
    yield from indexer_parameters(answers, sizes)
    if answers.get("attention_sinks"):
        yield f"{_LAYER}.self_attn.sinks", Parameter((heads,))


def _gate(
    answers: Mapping[str, Any], sizes: Mapping[str, int], value_dim: int
) -> Iterator[tuple[str, Parameter]]:
    width = answers.get("attention_gate")
    if not width:
        return
    heads = sizes["num_attention_heads"]
    rows = heads if width == "head" else heads * value_dim
    name, shape = f"{_LAYER}.self_attn.gate_proj", (rows, sizes["hidden_size"])
    yield from linear(name, shape, bias=answers.get("attention_gate_bias"), split=0, heads=heads)
    if answers.get("attention_gate_head_bias"):
        yield f"{_LAYER}.self_attn.gate_bias", Parameter((heads,))


def _norms(answers: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[tuple[str, Parameter]]:
    for name in _names(answers, "block_norms"):
        module, hidden = f"{_LAYER}.{name}", sizes["hidden_size"]
        if name not in _names(answers, "gated_norms"):
            yield from _norm(answers, name, module, (hidden,))
            continue
        if name == answers.get("expert_gated_norm"):
            yield from _norm(answers, name, module, (hidden,))
        yield from _norm(answers, name, f"{module}.norm", (hidden,))
        yield f"{module}.down.weight", Parameter((sizes["norm_gate_rank"], hidden))
        yield f"{module}.up.weight", Parameter((hidden, sizes["norm_gate_rank"]))


def _norm(
    answers: Mapping[str, Any], name: str, module: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, Parameter]]:
    """Parameters of the norm that the answers call `name`; none where there is no such norm."""
    names = _names(answers, "norm_names")
    if name not in names:
        return
    place = names.index(name)
    options, classes = _names(answers, "norm_options"), _names(answers, "norm_classes")
    if len(options) <= place or len(classes) <= place:
        raise InputError("norm_names, norm_classes and norm_options differ in length", where=_FILE)
    if "has_weights=False" in options[place]:
        return
    yield f"{module}.weight", Parameter(shape)
    if classes[place] == "LayerNorm" and "has_bias=False" not in options[place]:
        yield f"{module}.bias", Parameter(shape)


def _names(answers: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings among the answers."""
    value = answers.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"the answer {key} is {shown(value)}, not a list of names", where=_FILE)
    return value


def _integer(answers: Mapping[str, Any], key: str) -> int:
    value = answers.get(key) or 0
    if not isinstance(value, int):
        raise InputError(f"the answer {key} is {shown(value)}, not a number", where=_FILE)
    return value


def _mlp(answers: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[tuple[str, Parameter]]:
    if answers.get("moe") and not answers.get("mlp_kind"):
        return
    hidden, width = sizes["hidden_size"], sizes["intermediate_size"]
    bias = answers.get("mlp_bias")
    for part in ("gate_proj", "up_proj") if answers.get("mlp_kind") == "gated" else ("up_proj",):
        yield from linear(f"{_LAYER}.mlp.{part}", (width, hidden), bias=bias, split=0)
    yield from linear(f"{_LAYER}.mlp.down_proj", (hidden, width), bias=bias, split=1)
    yield from _norm(answers, "down_norm", f"{_LAYER}.mlp.down_norm", (width,))
    if answers.get("mlp_activation") == "xielu":
        for name in ("alpha_p", "alpha_n"):
            yield f"{_LAYER}.mlp.activation.{name}", Parameter((1,))


def small_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes of a small model of the same kind: what is equal in the real one stays equal.

    So a square matrix stays square and any other does not become one: the layout that the real
    shapes show is that of the small ones.
    """
    heads, kv_heads, head_dim = _small_heads(sizes)
    real_hidden = sizes["hidden_size"]
    width = heads * head_dim
    square = real_hidden == sizes["num_attention_heads"] * sizes["head_dim"]
    hidden = width if square else width + 2
    inner = sizes["intermediate_size"]
    small = {
        "hidden_size": hidden,
        "num_hidden_layers": 2,
        "vocab_size": 89,
        "max_position_embeddings": 31,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": hidden if inner == real_hidden else 2 * hidden + 7,
        "embedding_size": hidden if sizes["embedding_size"] == real_hidden else hidden - 3,
        **({"norm_gate_rank": 5} if "norm_gate_rank" in sizes else {}),
        **({"embedding_rows": 97} if "embedding_rows" in sizes else {}),
        **small_latents(sizes),
        **small_indexer(sizes),
    }
    if "v_head_dim" in sizes and "kv_lora_rank" not in sizes:
        small["v_head_dim"] = head_dim - 1
    return {**small, **small_moe_sizes(sizes, small)}


def _small_heads(sizes: Mapping[str, int]) -> tuple[int, int, int]:
    heads, kv_heads = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    few = min(kv_heads, 2)
    groups = 1 if heads == kv_heads else 3
    return few * groups, few, 4


def obstacle(parameters: Mapping[str, Parameter], tp_size: int) -> str:
    """Why the model cannot be split `tp_size` ways, empty where every tensor tiles.

    Whole heads go to a rank; key-value heads are repeated where there are fewer than ranks; the
    vocabulary is padded; every other split size must divide.
    """
    indexed = any(".indexer.q_norm." in name for name in parameters)
    for name, item in parameters.items():
        if item.split is None:
            continue
        if "embed_tokens" in name or name.startswith("lm_head"):
            continue
        size = item.shape[item.split]
        if item.heads is not None:
            # An index key has its place beside the key-value heads of a rank's own.
            repeated = not indexed and (".k_proj." in name or ".v_proj." in name)
            fits = item.heads % tp_size == 0 or (repeated and tp_size % item.heads == 0)
            if not fits:
                return f"{name}: {item.heads} heads"
        elif size % tp_size:
            return f"{name}: {size} is not a multiple"
    return ""


def shard(item: Parameter, tp_size: int, rank: int) -> tuple[int, int]:
    """The slice [start, end) of dimension `split` that `rank` of `tp_size` holds.

    TensorRT-LLM slices by ceil(size / tp_size) and repeats key-value heads first where there
    are fewer than ranks (reference: its linear and weight-mapper modules).
    """
    assert item.split is not None
    size = item.shape[item.split]
    if item.heads is not None and item.heads < tp_size:
        width = size // item.heads
        head = rank * item.heads // tp_size
        return head * width, (head + 1) * width
    step = -(-size // tp_size)
    return min(size, rank * step), min(size, (rank + 1) * step)


def tiling_problems(parameters: Mapping[str, Parameter], tp_size: int) -> list[str]:
    """Tensors that the shards of `tp_size` ranks do not cover, each element equally often."""
    problems = []
    for name, item in parameters.items():
        if item.split is None:
            continue
        slices = sorted({shard(item, tp_size, rank) for rank in range(tp_size)})
        reached = 0
        for start, end in slices:
            if start != reached and end > start:
                problems.append(f"{name}: TP {tp_size} leaves [{reached}, {start}) to no rank")
            reached = max(reached, end)
        if reached != item.shape[item.split]:
            problems.append(f"{name}: TP {tp_size} covers {reached} of {item.shape[item.split]}")
    return problems
