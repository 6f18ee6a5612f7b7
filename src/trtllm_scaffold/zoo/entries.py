"""The families that the zoo covers, and the configuration of each small instance."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import InputError, UsageError

CATEGORIES = ("dense", "moe", "mla")


@dataclass(frozen=True)
class Entry:
    """One family, or a variant that its flags switch.

    Attributes:
        name: ``model_type`` or ``model_type+variant``.
        model_type: Transformers' name of the configuration class.
        architecture: The causal-LM class.
        category: One of `CATEGORIES`.
        overrides: Keys that differ from the class's defaults.
        text_only: Port the text decoder alone, as ``new --text-only`` does.
    """

    name: str
    model_type: str
    architecture: str
    category: str
    overrides: dict[str, Any]
    text_only: bool = False


def load_entries(path: Path | None = None) -> tuple[Entry, ...]:
    """The entries of `path`, or those that come with this package.

    Raises:
        InputError: The file is unreadable or has other fields.
    """
    source = path or resources.files("trtllm_scaffold.zoo").joinpath("entries.json")
    try:
        return tuple(Entry(**item) for item in json.loads(source.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"not a list of zoo entries: {error}", where=str(source)) from error


def select(entries: tuple[Entry, ...], only: str) -> tuple[Entry, ...]:
    """Those that `only` names: categories or entries, separated by commas; empty for all.

    A model_type stands for its variants as well.

    Raises:
        UsageError: A word names nothing.
    """
    words = [word.strip() for word in only.split(",") if word.strip()]
    names = {entry.name for entry in entries} | {entry.model_type for entry in entries}
    unknown = [word for word in words if word not in CATEGORIES and word not in names]
    if unknown:
        raise UsageError(
            f"--only {unknown[0]!r} is neither a category nor an entry",
            hint=f"categories are {', '.join(CATEGORIES)}; entries are model types",
        )
    return tuple(
        entry
        for entry in entries
        if not words or {entry.category, entry.name, entry.model_type} & set(words)
    )
