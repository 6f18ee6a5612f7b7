"""The files of a model that brings its own code: what its port is tested against."""

from __future__ import annotations

import inspect
from pathlib import Path

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.hf_class import HFClasses

#: Where a port keeps them, below its folder.
FOLDER = "tests/hf_reference"
_INIT = '"""The model\'s own code, as its repository has it: what the port is held against."""\n'
_MAX_BYTES = 4 * 1024 * 1024


def own_code(classes: HFClasses) -> dict[str, str]:
    """The texts of the model's own files by path inside a port; empty for classes of transformers.

    Raises:
        InputError: A file is too large, is not text, or lies in another folder than the rest.
    """
    if not classes.remote:
        return {}
    from transformers.dynamic_module_utils import get_relative_import_files

    found = {f"{FOLDER}/__init__.py": _INIT}
    roots = [Path(inspect.getfile(c)) for c in (classes.config_class, classes.model_class)]
    for root in roots:
        for path in (root, *map(Path, get_relative_import_files(root))):
            if path.parent != roots[-1].parent:
                raise InputError(
                    f"{path.name} lies in another folder than {roots[-1].name}",
                    where=str(path),
                    hint="put the model's own files side by side",
                )
            found[f"{FOLDER}/{path.name}"] = _text(path)
    return found


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"more than {_MAX_BYTES} bytes of source", where=str(path))
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise InputError(f"the model's own code cannot be read: {error}", where=str(path)) from None
