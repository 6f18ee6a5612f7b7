"""Finds the text decoder inside a model that reads more than text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_scaffold.errors import InputError, Refused
from trtllm_scaffold.sources.json_file import shown

_HINT = "models whose text_config is that of a causal language model in transformers work"


@dataclass(frozen=True)
class Wrapper:
    """The whole model around a text decoder.

    Attributes:
        key: The key of config.json that holds the decoder's configuration.
        config_class: The whole model's configuration class.
        model_class: The whole model's class, or None where the file names the decoder's own: its
            checkpoint is then the decoder's.
        architecture: The class that config.json names.
    """

    key: str
    config_class: type[Any]
    model_class: type[Any] | None
    architecture: str


def find_text_decoder(
    raw: Mapping[str, Any], config_class: Any, causal: Mapping[str, str], where: str
) -> tuple[type[Any], type[Any], Wrapper]:
    """The configuration class and the model class of the text decoder, and what is around it.

    Args:
        raw: The parsed config.json of the whole model.
        config_class: Its configuration class.
        causal: transformers' causal language models by model_type.
        where: The config as messages name it.

    Raises:
        InputError: The file has no text decoder inside, or its class rejects the file.
        Refused: transformers has no class of the decoder alone, or none that the file names.
    """
    import transformers

    config = whole_config(raw, config_class, where)
    text = config.get_text_config()
    keys = [key for key in getattr(config, "sub_configs", {}) if getattr(config, key, None) is text]
    if text is config or not keys:
        raise InputError(
            f"{config_class.__name__} holds no text decoder of its own",
            where=where,
            hint="leave out --text-only",
        )
    if not isinstance(raw.get(keys[0]), dict):
        raise Refused(
            "modality",
            f"{config_class.__name__} has a {keys[0]}, but this file keeps its keys elsewhere",
            where=f"{where}: {keys[0]}",
            hint=_HINT,
        )
    architecture = raw["architectures"][0]
    text_class = _causal_class(type(text), (text.model_type, raw["model_type"]), causal)
    if text_class is None:
        raise Refused(
            "modality",
            f"transformers has no causal language model of {type(text).__name__} alone "
            f"({keys[0]} has the model_type {shown(text.model_type)})",
            where=f"{where}: {keys[0]}",
            hint=_HINT,
        )
    whole_class = getattr(transformers, architecture, None)
    if architecture == text_class.__name__:
        whole_class = None
    elif getattr(whole_class, "config_class", None) is not config_class:
        raise Refused(
            "architecture",
            f"architectures says {shown(architecture)}, which is neither a class of "
            f"{config_class.__name__} in transformers {transformers.__version__} nor "
            f"{text_class.__name__}",
            where=f"{where}: architectures",
            hint=_HINT,
        )
    return type(text), text_class, Wrapper(keys[0], config_class, whole_class, architecture)


def whole_config(raw: Mapping[str, Any], config_class: Any, where: str = "config.json") -> Any:
    """The configuration object of the whole model.

    Raises:
        InputError: The class rejects the values.
    """
    import copy

    try:
        return config_class.from_dict(copy.deepcopy(dict(raw)))
    except Exception as error:  # HF classes raise whatever a hostile value provokes
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"{config_class.__name__} rejects the configuration: {type(error).__name__}: {text}",
            where=where,
        ) from error


def with_widths(raw: Mapping[str, Any], keys: Iterable[str], width: Any) -> dict[str, Any]:
    """`raw` with `width` under each of `keys`, which name a part and a key in it."""
    found = dict(raw)
    for name in keys:
        part, _, key = name.partition(".")
        found[part] = {**(found.get(part) or {}), key: width}
    return found


def _causal_class(
    text_config: type[Any], model_types: tuple[Any, ...], causal: Mapping[str, str]
) -> type[Any] | None:
    """The causal language model that is built from `text_config` alone."""
    import transformers

    for model_type in model_types:
        name = causal.get(model_type) if isinstance(model_type, str) else None
        found = getattr(transformers, name, None) if name else None
        if getattr(found, "config_class", None) is text_config:
            return found  # type: ignore[no-any-return]
    return None
