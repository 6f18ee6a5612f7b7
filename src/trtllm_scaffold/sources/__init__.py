"""Collects everything that is known of a model before any of its code runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.sources.checkpoint import CheckpointHeader, TensorInfo, read_header
from trtllm_scaffold.sources.config import ConfigSource, read_config, validate_config
from trtllm_scaffold.sources.hub import MAX_QUANT_BYTES, fetch_model_files
from trtllm_scaffold.sources.json_file import parse_object, read_bytes, shown

__all__ = [
    "CheckpointHeader",
    "ConfigSource",
    "Sources",
    "TensorInfo",
    "load_hub",
    "load_path",
    "load_sources",
    "read_config",
    "read_header",
    "validate_config",
]

_HUB_LIKE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?")


@dataclass(frozen=True)
class Sources:
    """What was read of one model.

    Attributes:
        raw: The parsed config.json, checked by `validate_config`.
        where: The config.json as messages name it: a path, or `org/name@commit`.
        header: The checkpoint's names, dtypes and shapes; None where there are no weights.
        quant: The parsed hf_quant_config.json; None where there is none.
        folder: The folder that holds the config.json.
        hf_id: The model's id on the hub; None for a path.
        commit: The hub commit; None for a path.
        text_only: Take the text decoder out of a model that reads more than text.
    """

    raw: dict[str, Any]
    where: str
    header: CheckpointHeader | None
    quant: dict[str, Any] | None
    folder: Path
    hf_id: str | None = None
    commit: str | None = None
    text_only: bool = False

    @property
    def default_name(self) -> str:
        """The name of a port's folder where the user gave none."""
        name = self.hf_id.rpartition("/")[2] if self.hf_id else self.raw["model_type"]
        return f"{name.lower().replace('_', '-')}-trtllm"


def load_sources(model: str, revision: str | None = None) -> Sources:
    """Load a model given as a path (a config.json or its folder) or as an id on the hub.

    What exists on the disk is a path; otherwise what looks like `org/name` or `name` is an id.

    Raises:
        InputError: Neither exists, or what was read is malformed.
        EnvironmentProblem: The hub cannot be reached.
    """
    try:
        exists = Path(model).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # symlink loop, unknown home, null byte
        exists = False
    if not exists and _HUB_LIKE.fullmatch(model) and not model.endswith(".json"):
        return load_hub(model, revision)
    if revision is not None:
        raise InputError(
            f"{shown(model)} is a path, and only a model on the hub has a revision",
            where="--revision",
        )
    return load_path(model)


def load_path(path: str | Path) -> Sources:
    """Load a model from a config.json, or from a folder that holds one.

    Weights and hf_quant_config.json are optional, and looked for beside a file that is named
    config.json: what lies beside a file of another name may belong to another model.

    Raises:
        InputError: A file is missing, malformed or contradicts itself.
    """
    config = read_config(path)
    validate_config(config.raw, config.where)
    folder = config.path.parent
    own_folder = config.path.name == "config.json"
    return Sources(
        raw=config.raw,
        where=config.where,
        header=read_header(folder) if own_folder else None,
        quant=_read_quant(folder) if own_folder else None,
        folder=folder,
    )


def load_hub(hf_id: str, revision: str | None = None) -> Sources:
    """Load a model's description from the hub, without its weights.

    Raises:
        InputError: The model or the revision does not exist, is gated, or is malformed.
        EnvironmentProblem: The hub cannot be reached.
    """
    files = fetch_model_files(hf_id, revision)
    where = f"{hf_id}@{files.commit}: config.json"
    raw = read_config(files.folder).raw
    validate_config(raw, where)
    return Sources(
        raw=raw,
        where=where,
        header=files.header,
        quant=_read_quant(files.folder),
        folder=files.folder,
        hf_id=hf_id,
        commit=files.commit,
    )


def _read_quant(folder: Path) -> dict[str, Any] | None:
    path = folder / "hf_quant_config.json"
    if not path.exists():
        return None
    return parse_object(read_bytes(path, MAX_QUANT_BYTES), str(path))
