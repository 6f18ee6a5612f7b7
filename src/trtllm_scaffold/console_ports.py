"""What `diff`, `update` and `adopt` print: a patch, a diffstat, conflicts and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from trtllm_scaffold.console import DONE, print_json
from trtllm_scaffold.errors import UpdateConflict
from trtllm_scaffold.lifecycle.merge import Kind
from trtllm_scaffold.terminal import clean, paint, table, write

Document = Mapping[str, Any]

_COLOURS = {"+": "passed", "-": "failed", "@": "dim"}


def print_diff(document: Document, as_json: bool) -> int:
    """Print the patch on stdout, and on stderr what it comes to."""
    if as_json:
        print_json(document)
        return DONE
    for line in document["diff"].splitlines():
        write(paint(_line(line), _COLOURS.get(line[:1], ""), sys.stdout), sys.stdout)
    write(_summary(document), sys.stderr)
    for path in document["conflicts"]:
        write(f"would conflict: {clean(path)}", sys.stderr)
    for path in document["edited_and_dropped"]:
        write(f"edited by you and dropped by the template: {clean(path)}", sys.stderr)
    return DONE


def _line(text: str) -> str:
    """A line of a patch as it is, but for what would steer a terminal."""
    return "".join(char if char.isprintable() or char == "\t" else "?" for char in text)


def print_stats(document: Document, as_json: bool) -> None:
    """Print the diffstat of an update that is about to be applied."""
    if as_json:
        return
    rows = [
        (file["path"], file["change"], f"+{file['added']} -{file['removed']}")
        for file in document["files"]
    ]
    table(rows, indent=2)
    write(_summary(document), sys.stdout)


def print_update(document: Document, as_json: bool) -> int:
    """Print what an applied update left to do; conflicts are exit code 6."""
    conflicts = document["conflicts"]
    if as_json:
        print_json(document)
    elif conflicts:
        write("", sys.stdout)
        table([("conflict", path) for path in conflicts])
        table([("next", "resolve the <<<<<<< markers, then git add and commit")])
    elif document["files"]:
        port = clean(document["port"])
        next_steps = f"trtllm-scaffold check {port} && trtllm-scaffold prove {port}; then commit"
        table([("next", next_steps)])
    return UpdateConflict.exit_code if conflicts else DONE


def print_adoption(document: Document, as_json: bool) -> int:
    """Print what render an adopted port now counts as an edit of."""
    if as_json:
        print_json(document)
        return DONE
    near = f"{document['template']} for TensorRT-LLM {document['trtllm']}"
    rows = [("port", document["port"]), ("nearest", near)]
    rows.append(("agrees in", f"{document['share']:.1%} of the package's lines"))
    table([*rows, ("written", ", ".join(document["written"]))])
    edits = document["differences"]
    table([("edited", each["path"], _edit(each)) for each in edits], indent=2)
    table([("next", "commit, then trtllm-scaffold diff PORT")])
    return DONE


def _edit(difference: Document) -> str:
    return "missing" if difference["missing"] else f"{difference['lines']} lines"


def _summary(document: Document) -> str:
    template, trtllm = document["template"], document["trtllm"]
    parts = []
    if template["before"] != template["after"]:
        parts.append(f"template {clean(template['before'])} -> {clean(template['after'])}")
    if trtllm["before"] != trtllm["after"]:
        parts.append(f"TensorRT-LLM {trtllm['before']} -> {trtllm['after']}")
    files = [file for file in document["files"] if file["change"] != Kind.absent.value]
    if not files:
        parts.append(f"nothing to change: the port is what {clean(template['after'])} makes today")
    else:
        added = sum(file["added"] for file in files)
        removed = sum(file["removed"] for file in files)
        many = f"{len(files)} files change" if len(files) > 1 else "1 file changes"
        parts.append(f"{many}, {added} lines added, {removed} removed")
    return "; ".join(parts)
