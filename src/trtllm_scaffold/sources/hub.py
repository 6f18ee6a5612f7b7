"""Fetches a model's small files (config, indexes, quantization, header) from the hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trtllm_scaffold.errors import EnvironmentProblem, InputError, ScaffoldError
from trtllm_scaffold.sources.checkpoint import (
    BIN_INDEX,
    MAX_INDEX_BYTES,
    SAFETENSORS_INDEX,
    CheckpointHeader,
    parse_header,
    read_header,
)
from trtllm_scaffold.sources.config import MAX_CONFIG_BYTES
from trtllm_scaffold.sources.json_file import shown

MAX_QUANT_BYTES = 16 << 20
"""Mixed-precision files list every expert of every layer by name."""

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9])?"
_HUB_ID = re.compile(rf"(?:{_PART}/)?{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,199}")

_OPTIONAL_FILES = {
    "hf_quant_config.json": MAX_QUANT_BYTES,
    SAFETENSORS_INDEX: MAX_INDEX_BYTES,
    BIN_INDEX: MAX_INDEX_BYTES,
}


@dataclass(frozen=True)
class HubFiles:
    """What was fetched of one model at one commit.

    Attributes:
        folder: The snapshot folder in the HuggingFace cache.
        commit: The commit that the revision named.
        header: The checkpoint's header; None when the model has none that can be read.
    """

    folder: Path
    commit: str
    header: CheckpointHeader | None


def check_hub_id(hf_id: str) -> str:
    """Return `hf_id` if it is `name` or `org/name` as the hub spells them.

    Raises:
        InputError: It is not.
    """
    valid = len(hf_id) <= 200 and _HUB_ID.fullmatch(hf_id)
    if not valid or ".." in hf_id or "--" in hf_id or hf_id.endswith(".git"):
        raise InputError(
            f"{shown(hf_id)} is not a model's id on the hub",
            hint="write ORG/MODEL, for example Qwen/Qwen3-0.6B",
        )
    return hf_id


def fetch_model_files(hf_id: str, revision: str | None = None) -> HubFiles:
    """Fetch the files that describe a model; its weights stay on the hub.

    HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the cache work as in huggingface_hub.

    Args:
        hf_id: `org/name` or `name`.
        revision: A branch, tag or commit; the default branch when None.

    Raises:
        InputError: The id is malformed, or the model, revision or config.json does not exist, is
            gated, or is too large.
        EnvironmentProblem: huggingface_hub is missing, or the hub cannot be reached.
    """
    check_hub_id(hf_id)
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise InputError(f"{shown(revision)} is not a revision", where="--revision")
    config = _download(hf_id, "config.json", revision, MAX_CONFIG_BYTES)
    if config is None:
        raise InputError(
            f"the model {hf_id} has no config.json",
            where=_place(hf_id, revision),
            hint="the repository may hold another format (GGUF, adapters): use the base model's",
        )
    folder = config.parent
    for name, limit in _OPTIONAL_FILES.items():
        _download(hf_id, name, folder.name, limit)
    header = read_header(folder, partial=True)
    if not (header and header.complete) and not (folder / SAFETENSORS_INDEX).exists():
        header = _fetch_single_header(hf_id, folder.name) or header
    return HubFiles(folder=folder, commit=folder.name, header=header)


def _place(hf_id: str, revision: str | None) -> str:
    return f"{hf_id}@{revision}" if revision else hf_id


def _download(hf_id: str, name: str, revision: str | None, limit: int) -> Path | None:
    """Return the cached path of one file, or None when the model has no such file."""
    with _mapped_errors(hf_id, revision):
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            if not constants.HF_HUB_OFFLINE:
                url = hf_hub_url(hf_id, name, revision=revision)
                size = get_hf_file_metadata(url).size or 0
                if size > limit:
                    raise InputError(
                        f"{name} has {size} bytes, more than the {limit} accepted here",
                        where=_place(hf_id, revision),
                    )
            return Path(hf_hub_download(hf_id, name, revision=revision))
        except LocalEntryNotFoundError:
            if name != "config.json" and constants.HF_HUB_OFFLINE:
                return None
            raise
        except EntryNotFoundError:
            return None


def _fetch_single_header(hf_id: str, commit: str) -> CheckpointHeader | None:
    """Read the header of a model stored in one file, by a range request."""
    name = "model.safetensors"
    with _mapped_errors(hf_id, commit):
        from huggingface_hub import constants, parse_safetensors_file_metadata
        from huggingface_hub.errors import EntryNotFoundError

        if constants.HF_HUB_OFFLINE:
            return None
        try:
            found = parse_safetensors_file_metadata(hf_id, name, revision=commit)
        except EntryNotFoundError:
            return None
    raw = {
        tensor: {"dtype": info.dtype, "shape": info.shape, "data_offsets": info.data_offsets}
        for tensor, info in found.tensors.items()
    }
    where = f"{hf_id}@{commit}: {name}"
    return CheckpointHeader(parse_header(raw, name, where=where, data_bytes=None))


@contextmanager
def _mapped_errors(hf_id: str, revision: str | None) -> Iterator[None]:
    """Turn every failure of huggingface_hub into one of ours.

    The text of the original error is left out: it may quote request headers or an endpoint with
    a password in it.
    """
    try:
        yield
    except ScaffoldError:
        raise
    except ImportError as error:
        hint = "pip install 'huggingface_hub>=0.34'"
        raise EnvironmentProblem(f"the hub's client is unusable: {error}", hint=hint) from error
    except Exception as error:
        raise _translated(error, _place(hf_id, revision)) from None


def _translated(error: Exception, place: str) -> ScaffoldError:
    """Return our error for one of huggingface_hub's, by its class or its HTTP status."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    retry = "check the network and HF_ENDPOINT, or give a downloaded folder with --config"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        hint = "accept its terms on the hub, then set HF_TOKEN"
        return InputError(
            "the model is gated, or the token may not read it", where=place, hint=hint
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError("the model has no such revision", where=place, hint="check --revision")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        hint = "check the spelling; a private model needs HF_TOKEN"
        return InputError("no such model on the hub", where=place, hint=hint)
    if isinstance(error, errors.SafetensorsParsingError | errors.HFValidationError):
        return InputError("the hub's answer is malformed", where=place)
    if isinstance(error, errors.OfflineModeIsEnabled | errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            hint = "unset HF_HUB_OFFLINE, or give a downloaded folder with --config"
            problem = "the model is not in the cache and HF_HUB_OFFLINE is set"
            return EnvironmentProblem(problem, where=place, hint=hint)
    if status is not None:
        problem = f"the hub answered with HTTP status {status}"
        return EnvironmentProblem(problem, where=place, hint=retry)
    problem = f"the hub cannot be reached ({type(error).__name__})"
    return EnvironmentProblem(problem, where=place, hint=retry)
