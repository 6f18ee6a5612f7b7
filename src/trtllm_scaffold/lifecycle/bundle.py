"""The template's history out of a checkout: its version now, one release's files, all as a bundle.

A bundle holds one commit for each release, with nothing but what copier reads, under the release's
own tag. Ports record tag names only, so a bundle and a full clone can stand for each other.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trtllm_scaffold.errors import EnvironmentProblem, ScaffoldError
from trtllm_scaffold.lifecycle.git import GitFailed, git, has_git, text
from trtllm_scaffold.lifecycle.releases import TEMPLATE_PARTS, Release, read_releases

BUNDLE, VERSION = "template.bundle", "template.version"
"""The files that a wheel has beside its template, and an sdist at its root."""

_AUTHOR = "trtllm-scaffold"
_BYTES = ("-c", "core.autocrlf=false", "-c", "core.attributesFile=/dev/null")
#: One thread and no reuse of anything, so that two builds write the same bytes.
_PACKING = ("-c", "pack.threads=1", "-c", "core.compression=9", "-c", "pack.compression=9")


def is_checkout(root: Path) -> bool:
    """Whether `root` is the top of a clone of this repository (rather than a part of another)."""
    if not (root / "copier.yml").is_file() or not (root / ".git").exists() or not has_git():
        return False
    try:
        return Path(text("rev-parse", "--show-toplevel", cwd=root, user=True)) == root.resolve()
    except GitFailed:
        return False


def has_commit(root: Path, commit: str) -> bool:
    """Whether a clone has `commit`: shallow ones lack old releases."""
    try:
        git("cat-file", "-e", f"{commit}^{{commit}}", cwd=root, user=True)
    except GitFailed:
        return False
    return True


def checkout_version(root: Path) -> str:
    """The version of the template that lies in the checkout `root`.

    It is a release's tag wherever the template is that release's to the byte, whatever else
    changed since; otherwise it names the commit, and says whether there is more than the commit.
    """
    changed = text(
        "status", "--porcelain", "--untracked-files=all", "--", *TEMPLATE_PARTS, cwd=root, user=True
    )
    known = [release for release in read_releases(root) if has_commit(root, release.commit)]
    if not changed:
        now = _parts(root, "HEAD")
        for release in reversed(known):
            if _parts(root, release.commit) == now:
                return release.tag
    base = _last_before_head(root, known)
    span = f"{base.commit}..HEAD" if base else "HEAD"
    after = text("rev-list", "--count", span, cwd=root, user=True)
    head = text("rev-parse", "HEAD", cwd=root, user=True)[:12]
    tag = base.tag if base else "v0.0.0"
    return f"{tag}-{after}-g{head}" + ("-dirty" if changed else "")


def _parts(root: Path, commit: str) -> str:
    names = [f"{commit}:{part}" for part in TEMPLATE_PARTS]
    return text("rev-parse", *names, cwd=root, user=True)


def _last_before_head(root: Path, releases: list[Release]) -> Release | None:
    for release in reversed(releases):
        base = git(
            "merge-base", release.commit, "HEAD", cwd=root, user=True, expect=(0, 1)
        ).decode()
        if base.strip() == release.commit:
            return release
    return None


def extract(repository: Path, commit: str, dest: Path) -> None:
    """Writes the template of `commit` (copier.yml, includes, template) into `dest`.

    Raises:
        GitFailed: The repository lacks the commit, or the commit lacks a part.
    """
    archive = git(*_BYTES, "archive", commit, "--", *TEMPLATE_PARTS, cwd=repository, user=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        for member in members:
            path = dest / member.name
            if member.isdir():
                path.mkdir(parents=True, exist_ok=True)
            elif member.isfile():
                path.parent.mkdir(parents=True, exist_ok=True)
                content = members.extractfile(member)
                assert content is not None
                path.write_bytes(content.read())
                path.chmod(0o755 if member.mode & 0o100 else 0o644)


def stage(root: Path, dest: Path) -> None:
    """Copies the template that lies at `root` into the folder `dest`."""
    for part in TEMPLATE_PARTS:
        source = root / part
        if source.is_dir():
            shutil.copytree(source, dest / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, dest / part)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="trtllm-scaffold-history-") as folder:
        yield Path(folder).resolve()


def build(root: Path, dest: Path) -> str:
    """Writes `template.bundle` and `template.version` into `dest` from the checkout `root`.

    The version in the checkout is part of the bundle even where it is no release, so that a
    development wheel can update what it made.

    Returns:
        The version of the template in the checkout.

    Raises:
        EnvironmentProblem: The clone lacks a release's commit.
        ScaffoldError: git failed.
    """
    releases = read_releases(root)
    for release in releases:
        if not has_commit(root, release.commit):
            raise EnvironmentProblem(
                f"this clone lacks {release.commit[:12]}, the commit of {release.tag}",
                where=str(root),
                hint="git fetch --unshallow",
            )
    version = checkout_version(root)
    try:
        with _folder() as repository, _folder() as tree:
            git("init", "--quiet", "--bare", "--initial-branch=main", cwd=repository)
            parent = ""
            for release in releases:
                extract(root, release.commit, tree / release.tag)
                date = _date(root, release.commit)
                parent = _commit(repository, tree / release.tag, release.tag, date, parent)
            if version not in {release.tag for release in releases}:
                (tree / version).mkdir()
                stage(root, tree / version)
                parent = _commit(repository, tree / version, version, _date(root, "HEAD"), parent)
            git("update-ref", "refs/heads/main", parent, cwd=repository)
            bundle = (dest / BUNDLE).resolve()
            git(*_PACKING, "bundle", "create", "--quiet", bundle, "HEAD", "--all", cwd=repository)
    except GitFailed as error:
        raise ScaffoldError(f"the template's history cannot be bundled: {error}") from error
    (dest / VERSION).write_text(version + "\n", encoding="ascii")
    return version


def _date(root: Path, commit: str) -> str:
    return text("show", "-s", "--format=%ct", commit, cwd=root, user=True)


def _commit(repository: Path, tree: Path, tag: str, date: str, parent: str) -> str:
    """Commits a folder's files under `tag`; everything but the files and the date is fixed."""
    index = {"GIT_DIR": str(repository), "GIT_WORK_TREE": str(tree)}
    stamp = {"NAME": _AUTHOR, "EMAIL": f"{_AUTHOR}@localhost", "DATE": f"{date} +0000"}
    people = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in stamp.items()
    }
    git(*_BYTES, "add", "--all", "--force", ".", cwd=tree, env=index)
    name = git("write-tree", cwd=tree, env=index).decode().strip()
    parents = ("-p", parent) if parent else ()
    commit = git("commit-tree", name, *parents, "-m", tag, cwd=tree, env={**index, **people})
    git("update-ref", f"refs/tags/{tag}", commit.decode().strip(), cwd=repository)
    return commit.decode().strip()


def make_tags(root: Path) -> tuple[str, ...]:
    """Makes the tags that `releases.json` names and the clone `root` lacks; returns their names.

    Raises:
        ScaffoldError: A tag of that name is at another commit.
    """
    made = []
    for release in read_releases(root):
        try:
            at = text("rev-parse", "--verify", "--quiet", f"{release.tag}^{{commit}}", cwd=root)
        except GitFailed:
            git("tag", release.tag, release.commit, cwd=root, user=True)
            made.append(release.tag)
            continue
        if at != release.commit:
            raise ScaffoldError(
                f"the tag {release.tag} is at {at}, but the file says {release.commit}",
                where="releases.json",
            )
    return tuple(made)
