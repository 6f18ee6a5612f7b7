"""Whether a port's template is the one in use; cheap enough for every `check`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trtllm_scaffold.lifecycle.history import current_version, template_root
from trtllm_scaffold.lifecycle.record import ANSWERS
from trtllm_scaffold.lifecycle.releases import parse_version

_COMMIT = re.compile(r"^_commit: *['\"]?([^\s'\"]{1,200})['\"]? *$", re.MULTILINE)
_HEAD = 4096
"""Characters in which copier writes it: the keys are sorted."""


def template_status(port: Path, root: Path | None = None) -> dict[str, Any] | None:
    """The key `template` of `check --json`; None for a folder without an answers file.

    Args:
        port: The port's folder.
        root: The template in use; by default the installed one.

    Returns:
        `version`, which the port records; `current`, the one in use; and `outdated`, None where
        one of the two is not known.
    """
    if not (port / ANSWERS).is_file():
        return None
    version = recorded_version(port)
    current = current_version(root or template_root())
    return {"version": version, "current": current, "outdated": _outdated(version, current)}


def recorded_version(port: Path) -> str | None:
    """The version in a port's answers file; None without the file, or without a version in it."""
    try:
        with (port / ANSWERS).open(encoding="utf-8", errors="replace") as file:
            found = _COMMIT.search(file.read(_HEAD))
    except OSError:
        return None
    return found[1] if found else None


def _outdated(version: str | None, current: str | None) -> bool | None:
    before, now = parse_version(version or ""), parse_version(current or "")
    if before is None or now is None:
        return None
    return before.text != now.text and before.order <= now.order
