"""Finds the transformers classes of a config, or refuses what is not a causal decoder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from trtllm_scaffold.errors import EnvironmentProblem, InputError, Refused, ScaffoldError
from trtllm_scaffold.sources.json_file import shown
from trtllm_scaffold.sources.wrapper import Wrapper, find_text_decoder

_CLASS_REFERENCE = re.compile(r"(?:[\w.-]+/[\w.-]+--)?[A-Za-z_]\w*\.[A-Za-z_]\w*", re.ASCII)

_OTHER_MODALITIES = {
    "text_config": "a wrapper around a text decoder",
    "vision_config": "a model that reads images",
    "audio_config": "a model that reads sound",
}


@dataclass(frozen=True)
class HFClasses:
    """The classes that transformers, or the model's own code, builds the model from.

    Attributes:
        config_class: A PretrainedConfig class.
        model_class: A causal language model class.
        remote: Whether they are the model's own code rather than transformers'.
        wrapper: The whole model that they are the text decoder of, or None.
    """

    config_class: type[Any]
    model_class: type[Any]
    remote: bool = False
    wrapper: Wrapper | None = None


def resolve_classes(
    raw: dict[str, Any],
    folder: str | Path,
    trust_remote_code: bool = False,
    *,
    hf_id: str | None = None,
    commit: str | None = None,
    where: str = "config.json",
    text_only: bool = False,
) -> HFClasses | None:
    """Decide which classes a validated config stands for.

    Args:
        raw: A parsed config.json that `validate_config` accepted.
        folder: Where the model's own code lies, when it has any and is not on the hub.
        trust_remote_code: Run the model's own code (`auto_map`) where it has any.
        hf_id: The model's id on the hub; its own code is then fetched from there.
        commit: The hub commit of that code.
        where: The config as messages name it.
        text_only: Take the text decoder out of a model that reads more than text.

    Returns:
        The classes, or None when transformers does not know the model_type.

    Raises:
        Refused: The model is not a causal decoder of text, or needs code of its own.
        InputError: model_type and architectures contradict each other, or that code is broken.
        EnvironmentProblem: transformers is missing.
    """
    try:
        import transformers
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    except ImportError as error:
        hint = "pip install transformers torch"
        raise EnvironmentProblem(f"transformers cannot be imported: {error}", hint=hint) from error

    references = raw.get("auto_map")
    if text_only and references is not None and trust_remote_code:
        problem = "the text decoder of a model that brings its own code has no class to be held to"
        raise Refused("modality", problem, where=f"{where}: auto_map", hint="leave out --text-only")
    if references is not None and trust_remote_code:
        return _remote_classes(references, hf_id or str(folder), commit, where)
    model_type, architecture = raw["model_type"], raw["architectures"][0]
    if model_type not in CONFIG_MAPPING:
        _refuse_other_modalities(raw, None, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, where)
        _refuse_encoder_decoder(raw, None, where)
        if references is not None:
            raise Refused(
                "architecture",
                f"model_type {shown(model_type)} is not in transformers "
                f"{transformers.__version__}; the model brings its own code",
                where=f"{where}: auto_map",
                hint="read that code, then allow it with --trust-remote-code",
            )
        return None
    config_class = CONFIG_MAPPING[model_type]
    _refuse_encoder_decoder(raw, config_class, where)
    if text_only:
        causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
        text_config, text_class, wrapper = find_text_decoder(raw, config_class, causal, where)
        return HFClasses(text_config, text_class, wrapper=wrapper)
    _refuse_other_modalities(raw, config_class, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, where)
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if architecture != known:
        _refuse_architecture(model_type, architecture, known, where)
    return HFClasses(config_class, getattr(transformers, architecture))


def _refuse_encoder_decoder(raw: dict[str, Any], config_class: Any, where: str) -> None:
    """Refuse what the config, or its class by default, calls an encoder and decoder."""
    said = raw.get("is_encoder_decoder")
    by_default = said is None and getattr(config_class, "is_encoder_decoder", False) is True
    if said or by_default:
        source = f"the default of {config_class.__name__}" if by_default else "config.json"
        raise Refused(
            "encoder-decoder",
            f"is_encoder_decoder is true ({source}), and a port is a decoder alone",
            where=f"{where}: is_encoder_decoder",
            hint="use a decoder-only model (any *ForCausalLM without an encoder)",
        )


def _refuse_other_modalities(
    raw: dict[str, Any], config_class: Any, causal: Any, where: str
) -> None:
    """Refuse a wrapper around a text decoder, and name that decoder where it has one."""
    nested = getattr(config_class, "sub_configs", None) or {}
    for key, meaning in _OTHER_MODALITIES.items():
        if key not in nested and not isinstance(raw.get(key), dict):
            continue
        text = raw.get("text_config")
        default = getattr(nested.get("text_config"), "model_type", None)
        text_type = text.get("model_type", default) if isinstance(text, dict) else default
        decoder = causal.get(text_type) if isinstance(text_type, str) else None
        hint = "use a model that reads text alone"
        if decoder:
            hint = f"--text-only ports its text decoder alone, as {decoder}"
        raise Refused("modality", f"{key} makes it {meaning}", where=f"{where}: {key}", hint=hint)


def _refuse_architecture(
    model_type: str, architecture: str, known: str | None, where: str
) -> NoReturn:
    """Explain why `architecture` is not the causal language model of `model_type`."""
    import transformers

    release = f"transformers {transformers.__version__}"
    where = f"{where}: architectures"
    if known is None:
        raise Refused(
            "architecture",
            f"{release} has no causal language model of model_type {shown(model_type)} "
            f"(architectures says {shown(architecture)})",
            where=where,
            hint="use a decoder-only model (a *ForCausalLM)",
        )
    hint = f'the nearest that works: architectures ["{known}"] with weights of that class'
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal

    if hasattr(transformers, architecture) and architecture not in causal.values():
        problem = f"{architecture} is not a causal language model"
        raise Refused("head", problem, where=where, hint=hint)
    raise InputError(
        f"model_type {shown(model_type)} is {known} in {release}, but architectures says "
        f"{shown(architecture)}",
        where=where,
        hint=f"correct one of the two (if it is a {model_type} model, write {known})",
    )


def _remote_classes(references: Any, place: str, commit: str | None, where: str) -> HFClasses:
    """Import the classes that `auto_map` names. This runs the model's own code."""
    names = references if isinstance(references, dict) else {}
    wanted: list[str] = []
    for key in ("AutoConfig", "AutoModelForCausalLM"):
        reference = names.get(key)
        if not isinstance(reference, str) or not _CLASS_REFERENCE.fullmatch(reference):
            raise InputError(
                f"auto_map has {shown(reference)} for {key}, not FILE.CLASS",
                where=f"{where}: auto_map",
                hint="only models with an AutoModelForCausalLM can be ported",
            )
        wanted.append(reference)
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    try:
        config_class, model_class = (
            get_class_from_dynamic_module(reference, place, revision=commit) for reference in wanted
        )
    except ScaffoldError:
        raise
    except Exception as error:  # their code may raise anything; ours reports it in one line
        raise InputError(
            f"the model's own code cannot be imported: {type(error).__name__}: {error}",
            where=f"{where}: auto_map",
            hint="install what it imports, or use the version of transformers it was written for",
        ) from error
    return HFClasses(config_class, model_class, remote=True)
