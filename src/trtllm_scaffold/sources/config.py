"""Reads config.json and refuses one that is malformed, implausible or contradicts itself."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.json_file import parse_object, read_bytes, shown

MAX_CONFIG_BYTES = 1 << 20
"""Published files stay below 100 kB, per-layer quantization lists included."""

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")

WIDTH = ("hidden_size", "n_embd", "d_model")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
HEAD_WIDTH = ("head_dim", "d_kv", "kv_channels", "qk_nope_head_dim", "qk_head_dim", "v_head_dim")

_LIMITS: dict[tuple[str, ...], tuple[int, int]] = {
    (*WIDTH, "word_embed_proj_dim", "embedding_size"): (1, 1 << 18),
    (*HEADS, *KV_HEADS): (1, 1 << 16),
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers"): (1, 1 << 12),
    ("vocab_size",): (1, 1 << 24),
    HEAD_WIDTH: (1, 1 << 16),
    ("qk_rope_head_dim", "rotary_dim"): (0, 1 << 16),
    ("q_lora_rank", "kv_lora_rank"): (0, 1 << 18),
    ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size"): (1, 1 << 22),
    ("moe_intermediate_size", "shared_expert_intermediate_size"): (0, 1 << 22),
    ("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts"): (0, 1 << 16),
    ("num_experts_per_tok", "n_group", "topk_group"): (0, 1 << 16),
    ("max_position_embeddings", "n_positions", "n_ctx"): (1, 1 << 32),
    ("original_max_position_embeddings", "sliding_window", "attention_chunk_size"): (0, 1 << 32),
}
INTEGERS = {key: limits for keys, limits in _LIMITS.items() for key in keys}
"""Size keys that the field uses, and the least and greatest value that a model can have."""

_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon")
_FACTORS = ("partial_rotary_factor", "rotary_pct")
REALS: dict[str, tuple[float, float]] = {
    **{key: (0.0, 1.0) for key in (*_EPSILONS, *_FACTORS)},
    "rope_theta": (1e-3, 1e18),
    "rotary_emb_base": (1e-3, 1e18),
}
"""Keys with a real value, and the range in which it makes sense."""

BOOLEANS = ("tie_word_embeddings", "is_encoder_decoder", "attention_bias", "mlp_bias")
WORDS = ("hidden_act", "hidden_activation", "activation_function", "torch_dtype", "dtype")

_PER_LAYER = {*HEADS, *KV_HEADS, *HEAD_WIDTH, "intermediate_size", "sliding_window"}
"""Sizes that some families give as a list with one entry a layer."""


@dataclass(frozen=True)
class ConfigSource:
    """A config.json as it was read.

    Attributes:
        raw: The parsed object, unknown keys included.
        path: The file.
        where: The file as error messages name it.
    """

    raw: dict[str, Any]
    path: Path
    where: str


def read_config(path_or_folder: str | Path) -> ConfigSource:
    """Read a config.json, given as a file or as the folder that holds it.

    Raises:
        InputError: It is missing, unreadable, too large, too deep, not JSON or not an object.
    """
    path = Path(path_or_folder)
    try:
        path = path.expanduser()
        if path.is_dir():
            path = path / "config.json"
            if not path.exists() and not path.is_symlink():
                raise InputError(
                    "the folder has no config.json",
                    where=str(path.parent),
                    hint="give the folder of a HuggingFace model, or its config.json",
                )
    except (OSError, RuntimeError, ValueError) as error:  # symlink loop, no home, null byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read: {reason}", where=str(path_or_folder)) from None
    raw = parse_object(read_bytes(path, MAX_CONFIG_BYTES), str(path))
    return ConfigSource(raw=raw, path=path, where=str(path))


def validate_config(raw: dict[str, Any], where: str = "config.json") -> None:
    """Check the values that names and sizes are made from; unknown keys are left alone.

    A key that is null counts as absent, as transformers reads it.

    Args:
        raw: A parsed config.json.
        where: The file as messages name it.

    Raises:
        InputError: A name is not a safe identifier, a number has the wrong type, sign or size,
            or two sizes contradict each other.
    """
    _check_names(raw, where)
    for key, limits in INTEGERS.items():
        if raw.get(key) is not None:
            _check_integer(key, raw[key], limits, where)
    for key, span in REALS.items():
        if raw.get(key) is not None:
            _check_real(key, raw[key], span, where)
    for key in BOOLEANS:
        if not isinstance(raw.get(key), bool | None):
            _refuse(key, raw[key], "must be true or false", where)
    for key in WORDS:
        if raw.get(key) is not None:
            _check_word(key, raw[key], where)
    _check_heads(raw, where)


def _refuse(key: str, value: object, rule: str, where: str, hint: str = "") -> None:
    """Raise the InputError for one key: its name, its value and the rule that it breaks."""
    hint = hint or f"correct {key} in the file"
    raise InputError(f"{key} is {shown(value)}; it {rule}", where=f"{where}: {key}", hint=hint)


def _check_names(raw: dict[str, Any], where: str) -> None:
    names = raw.get("architectures")
    hint = 'give it the model\'s class, for example ["LlamaForCausalLM"]'
    if names is None:
        raise InputError("the key 'architectures' is missing", where=where, hint=hint)
    if not isinstance(names, list) or not 1 <= len(names) <= 16:
        _refuse("architectures", names, "must be a list of class names", where, hint)
    for name in names:
        valid = isinstance(name, str) and _IDENTIFIER.fullmatch(name)
        if not valid or keyword.iskeyword(name):
            _refuse("architectures", name, "must hold Python class names only", where, hint)
    if raw.get("model_type") is None:
        raise InputError(
            "the key 'model_type' is missing",
            where=where,
            hint="give it the family's name in transformers, for example 'llama'",
        )
    _check_word("model_type", raw["model_type"], where)


def _check_word(key: str, value: object, where: str) -> None:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        _refuse(key, value, "must be one plain word of at most 64 characters", where)


def _check_integer(key: str, value: object, limits: tuple[int, int], where: str) -> None:
    low, high = limits
    values: Iterable[object] = [value]
    if isinstance(value, list) and key in _PER_LAYER:
        if not 1 <= len(value) <= INTEGERS["num_hidden_layers"][1]:
            _refuse(key, value, "must be a number, or a list with one number a layer", where)
        values = [item for item in value if item is not None]
    for item in values:
        if not isinstance(item, int) or isinstance(item, bool):
            _refuse(key, item, "must be an integer", where)
        elif not low <= item <= high:
            _refuse(key, item, f"must be from {low} to {high}", where)


def _check_real(key: str, value: object, span: tuple[float, float], where: str) -> None:
    low, high = span
    if not isinstance(value, int | float) or isinstance(value, bool):
        _refuse(key, value, "must be a number", where)
    elif not low <= value <= high:  # false for NaN; no conversion, so that any integer will do
        _refuse(key, value, f"must be from {low:g} to {high:g}", where)


def _present(raw: dict[str, Any], keys: tuple[str, ...]) -> tuple[str, int] | None:
    """Return the first of `keys` that holds one integer, with its value."""
    found = ((key, raw[key]) for key in keys if isinstance(raw.get(key), int))
    return next(found, None)


def _check_heads(raw: dict[str, Any], where: str) -> None:
    """Check that heads tile the hidden size, and key-value heads tile the heads."""
    heads, width = _present(raw, HEADS), _present(raw, WIDTH)
    if heads is None:
        return
    known_width = any(raw.get(key) is not None for key in HEAD_WIDTH)
    if width and not known_width and width[1] % heads[1]:
        raise InputError(
            f"{width[0]} {width[1]} is not divisible by {heads[0]} {heads[1]}",
            where=f"{where}: {heads[0]}",
            hint="correct one of the two, or give head_dim",
        )
    groups = _present(raw, KV_HEADS)
    if groups and heads[1] % groups[1]:
        raise InputError(
            f"{heads[0]} {heads[1]} is not divisible by {groups[0]} {groups[1]}",
            where=f"{where}: {groups[0]}",
            hint="correct one of the two",
        )
