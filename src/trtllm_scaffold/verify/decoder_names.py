"""The names that a whole model's checkpoint has for the tensors of its text decoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def store_as_whole(folder: Path, answers: Mapping[str, Any]) -> None:
    """Rename the tensors that `folder` stores to what the whole model's checkpoint calls them."""
    from safetensors.torch import load_file, save_file

    own, stored = (answers.get(key) or [] for key in ("own_prefixes", "stored_prefixes"))
    pairs = sorted(zip(own, stored, strict=True), key=lambda pair: -len(pair[0]))
    for path in folder.glob("*.safetensors") if pairs else ():
        renamed = {}
        for name, tensor in load_file(path).items():
            begin, whole = next(pair for pair in pairs if name.startswith(pair[0]))
            renamed[whole + name.removeprefix(begin)] = tensor
        save_file(renamed, path, metadata={"format": "pt"})
