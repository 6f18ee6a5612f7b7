"""Filling a model's parameters from a checkpoint dictionary, without and with a mapper."""

from __future__ import annotations

import inspect
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.standin.generation import active
from trtllm_scaffold.standin.logger import logger
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.models.consumable import ConsumableWeightsDict

Weights = Mapping[str, Any]

FUSED_PARTS: dict[str, list[str]] = {
    "qkv_proj": ["q_proj", "k_proj", "v_proj"],
    "gate_up_proj": ["gate_proj", "up_proj"],
}
SERIAL_VARIABLE = "TRT_LLM_DISABLE_LOAD_WEIGHTS_IN_PARALLEL"
WORKERS_VARIABLE = "TLLM_LOAD_WEIGHTS_NUM_WORKERS"
#: Whether an ordinary module without a matching key is left as it is.
SKIPS_MISSING = {"1.2": False, "1.4": True}


def duplicate_kv_weight(
    weight: torch.Tensor, num_kv_heads: int, tensor_parallel_size: int
) -> torch.Tensor:
    """Repeat key/value heads until every tensor-parallel rank has one.

    Args:
        weight: ``[num_kv_heads * head_dim, in]``, or a bias ``[num_kv_heads * head_dim]``.
        num_kv_heads: Heads of the checkpoint.
        tensor_parallel_size: Ranks.

    Returns:
        The tensor itself if there are enough heads, else heads repeated in place. A bias is
        repeated head by head in 1.4; 1.2 repeats each *number*, which is wrong and kept.

    Raises:
        AssertionError: If neither count divides the other.
    """
    if num_kv_heads >= tensor_parallel_size:
        assert num_kv_heads % tensor_parallel_size == 0, (
            f"{num_kv_heads} key/value heads over {tensor_parallel_size} ranks"
        )
        return weight
    assert tensor_parallel_size % num_kv_heads == 0, (
        f"{num_kv_heads} key/value heads over {tensor_parallel_size} ranks"
    )
    times = tensor_parallel_size // num_kv_heads
    if weight.ndim == 1 and active() == "1.2":
        return weight.repeat_interleave(times)
    return repeat_heads(weight, num_kv_heads, times)


def repeat_heads(weight: torch.Tensor, num_heads: int, times: int) -> torch.Tensor:
    """Each of ``num_heads`` equal blocks of rows, ``times`` times in a row."""
    assert weight.shape[0] % num_heads == 0, (
        f"{weight.shape[0]} rows do not divide into {num_heads} heads"
    )
    # [heads * rows, ...] -> [heads, rows, ...] -> [heads * times * rows, ...]
    heads = weight.reshape(num_heads, -1, *weight.shape[1:])
    return heads.repeat_interleave(times, dim=0).reshape(-1, *weight.shape[1:])


def filter_weights(prefix: str, weights: Weights) -> dict[str, Any]:
    """Entries whose key starts with ``prefix``, without it and the character behind it.

    The prefix is not tied to a dot: ``mlp.gate`` also catches ``mlp.gate_proj.weight``, as
    ``proj.weight``.
    """
    return {key[len(prefix) + 1 :]: weights[key] for key in list(weights) if key.startswith(prefix)}


def rename_weights_with_regex(pattern_mapping: dict[str, str], weights: Weights) -> Weights:
    """Rename keys by the first pattern that matches at their start.

    In 1.4 a consumable dictionary is emptied and one of the same kind is returned.
    """
    renamed: dict[str, Any] = {}
    for key in list(weights):
        name = key
        for pattern, replacement in pattern_mapping.items():
            if re.match(pattern, key):
                name = re.sub(pattern, replacement, key)
                break
        renamed[name] = weights[key]
    if isinstance(weights, ConsumableWeightsDict):
        return ConsumableWeightsDict.take_ownership(weights, renamed)
    return renamed


def run_concurrently(
    func: Callable[..., Any],
    args_list: Iterable[tuple[Any, ...]],
    reduce_func: Callable[[Any], None] | None = None,
    pbar: Any = None,
    num_workers: int | None = None,
) -> None:
    """Call ``func`` with each argument tuple in a thread pool.

    The first failure is raised after it was logged; ``reduce_func`` gets each result as it comes.
    """
    with futures.ThreadPoolExecutor(max_workers=num_workers) as executor:
        pending = {executor.submit(func, *args): args for args in args_list}
        for future in futures.as_completed(pending):
            try:
                result = future.result()
            except Exception as error:
                logger.error(f"{func.__name__} failed on {pending[future][0]!r}: {error}")
                raise
            if reduce_func is not None:
                reduce_func(result)
            if pbar is not None:
                pbar.update(1)


def check_model(model: Any) -> None:
    """Refuse a model that lacks what loading reads.

    Raises:
        ValueError: If ``model_config`` is not a ModelConfig, or there is no ``config``.
    """
    if not isinstance(getattr(model, "model_config", None), ModelConfig):
        raise ValueError("model must have a model_config attribute")
    if not hasattr(model, "config"):
        raise ValueError("model must have a config attribute")


def _load_weights_impl(
    model: Any,
    weights: Weights,
    skip_modules: list[str] = [],  # noqa: B006  (the real signature)
    params_map: dict[str, str] | None = None,
    preload_weight_modules: list[str] | None = None,
    allow_partial_loading: bool = False,
) -> None:
    """Load without a mapper: fused projections from their parts, the rest by its own name."""
    check_model(model)
    if params_map is not None:
        weights = rename_weights_with_regex(params_map, weights)
    mapping = model.model_config.mapping
    tp_size = 1 if mapping.enable_attention_dp else mapping.tp_size
    heads = getattr(model.config, "num_key_value_heads", None)
    heads = model.config.num_attention_heads if heads is None else heads

    def parts_of(module: nn.Module, names: list[str]) -> list[dict[str, Any]]:
        found = []
        for part in FUSED_PARTS[names[-1]]:
            entries = filter_weights(".".join([*names[:-1], part]), weights)
            if part in ("k_proj", "v_proj"):
                entries = {
                    key: duplicate_kv_weight(value[:], heads, tp_size)
                    if key in ("weight", "bias")
                    else value
                    for key, value in entries.items()
                }
            found.append(entries)
        return found

    def load(name: str, module: nn.Module) -> None:
        if not _owns_parameters(module) or any(skip in name for skip in skip_modules):
            return
        names = name.split(".")
        if _ties(model.config) and name.startswith("lm_head") or names[-1] == _NEXT_NORM:
            return
        if names[-1] in FUSED_PARTS:
            _hand_over_parts(module, parts_of(module, names), allow_partial_loading)
            _consumed(weights, [".".join([*names[:-1], part]) for part in FUSED_PARTS[names[-1]]])
            return
        own = filter_weights(name, weights)
        if not own and SKIPS_MISSING[active()]:
            return
        if hasattr(module, "load_weights"):
            _hand_over(module, [own], allow_partial_loading)
            _consumed(weights, [name])
            return
        for key, parameter in module.named_parameters(recurse=False):
            _copy(parameter, own, key, name, allow_partial_loading)
            _consumed_keys(weights, [f"{name}.{key}"])

    _walk(model, load, preload_weight_modules)


def _load_weights_impl_v2(
    model: Any,
    weights: Weights,
    weight_mapper: Any,
    skip_modules: list[str] = [],  # noqa: B006  (the real signature)
    params_map: dict[str, str] | None = None,
    preload_weight_modules: list[str] | None = None,
    allow_partial_loading: bool = False,
) -> None:
    """Load with a mapper, which fuses, renames, skips and copies."""
    weight_mapper.add_skip_modules(skip_modules)
    if params_map is not None:
        weights = weight_mapper.rename_by_params_map(params_map, weights)

    def load(name: str, module: nn.Module) -> None:
        if not _owns_parameters(module) or weight_mapper.should_skip_module(name):
            return
        *above, last = name.split(".")
        if weight_mapper.does_require_special_handling(last):
            parts = weight_mapper.apply_callbacks(module, last, above, weights)
            _hand_over_parts(module, parts, allow_partial_loading)
            _consumed(weights, [".".join([*above, part]) for part in weight_mapper.mapping[last]])
            return
        own = weight_mapper.filter_weights(name, weights)
        if not own and SKIPS_MISSING[active()]:
            return
        partial = {"allow_partial_loading": allow_partial_loading} if active() == "1.4" else {}
        if weight_mapper.is_special_instance_module(module):
            weight_mapper.handle_special_instance_module(module, last, own, **partial)
            _consumed(weights, [name])
        elif hasattr(module, "load_weights"):
            _hand_over(module, [own], allow_partial_loading)
            _consumed(weights, [name])
        else:
            for key, parameter in module.named_parameters(recurse=False):
                weight_mapper.handle_manual_copy(last, own, key, parameter, **partial)
                _consumed_keys(weights, [f"{name}.{key}"])

    _walk(model, load, preload_weight_modules)


_NEXT_NORM = "next_layer_layernorm"


def _owns_parameters(module: nn.Module) -> bool:
    return len(module._parameters) > 0


def _ties(config: Any) -> bool:
    """1.2 reads the attribute without a default: a config must have it."""
    if active() == "1.2":
        return bool(config.tie_word_embeddings)
    return bool(getattr(config, "tie_word_embeddings", False))


def _copy(parameter: nn.Parameter, own: dict[str, Any], key: str, name: str, partial: bool) -> None:
    if key not in own:
        if partial:
            return
        lacking: type[Exception] = KeyError if active() == "1.2" else AssertionError
        raise lacking(f"no tensor {name}.{key} in the checkpoint")
    parameter.data.copy_(own[key][:])


def _hand_over_parts(module: Any, parts: list[dict[str, Any]], partial: bool) -> None:
    """Give a fused module its parts; 1.4 passes ``allow_partial_loading`` without asking."""
    if active() == "1.4":
        module.load_weights(weights=parts, allow_partial_loading=partial)
    else:
        _hand_over(module, parts, partial)


def _hand_over(module: Any, parts: list[dict[str, Any]], partial: bool) -> None:
    takes = inspect.getfullargspec(module.load_weights).args
    if "allow_partial_loading" in takes:
        module.load_weights(weights=parts, allow_partial_loading=partial)
        return
    assert not partial, f"{type(module).__name__} does not support allow_partial_loading"
    module.load_weights(weights=parts)


def _consumed(weights: Weights, prefixes: list[str]) -> None:
    if isinstance(weights, ConsumableWeightsDict):
        for prefix in prefixes:
            weights.mark_consumed(prefix)


def _consumed_keys(weights: Weights, keys: list[str]) -> None:
    if isinstance(weights, ConsumableWeightsDict):
        weights.mark_consumed_keys(keys)


def _walk(
    model: nn.Module,
    load: Callable[[str, nn.Module], None],
    preload_weight_modules: list[str] | None,
) -> None:
    """Every module once: the preloaded ones, then the rest in a thread pool, in no order."""
    found = dict(model.named_modules(remove_duplicate=active() == "1.2"))
    disabled = os.environ.get(SERIAL_VARIABLE, "").lower() in ("true", "1", "yes", "y")
    if disabled:
        for name, module in found.items():
            load(name, module)
        return
    first = [name for end in preload_weight_modules or [] for name in found if name.endswith(end)]
    for name in first:
        load(name, found.pop(name))
    rest = list(found.items())
    # Threads of the real loader finish in any order; shuffling shows what depends on it.
    random.Random(len(rest)).shuffle(rest)
    workers = os.environ.get(WORKERS_VARIABLE, "").strip()
    run_concurrently(load, rest, num_workers=int(workers) if workers else None)


@contextmanager
def timing_metric(metric_name: str, metric_dict: dict[str, float]) -> Iterator[None]:
    """Add the seconds of a block to ``metric_dict[metric_name]``, also when it fails."""
    start = time.perf_counter()
    try:
        yield
    finally:
        spent = time.perf_counter() - start
        metric_dict[metric_name] = metric_dict.get(metric_name, 0.0) + spent
