"""PortPlan -> files: copier renders aside, then the whole port appears at once, or nothing."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.lifecycle.bundle import stage
from trtllm_scaffold.lifecycle.history import current_version, template_root
from trtllm_scaffold.plan.answers import Answers


@contextmanager
def _staged_template() -> Iterator[Path]:
    """A copy outside any git repository: copier would clone a repository's last tag instead."""
    with tempfile.TemporaryDirectory(prefix="trtllm-scaffold-template-") as folder:
        stage(template_root(), Path(folder))
        yield Path(folder)


def render(answers: Answers, dest: Path) -> None:
    """Renders the template into the existing empty folder `dest`."""
    with _staged_template() as template:
        render_from(template, answers, dest, current_version(template_root()))


def render_from(
    template: Path, answers: Mapping[str, Any], dest: Path, version: str | None
) -> None:
    """Renders the template in the folder `template`, which lies outside git, into `dest`.

    Args:
        template: A folder with copier.yml, includes and template.
        answers: Copier answers.
        dest: An existing empty folder.
        version: What the port records as its template's version; None where it is not known.
    """
    import copier

    stamp = {} if version is None else {"template_version": version}
    copier.run_copy(
        str(template),
        dest,
        data={**answers, **stamp},
        defaults=True,
        overwrite=True,
        quiet=True,
        settings=copier.Settings(),
    )


def write_owned(path: Path, document: Any) -> None:
    """Writes a text as it is, and anything else as readable JSON with keys in their own order."""
    text = document if isinstance(document, str) else json.dumps(document, indent=2) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def check_destination(dest: Path, *, force: bool) -> None:
    """Raises InputError unless `dest` is new, empty, or (with `force`) a folder."""
    if dest.is_symlink() or (dest.exists() and not dest.is_dir()):
        raise InputError(f"{dest} is not a folder", where="DEST", hint="name a new folder")
    if dest.exists() and any(dest.iterdir()) and not force:
        raise InputError(
            f"{dest} is not empty", where="DEST", hint="name a new folder, or give --force"
        )
    if not os.access(_existing_parent(dest), os.W_OK):
        raise InputError(f"{dest} cannot be written", where="DEST", hint="name another folder")


def _existing_parent(dest: Path) -> Path:
    parent = dest.absolute()
    while not parent.exists():
        parent = parent.parent
    return parent


@contextmanager
def rendered_aside(answers: Answers, owned_files: Mapping[str, Any], dest: Path) -> Iterator[Path]:
    """Renders a port beside `dest` and yields it; removed unless `publish` moved it.

    Args:
        answers: Copier answers.
        owned_files: Texts and JSON documents that the CLI owns, by path inside the port.
        dest: Where the port will stand; nothing is written there yet.
    """
    parent = _existing_parent(dest.absolute().parent)
    aside = Path(tempfile.mkdtemp(prefix=f".{dest.name}-", dir=parent))
    port = aside / dest.name
    try:
        port.mkdir()
        render(answers, port)
        for name, document in owned_files.items():
            write_owned(port / name, document)
        yield port
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def publish(port: Path, dest: Path) -> None:
    """Moves a rendered port to `dest`, all at once where `dest` is new or empty."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    if not dest.exists() or not any(dest.iterdir()):
        if dest.exists():
            dest.rmdir()
        port.rename(dest)
        return
    shutil.copytree(port, dest, dirs_exist_ok=True)
