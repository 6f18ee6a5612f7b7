"""Registries of models, weight mappers and checkpoint loaders, and how a name is looked up."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from torch import nn

from trtllm_scaffold.standin.generation import active
from trtllm_scaffold.standin.logger import logger

T = TypeVar("T", bound=type)

#: Package whose classes count as built in: they never displace a registered class in 1.4.
BUILT_IN = "tensorrt_llm._torch.models"

MODEL_CLASS_MAPPING: dict[str, type[nn.Module]] = {}
MODEL_CLASS_VISION_ENCODER_MAPPING: dict[str, tuple[type[nn.Module], type[nn.Module] | None]] = {}
DRAFT_MODEL_BUILDER_MAPPING: dict[Any, Callable[..., Any]] = {}
MODEL_CLASS_MAPPER_MAPPING: dict[str, type[Any]] = {}
MODEL_CLASS_CHECKPOINT_WEIGHT_LOADER_DEFAULT_MAPPING: dict[str, type[Any]] = {}
MODEL_CLASS_CONFIG_LOADER_DEFAULT_MAPPING: dict[str, type[Any]] = {}
CHECKPOINT_LOADER_FORMAT_DEFAULT_MAPPING: dict[str, type[Any]] = {}

#: Architecture -> module that registers it when imported (1.4, for workers).
_declared_modules: dict[str, str] = {}
#: Module -> the architectures its decorators registered, to restore after a new declaration.
_registrations: dict[str, dict[str, type[nn.Module]]] = {}


def _is_built_in(cls: type) -> bool:
    return cls.__module__ == BUILT_IN or cls.__module__.startswith(BUILT_IN + ".")


def register_auto_model(name: str) -> Callable[[T], T]:
    """Register a class as the model of architecture ``name``.

    In 1.2 the last registration wins. In 1.4 a class from outside the library always wins and
    a built-in one fills an empty slot only; the class lists its names in
    ``_registered_architectures``, a set of its own, whether it won or not.
    """

    def decorate(cls: T) -> T:
        if active() == "1.2":
            MODEL_CLASS_MAPPING[name] = cls
            return cls
        own: Any = cls
        if "_registered_architectures" not in cls.__dict__:
            own._registered_architectures = set()
        own._registered_architectures.add(name)
        _registrations.setdefault(cls.__module__, {})[name] = cls
        _fill(name, cls)
        return cls

    return decorate


def _fill(name: str, cls: type[nn.Module]) -> None:
    if not (_is_built_in(cls) and name in MODEL_CLASS_MAPPING):
        MODEL_CLASS_MAPPING[name] = cls


def register_vision_encoder(
    vision_encoder_cls: type[nn.Module], vlm_base_model: type[nn.Module] | None = None
) -> Callable[[T], T]:
    """Register the vision encoder of a multimodal class (recorded, not used here)."""

    def decorate(cls: T) -> T:
        for name, held in MODEL_CLASS_MAPPING.items():
            if held is cls:
                MODEL_CLASS_VISION_ENCODER_MAPPING[name] = (vision_encoder_cls, vlm_base_model)
        return cls

    return decorate


def register_draft_model(mode: Any) -> Callable[[Any], Any]:
    """Register the builder of a draft model (1.4; recorded, not used here)."""

    def decorate(builder: Any) -> Any:
        DRAFT_MODEL_BUILDER_MAPPING[mode] = builder
        return builder

    return decorate


def register_mapper(format: str, name: str | None = None) -> Callable[[T], T]:
    """Register a weight mapper for a checkpoint format, or for one architecture in it."""
    return _register(MODEL_CLASS_MAPPER_MAPPING, format if name is None else f"{name}_{format}")


def register_checkpoint_weight_loader(name: str) -> Callable[[T], T]:
    """Register the default weight loader of a checkpoint format."""
    return _register(MODEL_CLASS_CHECKPOINT_WEIGHT_LOADER_DEFAULT_MAPPING, name)


def register_checkpoint_loader(name: str) -> Callable[[T], T]:
    """Register the checkpoint loader of a format."""
    return _register(CHECKPOINT_LOADER_FORMAT_DEFAULT_MAPPING, name)


def register_config_loader(name: str) -> Callable[[T], T]:
    """Register the default config loader of a checkpoint format."""
    return _register(MODEL_CLASS_CONFIG_LOADER_DEFAULT_MAPPING, name)


def _register(registry: dict[str, type[Any]], key: str) -> Callable[[T], T]:
    def decorate(cls: T) -> T:
        registry[key] = cls
        return cls

    return decorate


def get_registered_model_class(model_arch: str) -> type[nn.Module] | None:
    """Class of an architecture, importing the module declared for it first; None if unknown.

    A declared module that is not there counts as unknown, with a warning; one that fails for
    want of another module raises.
    """
    module = _declared_modules.get(model_arch)
    if model_arch not in MODEL_CLASS_MAPPING and module is not None:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            logger.warning(f"no module {module!r} for architecture {model_arch}: {error}")
    return MODEL_CLASS_MAPPING.get(model_arch)


def get_registered_vision_encoder(
    model_arch: str,
) -> tuple[type[nn.Module], type[nn.Module] | None] | None:
    """Vision encoder of an architecture, or None."""
    return MODEL_CLASS_VISION_ENCODER_MAPPING.get(model_arch)


def get_registered_draft_model_builder(mode: Any) -> Callable[..., Any] | None:
    """Builder of a draft model, or None."""
    return DRAFT_MODEL_BUILDER_MAPPING.get(mode)


def export_external_model_modules() -> dict[str, str]:
    """Architecture -> module of every class from outside the library, for worker processes."""
    found = {
        name: cls.__module__ for name, cls in MODEL_CLASS_MAPPING.items() if not _is_built_in(cls)
    }
    return {**_declared_modules, **found}


def register_external_model_modules(arch_to_module: dict[str, str]) -> None:
    """Declare which module registers an architecture; it is imported on first lookup.

    The declaration is the whole set: classes that other external modules registered give their
    places up, those of the declared modules come back.
    """
    if arch_to_module == _declared_modules:
        return
    _declared_modules.clear()
    _declared_modules.update(arch_to_module)
    MODEL_CLASS_MAPPING.clear()
    built_in = [module for module in _registrations if module.startswith(BUILT_IN)]
    for module in [*built_in, *dict.fromkeys(arch_to_module.values())]:
        for name, cls in _registrations.get(module, {}).items():
            if arch_to_module.get(name, module) == module:
                _fill(name, cls)


def get_checkpoint_weight_loader(name: str) -> type[Any]:
    """Default weight loader of a format.

    Raises:
        ValueError: If the format is unknown.
    """
    return _default(MODEL_CLASS_CHECKPOINT_WEIGHT_LOADER_DEFAULT_MAPPING, name, "weight")


def get_config_loader(name: str) -> type[Any]:
    """Default config loader of a format.

    Raises:
        ValueError: If the format is unknown.
    """
    return _default(MODEL_CLASS_CONFIG_LOADER_DEFAULT_MAPPING, name, "config")


def _default(registry: dict[str, type[Any]], name: str, kind: str) -> type[Any]:
    if name not in registry:
        raise ValueError(f"no default {kind} loader for checkpoint format {name!r}")
    return registry[name]


def get_model_architecture(model_config: Any) -> tuple[type[nn.Module], str]:
    """Class and name of ``architectures[0]`` of a HuggingFace config.

    Raises:
        RuntimeError: If there is no architecture, or it is unknown.
    """
    names = model_config.architectures
    if not names:
        raise RuntimeError("Model architecture is not provided.")
    cls = get_registered_model_class(names[0])
    if cls is None:
        raise RuntimeError(f"Unknown model architecture: {names[0]}")
    return cls, names[0]
