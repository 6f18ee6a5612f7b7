"""Import rules of ``--custom_module_dirs``."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def import_custom_module_from_dir(custom_module_path: str | Path) -> ModuleType:
    """Import a directory as a package: its parent goes to the front of ``sys.path``.

    The directory's name is the package's name, so it must be an identifier that nothing else
    uses, and its ``__init__.py`` must import what registers the model.

    Raises:
        ImportError: If the import fails; the message names the directory.
    """
    folder = Path(custom_module_path).resolve()
    parent = str(folder.parent)
    if parent not in sys.path:
        sys.path.insert(0, parent)
    try:
        return import_module(folder.name)
    except ImportError as error:
        raise ImportError(f"cannot import the custom module {folder}: {error}") from error


def import_custom_module_from_file(custom_module_path: str | Path) -> ModuleType:
    """Run a file as a module that is *not* in ``sys.modules``: its classes cannot be pickled.

    Raises:
        ImportError: If the file cannot be loaded.
    """
    path = Path(custom_module_path).resolve()
    spec = spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import the custom module {path}")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_custom_module(custom_module_path: str | Path) -> ModuleType:
    """Import a directory or a file by the rule of its kind.

    Raises:
        FileNotFoundError: If there is neither.
        ImportError: If the import fails.
    """
    path = Path(custom_module_path)
    if not path.exists():
        raise FileNotFoundError(f"custom module path {path} does not exist")
    rule = import_custom_module_from_dir if path.is_dir() else import_custom_module_from_file
    return rule(path)
