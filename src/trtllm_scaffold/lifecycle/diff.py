"""Changes of files as a patch and as counted lines, by git."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trtllm_scaffold.lifecycle.git import git
from trtllm_scaffold.lifecycle.merge import Change, File

_COMPARE = ("-c", "core.quotePath=false", "diff", "--no-index", "--no-renames", "--no-color")


@dataclass(frozen=True)
class Stat:
    """How many lines one file gains and loses."""

    path: str
    added: int
    removed: int


@contextmanager
def _two_folders(changes: Iterable[Change]) -> Iterator[Path]:
    """A folder with `a`, the files before, and `b`, the files after."""
    with tempfile.TemporaryDirectory(prefix="trtllm-scaffold-diff-") as folder:
        place = Path(folder).resolve()
        for side in "ab":
            (place / side).mkdir()
        for change in changes:
            _write(place / "a" / change.path, change.before)
            _write(place / "b" / change.path, change.after)
        yield place


def _write(path: Path, file: File | None) -> None:
    if file is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.content)
        path.chmod(0o755 if file.executable else 0o644)


def diff_text(changes: Iterable[Change]) -> str:
    """A unified diff that `git apply` takes inside the port; empty where nothing changes."""
    with _two_folders(changes) as place:
        patch = git(*_COMPARE, "--no-prefix", "a", "b", cwd=place, expect=(0, 1))
    return patch.decode("utf-8", "replace")


def diff_stats(changes: Iterable[Change]) -> list[Stat]:
    """The counted lines of every file that differs, by path."""
    with _two_folders(changes) as place:
        # With -z a file is "added TAB removed TAB", then both its names.
        out = git(*_COMPARE, "--numstat", "-z", "a", "b", cwd=place, expect=(0, 1))
    fields = iter(out.decode("utf-8", "replace").split("\0"))
    stats = []
    for counts in fields:
        if not counts:
            continue
        added, removed = (int(count) if count.isdigit() else 0 for count in counts.split("\t")[:2])
        names = [name for name in (next(fields), next(fields)) if name != "/dev/null"]
        stats.append(Stat(names[-1].split("/", 1)[1], added, removed))
    return sorted(stats, key=lambda stat: stat.path)
