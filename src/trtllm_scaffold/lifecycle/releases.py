"""Which releases there are, by the tracked file `releases.json`, and how versions are ordered.

A version is the name of a template: the tag of a release (`v0.1.0`), or what `git describe` would
say of a commit after one (`v0.1.0-3-g1a2b3c4d5e6f`, which git resolves wherever it has that
commit). A template with uncommitted changes ends in `-dirty` and can never be found again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import InputError

FILE = "releases.json"
"""At the root of the repository: a list of {"version", "commit"}, oldest first."""

#: What copier reads: a release is these three paths of its commit.
TEMPLATE_PARTS = ("copier.yml", "includes", "template")

#: The place that every port names as its template's origin.
URL = "https://github.com/trtllm-scaffold/trtllm-scaffold.git"

_NUMBER = re.compile(r"(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})\.(0|[1-9]\d{0,5})")
_VERSION = re.compile(
    r"v(?P<release>\d{1,6}\.\d{1,6}\.\d{1,6})"
    r"(-(?P<after>\d{1,6})-g(?P<commit>[0-9a-f]{7,40}))?(?P<dirty>-dirty)?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Release:
    """One release: `version` such as "0.1.0", and the full `commit` that its tag names."""

    version: str
    commit: str

    @property
    def tag(self) -> str:
        """The tag, and the version that ports record."""
        return f"v{self.version}"


@dataclass(frozen=True)
class Version:
    """A parsed template version.

    Attributes:
        text: As ports record it.
        order: What versions are compared by: the release's numbers and the commits after it.
        commit: The abbreviated commit of a development version; empty for a release.
        dirty: Whether its template had uncommitted changes.
    """

    text: str
    order: tuple[int, int, int, int]
    commit: str
    dirty: bool


def parse_version(text: str) -> Version | None:
    """Reads a version; None for anything else, so that no other text ever reaches git."""
    found = _VERSION.fullmatch(text)
    if found is None:
        return None
    major, minor, patch = map(int, found["release"].split("."))
    after = int(found["after"] or 0)
    return Version(
        text, (major, minor, patch, after), found["commit"] or "", found["dirty"] is not None
    )


def read_releases(root: Path) -> tuple[Release, ...]:
    """The releases that `root`'s file names, oldest first; none where there is no file.

    Raises:
        InputError: The file is malformed, or its versions do not rise.
    """
    path = root / FILE
    if not path.is_file():
        return ()
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"not JSON: {error}", where=str(path)) from error
    if not isinstance(rows, list):
        raise InputError("expected a list of releases", where=str(path))
    releases = tuple(_release(row, path) for row in rows)
    orders = [parse_version(release.tag).order for release in releases]  # type: ignore[union-attr]
    if orders != sorted(set(orders)):
        raise InputError("versions must rise from each row to the next", where=str(path))
    return releases


def _release(row: Any, path: Path) -> Release:
    version = row.get("version") if isinstance(row, dict) else None
    commit = row.get("commit") if isinstance(row, dict) else None
    if not (isinstance(version, str) and _NUMBER.fullmatch(version)):
        raise InputError(f"version {version!r} is not of the form 1.2.3", where=str(path))
    if not (isinstance(commit, str) and _COMMIT.fullmatch(commit)):
        raise InputError(f"commit {commit!r} of {version} is not a full hash", where=str(path))
    return Release(version, commit)


def write_releases(root: Path, releases: tuple[Release, ...]) -> None:
    """Writes `root`'s file, one release a line, so that a new release is a diff of one line."""
    rows = [
        json.dumps({"version": release.version, "commit": release.commit}) for release in releases
    ]
    body = "[\n  " + ",\n  ".join(rows) + "\n]\n" if rows else "[]\n"
    (root / FILE).write_text(body, encoding="utf-8")
