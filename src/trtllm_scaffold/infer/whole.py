"""Builds a small whole model around a tiny text decoder, and holds it to the decoder alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.errors import Refused, ScaffoldError
from trtllm_scaffold.infer.effective import effective, one_line
from trtllm_scaffold.infer.tiny import build, token_ids
from trtllm_scaffold.sources.wrapper import Wrapper, whole_config

#: Largest difference of the two models' logits, relative to the largest.
_BOUND = 1e-5

#: The parts that are not ported keep their widths: one with more parameters is not built.
_MOST_PARAMETERS = 400_000_000

#: Parts of keys that say how many equal layers a part has.
_DEPTHS = ("num_hidden_layers", "num_layers", "depth", "n_layers", "encoder_layers")

_DROPPED = ("quantization_config", "compression_config", "auto_map")
_FP32 = {"torch_dtype": "float32"}  # the spelling that transformers 4 and 5 both know

_HINT = "whole models whose logits for text are those of their text decoder work"


def build_whole(
    raw: Mapping[str, Any], text: Mapping[str, Any], wrapper: Wrapper, decoder: nn.Module, seed: int
) -> nn.Module:
    """The whole model with `decoder`'s parameters in its text decoder, the others random.

    Args:
        raw: The parsed config.json of the whole model.
        text: The configuration of the tiny decoder.
        wrapper: The whole model's classes.
        decoder: The decoder alone.
        seed: Of the parameters of the other parts.

    Raises:
        Refused: It cannot be built small, or holds no such decoder.
    """
    problem: ScaffoldError | None = None
    for small in _small_configs(raw, text, wrapper, decoder):
        try:
            whole, _ = build(small, wrapper.config_class, wrapper.model_class, seed=seed)  # type: ignore[arg-type]
        except Refused as error:
            problem = problem or error
            continue
        _fill(whole, decoder)
        return whole
    raise Refused(
        "modality",
        f"{wrapper.architecture} cannot be built around a tiny text decoder, so nothing shows that "
        f"it computes the same: {problem.message if problem else 'its other parts are too large'}",
        where=wrapper.config_class.__name__,
        hint=_HINT,
    )


def _small_configs(
    raw: Mapping[str, Any], text: Mapping[str, Any], wrapper: Wrapper, decoder: nn.Module
) -> Iterator[dict[str, Any]]:
    """Configurations of the whole model to try: other parts of one layer, then fitted ones."""
    full = effective(whole_config(raw, wrapper.config_class))
    width = full[wrapper.key].get("hidden_size")
    tiny_width = int(decoder.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
    base = {key: value for key, value in raw.items() if key not in _DROPPED}
    base.update({wrapper.key: _exact(text), "tie_word_embeddings": text["tie_word_embeddings"]})
    parts = [key for key in wrapper.config_class.sub_configs if isinstance(full.get(key), dict)]
    shallow = {key: _shallow(full[key]) for key in parts if key != wrapper.key}
    fitted = {
        key: {k: tiny_width if v == width else v for k, v in part.items()}
        for key, part in shallow.items()
    }
    whole = {key: full[key] for key in shallow}
    for tried in (shallow, fitted, whole):
        small = _exact({**base, **{key: _exact(part) for key, part in tried.items()}})
        if _parameters(small, wrapper) <= _MOST_PARAMETERS:
            yield small


def _exact(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in fp32: what a constructor computes has the dtype that it names."""
    return {**{key: value for key, value in config.items() if key != "dtype"}, **_FP32}


def _shallow(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part's configuration with one layer where it has many."""
    return {
        key: 1 if key in _DEPTHS and isinstance(value, int) and value > 1 else value
        for key, value in part.items()
    }


def _parameters(raw: Mapping[str, Any], wrapper: Wrapper) -> int:
    """How many parameters the model has; 0 where it cannot be built, which `build` will say."""
    try:
        with torch.device("meta"):
            model = wrapper.model_class(whole_config(raw, wrapper.config_class))  # type: ignore[misc]
    except Exception:  # HF classes raise whatever a value provokes
        return 0
    return sum(item.numel() for item in model.parameters())


def _fill(whole: nn.Module, decoder: nn.Module) -> None:
    """Copy every parameter of `decoder` to its place in the whole model."""
    part = _one_part(whole, type(decoder))
    try:
        if part is not None:
            part.load_state_dict(decoder.state_dict())
            return
        _fill_pieces(whole, decoder)
    except RuntimeError as error:
        raise Refused(
            "modality", f"its text decoder has other tensors: {one_line(error)}", hint=_HINT
        ) from error


def _fill_pieces(whole: nn.Module, decoder: nn.Module) -> None:
    """The same where the whole model has the decoder's base model and a head of its own."""
    head, own_head = whole.get_output_embeddings(), decoder.get_output_embeddings()  # type: ignore[operator]
    for name, child in decoder.named_children():
        if child is own_head:
            continue
        part = _one_part(whole, type(child))
        if part is None:
            raise Refused(
                "modality",
                f"{type(whole).__name__} holds no {type(child).__name__}, which is {name} of "
                f"{type(decoder).__name__}",
                hint=_HINT,
            )
        part.load_state_dict(child.state_dict())
    if own_head is not None and head is not None:
        head.load_state_dict(own_head.state_dict())


def _one_part(whole: nn.Module, kind: type) -> nn.Module | None:
    """The one module of the class, the outermost; None where there is none or several."""
    found = [name for name, module in whole.named_modules() if type(module) is kind]
    outer = [name for name in found if not any(name.startswith(f"{o}.") for o in found)]
    return whole.get_submodule(outer[0]) if len(outer) == 1 else None


def check_same_text(whole: nn.Module, decoder: nn.Module, seed: int) -> float:
    """The largest relative difference of the two models' logits for the same text.

    Raises:
        Refused: The whole model computes something else, or cannot run on text alone.
    """
    tokens = token_ids(decoder, seed)
    names = f"{type(whole).__name__} and {type(decoder).__name__}"
    try:
        with torch.inference_mode():
            ours, theirs = (
                model(input_ids=tokens, use_cache=False).logits.float()
                for model in (decoder, whole)
            )
    except Exception as error:  # HF classes raise whatever they like
        problem = f"{names} cannot be compared on text: {one_line(error)}"
        raise Refused("modality", problem, hint=_HINT) from error
    if ours.shape != theirs.shape:
        problem = f"{names} give logits {list(theirs.shape)} and {list(ours.shape)}"
        raise Refused("modality", problem, hint=_HINT)
    distance = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1.0))
    if not distance <= _BOUND:
        raise Refused(
            "modality",
            f"{names} differ on text by {distance:.1e} of the largest logit, allowed {_BOUND:.0e}",
            hint=_HINT,
        )
    return distance
