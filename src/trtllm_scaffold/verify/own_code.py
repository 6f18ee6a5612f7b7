"""The classes of a model whose code is not in transformers: its port carries them in its tests."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from trtllm_scaffold.errors import InputError

#: The model class that goes with a configuration class read by `own_config_class`.
_MODEL_CLASSES: dict[type, type] = {}


def own_config_class(path: Path, data: Mapping[str, Any]) -> type | None:
    """The configuration class that stands beside the tiny configuration `path`, if one does.

    Args:
        path: ``tests/configs/<name>.json`` of a port.
        data: What it holds; its ``auto_map`` names the classes.

    Raises:
        InputError: The port has code of the model, but not the classes that `data` names.
    """
    folder = path.resolve().parents[1] / "hf_reference"
    references = data.get("auto_map")
    if not folder.is_dir() or not isinstance(references, dict):
        return None
    keys = ("AutoConfig", "AutoModelForCausalLM")
    config_class, model_class = (_load(folder, str(references.get(key))) for key in keys)
    _MODEL_CLASSES[config_class] = model_class
    return config_class


def own_model_class(config: Any) -> Any:
    """The model class of a configuration that `own_config_class` made, else None."""
    return _MODEL_CLASSES.get(type(config))


def _load(folder: Path, reference: str) -> type:
    stem, _, name = reference.rpartition("--")[2].partition(".")
    package = _package(folder)
    try:
        found = getattr(importlib.import_module(f"{package.__name__}.{stem}"), name)
    except Exception as error:  # the model's own code raises whatever it likes
        raise InputError(
            f"the model's own {reference} cannot be imported: {type(error).__name__}: {error}",
            where=str(folder),
        ) from error
    assert isinstance(found, type)
    return found


def _package(folder: Path) -> ModuleType:
    """`folder` as a package of a name of its own, so that two ports never share a module."""
    name = f"_hf_reference_{sha256(str(folder).encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]
