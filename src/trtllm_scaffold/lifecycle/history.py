"""The template's history at run time: from a checkout's commits, or from a wheel's bundle."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trtllm_scaffold.errors import EnvironmentProblem, InputError
from trtllm_scaffold.lifecycle.bundle import (
    BUNDLE,
    VERSION,
    checkout_version,
    extract,
    has_commit,
    is_checkout,
    stage,
)
from trtllm_scaffold.lifecycle.git import GitFailed, git, require_git, text
from trtllm_scaffold.lifecycle.releases import Version, parse_version, read_releases

_COMMIT = re.compile(r"[0-9a-f]{7,40}")


def template_root() -> Path:
    """The folder with ``copier.yml``: in the wheel, else at the root of the checkout."""
    package = Path(__file__).parents[1]
    packaged = package / "_template"
    return packaged if packaged.is_dir() else package.parents[1]


@lru_cache
def current_version(root: Path) -> str | None:
    """The version of the template at `root`; None where nothing tells (no git, no record)."""
    recorded = root / VERSION
    if recorded.is_file():
        version = recorded.read_text(encoding="ascii").strip()
        return version if parse_version(version) else None
    try:
        return checkout_version(root) if is_checkout(root) else None
    except GitFailed:
        return None


@dataclass(frozen=True)
class History:
    """Where each known version of the template can be had.

    Attributes:
        root: The template as it is now.
        repository: A repository with the commits of the others.
        commits: The commit, or tag, of each version known by name, oldest first.
        anywhere: Whether the repository has every commit, so that development versions resolve.
    """

    root: Path
    repository: Path
    commits: dict[str, str]
    anywhere: bool

    @property
    def current(self) -> str | None:
        """The version that updates lead to."""
        return current_version(self.root)

    @contextmanager
    def template(self, version: str | None) -> Iterator[Path]:
        """A folder, outside any git repository, with the template of `version`; None is now's.

        Raises:
            InputError: The history lacks that version; says what to do, by the reason.
        """
        with tempfile.TemporaryDirectory(prefix="trtllm-scaffold-template-") as folder:
            dest = Path(folder).resolve()
            if version is None:
                stage(self.root, dest)
            else:
                extract(self.repository, self.find(version), dest)
            yield dest

    def find(self, version: str) -> str:
        """The commit of `version`.

        Raises:
            InputError: The history lacks it.
        """
        if self.anywhere and _COMMIT.fullmatch(version) and has_commit(self.repository, version):
            return version  # what plain copier records from a clone that has no tags
        known = parse_version(version)
        if known is None:
            raise _lacks(version, "it is no version of this template", _ADOPT)
        if known.dirty:
            raise _lacks(version, "it had uncommitted changes, which nobody kept", _ADOPT)
        if version in self.commits:
            return self.commits[version]
        if known.commit and self.anywhere and has_commit(self.repository, known.commit):
            return known.commit
        self.refuse_newer(known)
        if known.commit:
            raise _lacks(version, "it is a development version, not a release", _ADOPT)
        raise _lacks(version, "the template's history here lacks it", "git fetch --unshallow")

    def refuse_newer(self, version: Version) -> None:
        """Raises InputError for a version that is newer than the current one."""
        now = parse_version(self.current or "")
        if now is not None and version.order > now.order:
            raise InputError(
                f"the port was made by a newer trtllm-scaffold: {version.text}, and this is "
                f"{now.text}",
                where=".copier-answers.yml: _commit",
                hint="pip install --upgrade trtllm-scaffold",
            )


_ADOPT = "`trtllm-scaffold adopt PORT` finds the nearest version that is known"


def _lacks(version: str, why: str, hint: str) -> InputError:
    return InputError(
        f"the port's template {version!r} cannot be had: {why}",
        where=".copier-answers.yml: _commit",
        hint=hint,
    )


@contextmanager
def open_history(root: Path | None = None) -> Iterator[History]:
    """The history of the template at `root` (by default the one in use).

    Raises:
        EnvironmentProblem: git is absent, or the installation came without a history.
    """
    require_git("the template's history")
    root = root or template_root()
    if is_checkout(root):
        commits = {release.tag: release.commit for release in read_releases(root)}
        present = {tag: commit for tag, commit in commits.items() if has_commit(root, commit)}
        yield History(root, root, present, anywhere=True)
        return
    bundle = root / BUNDLE
    if not bundle.is_file():
        raise EnvironmentProblem(
            "this installation has no template history",
            where=str(bundle),
            hint="install trtllm-scaffold from a wheel, or use a git clone of it",
        )
    with tempfile.TemporaryDirectory(prefix="trtllm-scaffold-history-") as folder:
        repository = Path(folder).resolve()
        git("init", "--quiet", "--bare", cwd=repository)
        git("fetch", "--quiet", bundle.resolve(), "refs/tags/*:refs/tags/*", cwd=repository)
        tags = text("tag", "--list", cwd=repository).splitlines()
        known = sorted(filter(None, map(parse_version, tags)), key=lambda version: version.order)
        commits = {version.text: f"refs/tags/{version.text}" for version in known}
        yield History(root, repository, commits, anywhere=False)
