"""Releases: the file, the tags, the bundle, and the version that a checkout gives its ports."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from template_releases import ROOT, commit, edit, git, make_repository

from trtllm_scaffold.errors import EnvironmentProblem, InputError, ScaffoldError
from trtllm_scaffold.lifecycle.bundle import (
    BUNDLE,
    build,
    checkout_version,
    is_checkout,
    make_tags,
    stage,
)
from trtllm_scaffold.lifecycle.history import open_history
from trtllm_scaffold.lifecycle.merge import read_tree
from trtllm_scaffold.lifecycle.releases import parse_version, read_releases


def digest(root: Path, dest: Path) -> str:
    dest.mkdir()
    build(root, dest)
    return hashlib.sha256((dest / BUNDLE).read_bytes()).hexdigest()


def test_two_builds_and_a_clone_without_tags_give_the_same_bundle(
    root: Path, tmp_path: Path
) -> None:
    git("clone", "--quiet", "--no-tags", root, tmp_path / "clone", cwd=tmp_path)
    git("gc", "--quiet", "--aggressive", cwd=tmp_path / "clone")
    assert git("tag", cwd=tmp_path / "clone") == ""
    digests = {digest(place, tmp_path / name) for name, place in (("a", root), ("b", root))}
    assert digests | {digest(tmp_path / "clone", tmp_path / "c")} == digests
    assert len(digests) == 1

    assert make_tags(tmp_path / "clone") == ("v0.1.0", "v0.2.0")
    assert git("rev-parse", "v0.1.0", cwd=root) == git(
        "rev-parse", "v0.1.0", cwd=tmp_path / "clone"
    )
    assert make_tags(tmp_path / "clone") == ()
    git("tag", "--force", "v0.2.0", "v0.1.0", cwd=tmp_path / "clone")
    with pytest.raises(ScaffoldError, match="v0.2.0 is at"):
        make_tags(tmp_path / "clone")


def test_a_bundle_gives_the_templates_that_the_checkout_has(root: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "wheel"
    wheel.mkdir()
    stage(root, wheel)
    build(root, wheel)
    for version in ("v0.1.0", "v0.2.0", None):
        trees = []
        for place in (root, wheel):
            with open_history(place) as history, history.template(version) as template:
                assert history.current == "v0.2.0"
                trees.append(read_tree(template))
        assert trees[0] == trees[1]
        assert ("template/docs/notes.md.jinja" in trees[0]) == (version != "v0.1.0")
    (wheel / BUNDLE).unlink()
    with pytest.raises(EnvironmentProblem, match="no template history"), open_history(wheel):
        pass


def test_the_version_of_a_checkout(root: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git("clone", "--quiet", root, clone, cwd=tmp_path)
    assert checkout_version(clone) == "v0.2.0"
    edit(clone / "README.md", lambda text: text + "Not of the template.\n")
    assert checkout_version(clone) == "v0.2.0"
    commit(clone)
    assert checkout_version(clone) == "v0.2.0"
    edit(clone / "template/README.md.jinja", lambda text: text + "Of it.\n")
    assert checkout_version(clone).endswith("-dirty")
    head = commit(clone)
    assert checkout_version(clone) == f"v0.2.0-3-g{head[:12]}"
    with open_history(clone) as history:
        assert history.find(f"v0.2.0-3-g{head[:12]}") == head[:12]
        assert history.find(head[:8]) == head[:8]
        for lost in ("v0.2.0-3-g0123456789ab", "v0.2.0-1-g0123456-dirty", "--upload-pack=x", "v0"):
            with pytest.raises(InputError, match="cannot be had"):
                history.find(lost)
    (tmp_path / "copier.yml").write_text("")
    assert is_checkout(clone) and not is_checkout(clone / "template") and not is_checkout(tmp_path)


def test_versions_are_ordered() -> None:
    rising = ["v0.0.0-7-g0123456", "v0.1.0", "v0.1.0-2-gabcdef0", "v0.1.0-10-gabcdef0", "v0.10.0"]
    orders = [parse_version(text).order for text in rising]
    assert orders == sorted(orders) and len(set(orders)) == len(orders)
    for text in ("0.1.0", "v1", "v1.2.3 ", "v1.2.3-1", "v1.2.3\n", "HEAD", "v1.2.3-1-gxyz"):
        assert parse_version(text) is None


def test_a_malformed_file_of_releases(tmp_path: Path) -> None:
    assert read_releases(tmp_path) == ()
    row = {"version": "0.1.0", "commit": "0" * 40}
    for rows, problem in (
        ({}, "a list"),
        ([{"version": "0.1"}], "of the form"),
        ([row | {"commit": "HEAD"}], "full hash"),
        ([row, row], "must rise"),
    ):
        (tmp_path / "releases.json").write_text(json.dumps(rows))
        with pytest.raises(InputError, match=problem):
            read_releases(tmp_path)


def test_a_shallow_clone_says_what_it_lacks(root: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git("clone", "--quiet", "--depth=1", f"file://{root}", clone, cwd=tmp_path)
    with pytest.raises(EnvironmentProblem, match="lacks .* v0.1.0"):
        build(clone, tmp_path)


def test_the_release_script(tmp_path: Path) -> None:
    def script(command: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, clone / "tools/release.py", command]
        return subprocess.run(arguments, capture_output=True, text=True)

    clone = tmp_path / "clone"
    make_repository(clone, source=True, releases=False)
    heading = re.compile(r"^## \d.*$", re.MULTILINE)
    edit(clone / "CHANGELOG.md", lambda text: heading.sub("## 0.1.0 (unreleased)", text, count=1))
    declared = re.compile(r'^((?:__)?version(?:__)? = )".*"$', re.MULTILINE)
    for name in ("pyproject.toml", "src/trtllm_scaffold/__init__.py"):
        edit(clone / name, lambda text: declared.sub(r'\1"0.1.0"', text))
    assert "unreleased; date it" in script("cut").stderr
    edit(clone / "CHANGELOG.md", lambda text: text.replace(" (unreleased)", " (2030-01-01)"))
    assert "commit them first" in script("cut").stderr
    commit(clone)
    assert "v0.1.0 is named" in script("cut").stdout
    commit(clone)
    assert script("check").stdout == "all agree; the template here is v0.1.0\n"
    assert "released already" in script("cut").stderr
    edit(clone / "pyproject.toml", lambda text: text.replace('"0.1.0"', '"0.2.0"'))
    git("tag", "--force", "v0.1.0", "HEAD", cwd=clone)
    found = script("check")
    assert found.returncode == 1
    assert "versions differ" in found.stdout and "the tag v0.1.0 is at" in found.stdout


def test_this_repository_agrees_with_itself() -> None:
    if not is_checkout(ROOT):
        pytest.skip("not a git clone")
    done = subprocess.run(
        [sys.executable, ROOT / "tools/release.py", "check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
