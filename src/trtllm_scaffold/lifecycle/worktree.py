"""The owner's git repository around a port: whether it is clean, its past, its conflicts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.lifecycle.git import GitFailed, git, require_git, text
from trtllm_scaffold.lifecycle.merge import Change, File, Kind
from trtllm_scaffold.lifecycle.record import ANSWERS

_COMMIT = "git init; git add -A; git commit -m 'Port'"


def require_clean(port: Path) -> None:
    """Raises unless the port is wholly committed, so that git can undo an update.

    Other folders of the same repository may have changes.

    Raises:
        EnvironmentProblem: git is absent.
        InputError: The port is in no repository, is not committed, or has changes.
    """
    require_git("update")
    try:
        tracked = text("ls-files", "--", ANSWERS, cwd=port, user=True)
        prefix = text("rev-parse", "--show-prefix", cwd=port, user=True)
        changed = git("status", "--porcelain", "-z", "--", ".", cwd=port, user=True)
    except GitFailed as error:
        reason = "not in a git repository" if "not a git repo" in str(error) else str(error)
        raise InputError(
            f"the port is {reason}; git is how an update can be undone",
            where=str(port),
            hint=f"cd {port} && {_COMMIT}",
        ) from error
    entries = [entry[3:].decode("utf-8", "replace") for entry in changed.split(b"\0") if entry]
    names = [entry.removeprefix(prefix) or "all of it" for entry in entries]
    if names:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        raise InputError(
            f"the port has changes that are not committed: {shown}",
            where=str(port),
            hint="commit or stash them",
        )
    if not tracked:
        raise InputError(
            f"the port is not committed: git does not track its {ANSWERS}",
            where=str(port),
            hint="git add --force it, and commit",
        )


def files_when_recorded(port: Path, paths: Iterable[str]) -> dict[str, File]:
    """Those of `paths` in the commit that wrote the answers file last; none outside git.

    The command line writes both together, so these are the files as it wrote them.
    """
    try:
        commit = text("log", "-1", "--format=%H", "--", ANSWERS, cwd=port, user=True)
    except GitFailed:
        return {}
    found = {}
    for path in paths if commit else ():
        try:
            found[path] = File(git("show", f"{commit}:./{path}", cwd=port, user=True))
        except GitFailed:
            continue
    return found


def mark_conflicts(port: Path, changes: Iterable[Change]) -> None:
    """Marks conflicts in git's index, so that they cannot be committed by mistake."""
    prefix = text("rev-parse", "--show-prefix", cwd=port, user=True)
    lines = []
    for change in changes:
        if change.kind is not Kind.conflict:
            continue
        path = prefix + change.path
        lines.append(f"0 {'0' * 40}\t{path}")
        for stage, file in enumerate((change.old, change.before, change.new), start=1):
            if file is not None:
                blob = git("hash-object", "-w", "--stdin", cwd=port, input=file.content, user=True)
                mode = "100755" if file.executable else "100644"
                lines.append(f"{mode} {blob.decode().strip()} {stage}\t{path}")
    if lines:
        entries = ("\n".join(lines) + "\n").encode()
        git("update-index", "--index-info", cwd=port, input=entries, user=True)
