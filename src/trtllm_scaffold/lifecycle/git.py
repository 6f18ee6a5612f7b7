"""Runs git the same way on every machine: no user configuration, no prompts, no surroundings."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Container, Mapping
from pathlib import Path

from trtllm_scaffold.errors import EnvironmentProblem

#: Variables that point git elsewhere than the folder it is run in, as inside a git hook.
_ELSEWHERE = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_PREFIX",
    "GIT_COMMON_DIR",
)
#: A repository's own configuration names programs to run; none is needed here.
_INERT = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
_NEUTRAL = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C",
}


class GitFailed(Exception):
    """git ran and reported an error; holds what it printed, on one line."""


def has_git() -> bool:
    """Whether git can be run at all."""
    return shutil.which("git") is not None


def require_git(purpose: str) -> None:
    """Raises EnvironmentProblem where git is absent; `purpose` says what needs it."""
    if not has_git():
        raise EnvironmentProblem(
            f"git is not installed, and {purpose} needs it", hint="install git, and see `doctor`"
        )


def git(
    *arguments: str | Path,
    cwd: Path,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    user: bool = False,
    expect: Container[int] = (0,),
) -> bytes:
    """Runs git in `cwd` and returns its standard output; see `run_git`."""
    return run_git(*arguments, cwd=cwd, input=input, env=env, user=user, expect=expect).stdout


def run_git(
    *arguments: str | Path,
    cwd: Path,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    user: bool = False,
    expect: Container[int] = (0,),
) -> subprocess.CompletedProcess[bytes]:
    """Runs git in `cwd`.

    Args:
        arguments: The subcommand and its arguments.
        cwd: The folder to run in.
        input: What its standard input holds.
        env: More variables.
        user: Reads the user's configuration: for the user's own repository (its ignore rules, its
            list of safe folders).
        expect: Exit codes that are no error.

    Raises:
        GitFailed: It left with another exit code.
    """
    base = {key: value for key, value in os.environ.items() if key not in _ELSEWHERE}
    neutral = _NEUTRAL if not user else {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    if not user:
        neutral = {**neutral, "GIT_CONFIG_GLOBAL": os.devnull}
    result = subprocess.run(
        ["git", *_INERT, *map(str, arguments)],
        cwd=cwd,
        input=input,
        stdin=subprocess.DEVNULL if input is None else None,
        capture_output=True,
        env={**base, **neutral, **(env or {})},
        check=False,
    )
    if result.returncode not in expect:
        said = (result.stderr or result.stdout).decode("utf-8", "replace")
        raise GitFailed(" ".join(said.split())[:400] or f"exit code {result.returncode}")
    return result


def text(*arguments: str | Path, cwd: Path, user: bool = False) -> str:
    """Standard output of `git` as stripped text."""
    return git(*arguments, cwd=cwd, user=user).decode("utf-8", "surrogateescape").strip()
