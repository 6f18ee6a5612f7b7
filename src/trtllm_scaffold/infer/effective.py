"""Builds HF configuration objects, and models without storage, from a parsed config.json."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.infer.layer_configs import opened
from trtllm_scaffold.infer.normalize import both_spellings
from trtllm_scaffold.sources.hf_class import HFClasses


def build_config(raw: Mapping[str, Any], classes: HFClasses) -> Any:
    """Return the configuration object of a parsed config.json, class defaults included.

    Raises:
        InputError: The class rejects the values.
    """
    try:
        return opened(classes.config_class.from_dict(copy.deepcopy(spelled(raw, classes))))
    except Exception as error:  # HF classes raise whatever a hostile value provokes
        raise InputError(
            f"{classes.config_class.__name__} rejects the configuration: {one_line(error)}",
            where="config.json",
        ) from error


def spelled(raw: Mapping[str, Any], classes: HFClasses) -> dict[str, Any]:
    """`raw` with its rotary settings in the older keys as well, unless the class mixes them up.

    Some classes take a ``rope_scaling`` for all layers' settings, and drop those by layer type.
    """
    both = both_spellings(raw)
    told = raw.get("rope_parameters")
    if "rope_scaling" not in both or "rope_scaling" in raw or not isinstance(told, Mapping):
        return both
    kinds = {key for key, value in told.items() if isinstance(value, Mapping)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the older key
        try:
            built = classes.config_class.from_dict(copy.deepcopy(both))
        except Exception:  # the class rejects the older key, or the file: building tells which
            return dict(raw)
    kept = getattr(built, "rope_parameters", None) or told  # transformers 4 has no such attribute
    return both if kinds <= set(kept) else dict(raw)


def build_meta_model(config: Any, classes: HFClasses) -> Any:
    """Return the model with shapes only, every tensor on the meta device.

    Raises:
        InputError: The class cannot build a model from the configuration.
    """
    import torch

    try:
        with torch.device("meta"):
            return classes.model_class(config)
    except Exception as error:  # same reason as above
        raise InputError(
            f"{classes.model_class.__name__} cannot be built: {one_line(error)}",
            where="config.json",
        ) from error


def effective(config: Any) -> dict[str, Any]:
    """Return a configuration object's values as JSON-plain data, class defaults included."""
    return json.loads(json.dumps(config.to_dict(), default=str))


def one_line(error: Exception) -> str:
    """Return an exception's text in one line of at most 200 characters."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
