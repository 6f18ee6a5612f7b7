"""Updates: an old port becomes a fresh one, and what its owner did to it survives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sample_specs import SPECS
from template_releases import (
    ROOT,
    commit,
    edit,
    files,
    git,
    make_port,
    plan,
    release,
)

from trtllm_scaffold.errors import InputError, UpdateConflict
from trtllm_scaffold.lifecycle.derive import with_recorded_drops
from trtllm_scaffold.lifecycle.merge import Kind
from trtllm_scaffold.lifecycle.releases import read_releases
from trtllm_scaffold.lifecycle.status import template_status
from trtllm_scaffold.lifecycle.update import apply_update

MOVES = (("1.2", "1.2"), ("1.4", "1.4"), ("1.2", "1.4"))
SAMPLED = (("gemma2", "1.2", "1.4"), ("gpt2", "1.4", "1.4"))
WHOLE = [(name, *move) for name in SPECS for move in MOVES]
SWEEP = WHOLE if os.environ.get("TRTLLM_SCAFFOLD_SWEEP") else SAMPLED
MODELING = "llama_trtllm/modeling_llama.py"


@pytest.fixture(scope="module")
def made(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A port of v0.1.0."""
    return make_port(root, "v0.1.0", "llama", "1.2", tmp_path_factory.mktemp("made") / "port")


@pytest.fixture
def port(made: Path, tmp_path: Path) -> Path:
    """A committed port of v0.1.0, in a folder of a larger repository that has other changes."""
    git("init", "--quiet", "--initial-branch=main", cwd=tmp_path)
    port = shutil.copytree(made, tmp_path / "port")
    commit(port)
    (tmp_path / "elsewhere.txt").write_text("not committed, and not ours\n")
    return port


@pytest.mark.parametrize(("name", "before", "after"), SWEEP, ids=map("-".join, SWEEP))
def test_an_unedited_port_becomes_a_fresh_one(
    root: Path, tmp_path: Path, name: str, before: str, after: str
) -> None:
    port = make_port(root, "v0.1.0", name, before, tmp_path / "port")
    commit(port)
    assert template_status(port, root) == {
        "version": "v0.1.0",
        "current": "v0.2.0",
        "outdated": True,
    }
    made = plan(root, port, name, after)
    assert not made.paths(Kind.conflict)
    apply_update(made)
    fresh = make_port(root, None, name, after, tmp_path / "fresh")
    assert files(port) == files(fresh)
    assert template_status(port, root)["outdated"] is False


@pytest.mark.parametrize("tag", [row.tag for row in read_releases(ROOT)])
def test_a_port_of_every_release_becomes_a_fresh_one(tag: str, tmp_path: Path) -> None:
    """From each real release to the template that lies here; whole with the sweep."""
    cases = SWEEP[:1] if SWEEP is SAMPLED else SWEEP
    for number, (name, before, after) in enumerate(cases):
        port = make_port(ROOT, tag, name, before, tmp_path / f"port-{number}")
        commit(port)
        apply_update(plan(ROOT, port, name, after))
        assert files(port) == files(make_port(ROOT, None, name, after, tmp_path / f"{number}"))


def test_what_only_a_checkpoint_told_is_kept() -> None:
    recorded = {
        "dropped_names": ["a.mask", "a.extra", "w.now_used"],
        "dropped_reasons": ["a mask", "only in the file", "was not needed"],
    }
    today = {
        "dropped_names": ["a.mask"],
        "dropped_reasons": ["mask"],
        "weight_names": ["w.now_used"],
    }
    kept = with_recorded_drops(today, recorded)
    assert kept["dropped_names"] == ["a.mask", "a.extra"]
    assert kept["dropped_reasons"] == ["mask", "only in the file"]


def test_edits_survive(root: Path, port: Path) -> None:
    def body(text: str) -> str:
        start = text.index("        super().__init__(")
        return text[:start] + "        # mine\n" + text[start:]

    edit(port / MODELING, body)
    edit(port / "README.md", lambda text: text.replace("## Test\n", "## Test it\n\nMy words.\n"))
    edit(port / "examples/generate.py", lambda text: text + "\nprint('mine')\n")
    (port / "mine.py").write_text("MINE = 1\n")
    (port / "examples/serve.sh").unlink()
    commit(port)
    before = files(port)

    made = plan(root, port, "llama")
    assert made.paths(Kind.conflict) == made.paths(Kind.doomed) == []
    assert files(port) == before, "a plan writes nothing"
    assert "+# The end of llama." in made.diff and "mine" not in made.diff.replace("  # mine", "")
    apply_update(made)

    modeling = (port / MODELING).read_text()
    assert "        # mine\n" in modeling and modeling.endswith("# The end of llama.\n")
    readme = (port / "README.md").read_text()
    assert readme.startswith("# The port llama_trtllm") and "My words." in readme
    assert "A new end." in readme
    assert (port / "examples/generate.py").read_text().endswith("print('mine')\n")
    assert (port / "mine.py").is_file()
    assert not (port / "examples/serve.sh").exists()
    assert not (port / "examples/bench.sh").exists()
    assert (port / "docs/notes.md").read_text() == "hello from llama_trtllm\n"
    changed = git("status", "--porcelain", ".", cwd=port).splitlines()
    assert sorted(line[:2].strip() for line in changed) == ["??", "D", "M", "M", "M"]


def test_the_patch_is_what_an_update_writes(root: Path, port: Path, tmp_path: Path) -> None:
    made = plan(root, port, "llama")
    patch = tmp_path / "update.patch"
    patch.write_text(made.diff)
    git("apply", "--directory=port", patch, cwd=port.parent)
    by_patch = files(port)
    git("checkout", "--quiet", ".", cwd=port)
    git("clean", "-fdq", ".", cwd=port)
    apply_update(made)
    assert files(port) == by_patch


def test_what_a_merge_cannot_decide(root: Path, port: Path) -> None:
    """Changed by both; edited by the owner and dropped; new from both."""
    edit(port / "README.md", lambda text: text.replace("# llama_trtllm", "# My port"))
    edit(port / "examples/bench.sh", lambda text: text + "# mine\n")
    (port / "docs").mkdir()
    (port / "docs/notes.md").write_text("mine\n")
    commit(port)
    before = files(port)
    made = plan(root, port, "llama")
    document = made.to_json()
    assert document["conflicts"] == ["README.md", "docs/notes.md"]
    assert document["edited_and_dropped"] == ["examples/bench.sh"]
    with pytest.raises(UpdateConflict, match="examples/bench.sh; nothing was written"):
        apply_update(made)
    assert files(port) == before

    apply_update(made, allow_delete=True)
    assert not (port / "examples/bench.sh").exists()
    marked = "<<<<<<< yours\n# My port\n=======\n# The port llama_trtllm\n>>>>>>> v0.2.0\n"
    text = (port / "README.md").read_text()
    assert text.startswith(marked) and "A new end." in text
    assert "mine\n=======\nhello" in (port / "docs/notes.md").read_text()
    status = git("status", "--porcelain", ".", cwd=port)
    assert "UU port/README.md" in status and "AA port/docs/notes.md" in status
    with pytest.raises(InputError, match="not committed: .*README.md"):
        apply_update(made)


def test_derived_files_keep_edits_of_their_owner_too(root: Path, port: Path) -> None:
    edit(port / "checkpoint.json", lambda text: text.replace('"layers": 3', '"layers": 5'))
    commit(port)
    made = plan(root, port, "llama")
    assert "checkpoint.json" not in {change.path for change in made.changes}


def test_a_failure_while_writing_takes_everything_back(root: Path, port: Path) -> None:
    (port / "docs").write_text("a file where the new template has a folder\n")
    commit(port)
    before = files(port)
    with pytest.raises(OSError):
        apply_update(plan(root, port, "llama"))
    assert files(port) == before
    assert git("status", "--porcelain", ".", cwd=port) == ""


def test_nothing_is_written_through_a_link(root: Path, port: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.md"
    outside.write_bytes((port / "README.md").read_bytes())
    (port / "README.md").unlink()
    (port / "README.md").symlink_to(outside)
    commit(port)
    with pytest.raises(InputError, match="README.md is a link"):
        plan(root, port, "llama")


def test_plain_copier_and_this_update_follow_each_other(
    root: Path, port: Path, tmp_path: Path
) -> None:
    """`copier update` from a clone gives the same port, and each goes on where the other ended."""
    clone = tmp_path / "clone"
    git("clone", "--quiet", root, clone, cwd=tmp_path)
    git("clone", "--quiet", port.parent, tmp_path / "theirs", cwd=tmp_path)
    theirs = tmp_path / "theirs" / "port"
    place = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": f"url.{clone}.insteadOf"}
    place["GIT_CONFIG_VALUE_0"] = "https://github.com/trtllm-scaffold/trtllm-scaffold.git"
    place |= {"COPIER_CACHE_DIR": str(tmp_path / "cache"), "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "copier", "update", "--defaults", "--quiet", str(theirs)]
    done = subprocess.run(command, env={**os.environ, **place}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    apply_update(plan(root, port, "llama"))
    assert files(theirs) == files(port)
    commit(theirs)

    edit(clone / "template/README.md.jinja", lambda text: text + "\nOne more.\n")
    release(clone, "0.3.0")
    apply_update(plan(clone, theirs, "llama"))
    assert (theirs / "README.md").read_text().endswith("One more.\n")
    assert template_status(theirs, clone)["version"] == "v0.3.0"
