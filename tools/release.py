"""Cuts a release, makes the tags that a clone lacks, and checks that everything agrees.

    python tools/release.py check   # version, CHANGELOG, releases.json, tags and bundle agree
    python tools/release.py cut     # names HEAD as the release of pyproject.toml's version
    python tools/release.py tags    # makes the tags of releases.json that are missing

To release: set the version (pyproject.toml and __init__.py), date its heading in CHANGELOG.md,
commit, `cut`, commit releases.json, `check`, and build the wheel from there.
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from trtllm_scaffold.errors import ScaffoldError  # noqa: E402
from trtllm_scaffold.lifecycle.bundle import (  # noqa: E402
    BUNDLE,
    build,
    checkout_version,
    has_commit,
    make_tags,
)
from trtllm_scaffold.lifecycle.git import GitFailed, git, text  # noqa: E402
from trtllm_scaffold.lifecycle.releases import (  # noqa: E402
    TEMPLATE_PARTS,
    Release,
    read_releases,
    write_releases,
)

_DECLARED = {
    "pyproject.toml": r'^version = "([^"]+)"$',
    "src/trtllm_scaffold/__init__.py": r'^__version__ = "([^"]+)"$',
    "CHANGELOG.md": r"^## (\d\S*)",
}
"""Where the version stands: file -> the line that says it."""


def declared_versions(root: Path) -> dict[str, str]:
    """What each file says the version is; empty where it says none."""
    found = {}
    for name, pattern in _DECLARED.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        found[name] = match[1] if match else ""
    return found


def _differing(versions: dict[str, str]) -> str:
    said = ", ".join(f"{name} {version or '-'}" for name, version in versions.items())
    return f"versions differ: {said}" if len(set(versions.values())) > 1 else ""


def _unreleased(root: Path, version: str) -> str:
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    called = f"CHANGELOG.md calls {version} unreleased; date it, and commit"
    return called if f"## {version} (unreleased)" in changes else ""


def problems(root: Path) -> list[str]:
    """Everything in which version, CHANGELOG, releases.json, tags and bundle disagree."""
    releases = read_releases(root)
    found = [_differing(declared_versions(root))]
    for release in releases:
        found.append(_unreleased(root, release.version))
        if not has_commit(root, release.commit):
            found.append(f"{release.tag}: this clone lacks its commit {release.commit}")
        elif (at := _tag(root, release.tag)) not in ("", release.commit):
            found.append(f"the tag {release.tag} is at {at}, the file says {release.commit}")
    return list(filter(None, found)) or _bundle_problems(root, releases)


def _bundle_problems(root: Path, releases: tuple[Release, ...]) -> list[str]:
    """The releases whose template in a bundle built now is not that of their commit."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        build(root, place)
        git("init", "--quiet", "--bare", "clone", cwd=place)
        git("fetch", "--quiet", place / BUNDLE, "refs/tags/*:refs/tags/*", cwd=place / "clone")
        return [
            f"{release.tag}: the bundle's template is not that of {release.commit}"
            for release in releases
            if _trees(place / "clone", release.tag) != _trees(root, release.commit)
        ]


def _trees(repository: Path, commit: str) -> str:
    return text("rev-parse", *(f"{commit}:{part}" for part in TEMPLATE_PARTS), cwd=repository)


def _tag(root: Path, tag: str) -> str:
    try:
        return text("rev-parse", "--verify", "--quiet", f"{tag}^{{commit}}", cwd=root)
    except GitFailed:
        return ""


def cut(root: Path) -> Release:
    """Names HEAD as the release of the declared version, and tags it.

    Raises:
        ScaffoldError: Versions disagree, the tree is not clean, or the release exists.
    """
    versions = declared_versions(root)
    version = versions["pyproject.toml"]
    releases = read_releases(root)
    problem = _differing(versions) or _unreleased(root, version)
    if version in {release.version for release in releases}:
        problem = f"{version} is released already; set the next version first"
    elif not problem and text("status", "--porcelain", cwd=root):
        problem = "the tree has changes; commit them first"
    if problem:
        raise ScaffoldError(problem)
    release = Release(version, text("rev-parse", "HEAD", cwd=root))
    write_releases(root, (*releases, release))
    make_tags(root)
    return release


def main(arguments: list[str]) -> int:
    """Run one of the three commands."""
    if arguments == ["check"]:
        found = problems(ROOT)
        print("\n".join(found) or f"all agree; the template here is {checkout_version(ROOT)}")
        return 1 if found else 0
    if arguments == ["cut"]:
        print(f"{cut(ROOT).tag} is named and tagged; now commit releases.json")
        return 0
    if arguments == ["tags"]:
        print("made: " + (", ".join(make_tags(ROOT)) or "none, all are there"))
        return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ScaffoldError as error:
        sys.exit(f"error: {error}")
