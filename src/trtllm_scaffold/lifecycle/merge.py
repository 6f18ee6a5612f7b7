"""Three-way merge of a port: its old render, what its owner made of it, and the new render."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.lifecycle.git import GitFailed, run_git


@dataclass(frozen=True)
class File:
    """A file's content, and whether it may be executed."""

    content: bytes
    executable: bool = False


Tree = Mapping[str, File]
"""Files by their path inside the port, with forward slashes."""


class Kind(str, Enum):
    """What an update does with one file."""

    added = "added"
    modified = "modified"
    deleted = "deleted"
    conflict = "conflict"
    """Changed by both, on the same lines: holds markers."""
    doomed = "deleted although edited"
    """Edited by its owner and dropped by the new template."""
    absent = "stays deleted"
    """Deleted by its owner and changed by the new template."""


@dataclass(frozen=True)
class Change:
    """One file that the update concerns.

    Attributes:
        path: Inside the port.
        kind: What happens to it.
        before: As it is; None if it is not there.
        after: As it will be; None if it will not be there.
        old, new: Its two renders.
    """

    path: str
    kind: Kind
    before: File | None
    after: File | None
    old: File | None = None
    new: File | None = None


def read_tree(folder: Path) -> dict[str, File]:
    """Every file under `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _read(path) for path in files}


def read_files(folder: Path, paths: Iterable[str]) -> dict[str, File]:
    """Those of `paths` that exist under `folder`.

    Raises:
        InputError: One of them, or a folder on the way, is a link or not a plain file.
    """
    root = folder.resolve()
    found = {}
    for name in paths:
        path = root / name
        linked = path.is_symlink() or path.parent.resolve() != path.parent
        if linked or (path.exists() and not path.is_file()):
            raise InputError(
                f"{name} is a link or no file, and an update writes plain files only",
                where=str(root),
                hint="replace it by the file",
            )
        if path.is_file():
            found[name] = _read(path)
    return found


def _read(path: Path) -> File:
    return File(path.read_bytes(), bool(path.stat().st_mode & 0o100))


def merge_trees(old: Tree, mine: Tree, new: Tree, labels: tuple[str, str]) -> list[Change]:
    """What turns the owner's files into the new render, with the owner's edits kept.

    Args:
        old: What the port was rendered as.
        mine: What it is.
        new: What it would be rendered as.
        labels: Names of the old and the new template, for conflict markers.
    """
    changes = []
    for path in sorted({*old, *new}):
        change = _merge(path, old.get(path), mine.get(path), new.get(path), labels)
        if change is not None:
            changes.append(change)
    return changes


def _merge(
    path: str, old: File | None, mine: File | None, new: File | None, labels: tuple[str, str]
) -> Change | None:
    if new in (old, mine):
        return None
    if mine == old:
        kind = Kind.added if mine is None else Kind.deleted if new is None else Kind.modified
        return Change(path, kind, mine, new, old, new)
    if new is None:
        return Change(path, Kind.doomed, mine, None, old, new)
    if mine is None:
        return Change(path, Kind.absent, None, None, old, new)
    base = old or File(b"")
    content, clean = merge_text(path, base.content, mine.content, new.content, labels)
    executable = new.executable if mine.executable == base.executable else mine.executable
    after = File(content, executable)
    if clean and after == mine:
        return None
    return Change(path, Kind.modified if clean else Kind.conflict, mine, after, old, new)


def merge_text(
    path: str, old: bytes, mine: bytes, new: bytes, labels: tuple[str, str]
) -> tuple[bytes, bool]:
    """Merges three versions of one file; returns it, and whether there was no conflict.

    Raises:
        InputError: One of them is not text.
    """
    with tempfile.TemporaryDirectory(prefix="trtllm-scaffold-merge-") as folder:
        place = Path(folder)
        for name, content in (("mine", mine), ("old", old), ("new", new)):
            (place / name).write_bytes(content)
        marks = [f"-L{label}" for label in ("yours", *labels)]
        try:
            # The exit code is the number of conflicts.
            names = ("mine", "old", "new")
            merged = run_git("merge-file", "-p", "-q", *marks, *names, cwd=place, expect=range(128))
        except GitFailed as error:
            raise InputError(
                f"{path} cannot be merged: {error}", hint="make it a text file again"
            ) from error
    return merged.stdout, merged.returncode == 0
