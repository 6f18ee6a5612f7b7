"""`update` and `diff`: what today's template and inference would change in a port, and doing it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import EnvironmentProblem, InputError, UpdateConflict
from trtllm_scaffold.lifecycle.derive import Deriver
from trtllm_scaffold.lifecycle.diff import Stat, diff_stats, diff_text
from trtllm_scaffold.lifecycle.git import GitFailed, require_git
from trtllm_scaffold.lifecycle.history import History
from trtllm_scaffold.lifecycle.merge import Change, File, Kind, merge_trees, read_files, read_tree
from trtllm_scaffold.lifecycle.record import ANSWERS, Record, read_record
from trtllm_scaffold.lifecycle.releases import parse_version
from trtllm_scaffold.lifecycle.worktree import (
    files_when_recorded,
    mark_conflicts,
    require_clean,
)


@dataclass(frozen=True)
class UpdatePlan:
    """What an update of one port comes to; nothing is written yet.

    Attributes:
        port: The port's folder.
        before, after: The template's version, as recorded and as it is now.
        trtllm: The generation before and after.
        changes: Every file that the update concerns.
    """

    port: Path
    before: str
    after: str
    trtllm: tuple[str, str]
    changes: tuple[Change, ...]

    def paths(self, kind: Kind) -> list[str]:
        """The files to which `kind` happens."""
        return [change.path for change in self.changes if change.kind is kind]

    @property
    def stats(self) -> list[Stat]:
        """Lines added and removed in each file that changes."""
        return diff_stats(self.changes)

    @property
    def diff(self) -> str:
        """The changes as a patch of the port as it is."""
        return diff_text(self.changes)

    def to_json(self) -> dict[str, Any]:
        """The document of `update --json`; `diff --json` has the patch too."""
        lines = {stat.path: stat for stat in self.stats}
        files = [
            {
                "path": change.path,
                "change": change.kind.value,
                "added": lines[change.path].added if change.path in lines else 0,
                "removed": lines[change.path].removed if change.path in lines else 0,
            }
            for change in self.changes
        ]
        return {
            "port": str(self.port),
            "template": {"before": self.before, "after": self.after},
            "trtllm": {"before": self.trtllm[0], "after": self.trtllm[1]},
            "files": files,
            "conflicts": self.paths(Kind.conflict),
            "edited_and_dropped": self.paths(Kind.doomed),
        }


def plan_update(
    port: Path, history: History, derive: Deriver, trtllm: str | None = None
) -> UpdatePlan:
    """Works out the update of a port to the current template and today's inference.

    Args:
        port: The port's folder.
        history: The template's.
        derive: How the port's answers are found today.
        trtllm: The generation to move to; the port's own by default.

    Raises:
        InputError: It is no port, or its template is not in the history, or is newer.
        Refused: Today's inference or the generation cannot express the model.
        EnvironmentProblem: git is absent, or nothing tells which template this is.
    """
    require_git("a merge")
    record = read_record(port)
    version = _version(record, history)
    derived = derive(record, trtllm or record.trtllm)
    _check_names(record, derived.answers)
    old = rendered(history, version, record.answers)
    new = rendered(history, None, derived.answers)
    mine = read_files(record.root, {*old, *new})
    owned = {path: document_file(item) for path, item in derived.owned_files.items()}
    owned.pop("config.json", None)  # what everything is derived from is never written
    mine_owned = read_files(record.root, owned)
    base = {**mine_owned, **files_when_recorded(record.root, owned)}
    after = str(history.current)
    changes = merge_trees(
        {**old, **base}, {**mine, **mine_owned}, {**new, **owned}, (version, after)
    )
    return UpdatePlan(
        record.root,
        version,
        after,
        (record.trtllm, trtllm or record.trtllm),
        tuple(_answers_whole(change) for change in changes),
    )


def _version(record: Record, history: History) -> str:
    """The recorded version, once it is known that its template can be had."""
    if record.version is None:
        raise InputError(
            "the port records no version of its template",
            where=f"{ANSWERS}: _commit",
            hint="`trtllm-scaffold adopt PORT` finds the nearest version",
        )
    if history.current is None:
        raise EnvironmentProblem(
            "nothing tells the version of this installation's template",
            where=str(history.root),
            hint="install trtllm-scaffold from a wheel, or use a git clone of it",
        )
    known = parse_version(record.version)
    if known is not None:
        history.refuse_newer(known)
    history.find(record.version)
    return record.version


def _check_names(record: Record, answers: Mapping[str, Any]) -> None:
    for key in ("name", "package", "class_prefix", "architecture"):
        assert answers[key] == getattr(record, key), f"an update never changes {key}"


def rendered(history: History, version: str | None, answers: Mapping[str, Any]) -> dict[str, File]:
    """The files that the template of `version` (None: now) makes of `answers`.

    Raises:
        InputError: The recorded answers are not what that template was made for.
    """
    from trtllm_scaffold.render import render_from

    with history.template(version) as template, tempfile.TemporaryDirectory() as folder:
        dest = Path(folder).resolve()
        try:
            render_from(template, answers, dest, version or history.current)
        except Exception as error:
            if version is None:
                raise
            raise InputError(
                f"the recorded answers do not fit the template {version}: {error}",
                where=ANSWERS,
                hint=f"restore {ANSWERS} from the port's history",
            ) from error
        return read_tree(dest)


def document_file(item: Any) -> File:
    """A JSON document that the CLI owns, as `new` writes it."""
    return File((json.dumps(item, indent=2) + "\n").encode())


def _answers_whole(change: Change) -> Change:
    """The answers file is the command line's own: it is written, never merged."""
    if change.path != ANSWERS or change.new is None:
        return change
    return Change(change.path, Kind.modified, change.before, change.new, change.old, change.new)


def apply_update(plan: UpdatePlan, *, allow_delete: bool = False) -> None:
    """Writes what `plan` says into the port: all of it, or nothing.

    Raises:
        InputError: The port is not wholly committed.
        UpdateConflict: Files that their owner edited would go, and `allow_delete` is not given.
    """
    require_clean(plan.port)
    doomed = plan.paths(Kind.doomed)
    if doomed and not allow_delete:
        raise UpdateConflict(
            f"the new template drops files that you edited: {', '.join(doomed)}; nothing was "
            "written",
            where=str(plan.port),
            hint="move your edits elsewhere, or give --allow-delete",
        )
    changes = [change for change in plan.changes if change.kind is not Kind.absent]
    _write(plan.port, changes)
    with contextlib.suppress(GitFailed):  # the markers are in the files whatever the index says
        mark_conflicts(plan.port, changes)


def _write(port: Path, changes: Iterable[Change]) -> None:
    done: list[Change] = []
    read_files(port, [change.path for change in changes])  # no link has come into the way
    try:
        for change in changes:
            done.append(change)
            _put(port, change.path, change.after)
    except BaseException:
        for change in reversed(done):
            with contextlib.suppress(OSError):  # the one that failed may have nothing to undo
                _put(port, change.path, change.before)
        raise


def _put(port: Path, name: str, file: File | None) -> None:
    """Writes or removes one file; folders that removal leaves empty go too."""
    path = port / name
    if file is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.trtllm-scaffold")
        try:
            aside.write_bytes(file.content)
            aside.chmod(0o755 if file.executable else 0o644)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        return
    path.unlink(missing_ok=True)
    for folder in path.parents:
        if folder == port or not folder.is_dir() or any(folder.iterdir()):
            return
        folder.rmdir()
