"""What the command line prints: each command's table or JSON document, errors and exit codes."""

from __future__ import annotations

import json
import math
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import EnvironmentProblem, ScaffoldError, UsageError
from trtllm_scaffold.terminal import clean, paint, table, width, wrapped, write

DONE = 0
FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, as shells report it."""

LONGEST_VALUE = 60
"""Characters of a value in the evidence table; `--json` has it whole."""

_SHORTER = {
    "hidden_size": "hidden",
    "intermediate_size": "width",
    "max_position_embeddings": "positions",
    "num_attention_heads": "heads",
    "num_hidden_layers": "layers",
    "num_key_value_heads": "kv heads",
    "vocab_size": "vocabulary",
}
"""Names that a table shortens."""

Document = Mapping[str, Any]


def progress(message: str) -> None:
    """Print one line about work under way on stderr."""
    write(paint(f"  {clean(message)}", "dim", sys.stderr), sys.stderr)


def print_json(document: Document) -> None:
    """Print one JSON document on stdout; infinities and NaN become text, as JSON has none."""
    write(json.dumps(_plain(document), indent=2, allow_nan=False), sys.stdout)


def _plain(value: Any) -> Any:
    """Return `value` with only the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, str | int | None) else str(value)


def fail(error: ScaffoldError, as_json: bool) -> int:
    """Print an error and return its exit code.

    With `as_json` it is a document on stdout. Otherwise it goes to stderr: in one line, or on a
    terminal in one line each for the problem, the place and the advice.
    """
    message, where, hint = clean(error.message), clean(error.where), clean(error.hint)
    if as_json:
        fields = {"kind": error.kind, "message": message, "where": where, "hint": hint}
        print_json({"error": fields})
        return error.exit_code
    parts = {"error": message, "where": where, "hint": hint}
    lines = {label: text for label, text in parts.items() if text}
    if not sys.stderr.isatty():
        write("; ".join(f"{label}: {text}" for label, text in lines.items()), sys.stderr)
        return error.exit_code
    for label, text in lines.items():
        body = ("\n" + " " * 7).join(wrapped(text, width(sys.stderr) - 7))
        write(f"{paint(f'{label}:'.ljust(6), label, sys.stderr)} {body}", sys.stderr)
    return error.exit_code


def usage(error: Any, as_json: bool) -> int:
    """Print what the command line's parser objects to."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "trtllm-scaffold"
    if type(error).__name__ == "NoArgsIsHelpError" and context and not as_json:
        write(context.get_help(), sys.stderr)
        return UsageError.exit_code
    return fail(UsageError(error.format_message(), hint=f"see `{command} --help`"), as_json)


def reader_gone() -> int:
    """Leave quietly when the reader of stdout has gone, as in `... | head`."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED


def unexpected(error: Exception) -> ScaffoldError:
    """Return what to tell the user about an exception that nothing foresaw."""
    if isinstance(error, ImportError) and not (error.name or "").startswith("trtllm_scaffold"):
        hint = "see `trtllm-scaffold doctor`"
        return EnvironmentProblem(f"a package cannot be imported: {error}", hint=hint)
    if isinstance(error, OSError) and error.strerror:
        return EnvironmentProblem(error.strerror, where=str(error.filename or ""))
    return ScaffoldError(
        f"unexpected {type(error).__name__}: {error}",
        hint="this is a bug in trtllm-scaffold: please report it with this line "
        "(TRTLLM_SCAFFOLD_DEBUG=1 shows the traceback)",
    )


def print_inspection(document: Document, as_json: bool, explain: bool) -> int:
    """Print what a model is, its support per generation and, if asked, the evidence."""
    if as_json:
        print_json(document)
        return DONE
    model = document["model"]
    names = (model.get("id") or model.get("source"), model["model_type"], model["architecture"])
    write("  ".join(clean(name) for name in names) + "\n", sys.stdout)
    table(_spec_rows(document["spec"]), indent=2)
    write("", sys.stdout)
    support = document["support"].items()
    rows = [(f"TensorRT-LLM {name}", *_support(level)) for name, level in support]
    rows += [(*row, "") for row in _text_only(document)]
    table([("facts", "traced" if document["proven"] else "unproven", ""), *rows], indent=2)
    if explain:
        write("", sys.stdout)
        table(_evidence_rows(document), ("fact", "value", "witness", "where"))
    return DONE


def _spec_rows(spec: Document) -> list[tuple[str, str]]:
    """Return one row for all plain sizes, then one for each axis."""
    sizes = {key: value for key, value in spec.items() if isinstance(value, str | int | float)}
    rows = [("sizes", _axis(sizes))] if sizes else []
    rows += [
        (_words(key), _axis(value) or "plain") for key, value in spec.items() if key not in sizes
    ]
    return rows


def _evidence_rows(document: Document) -> list[tuple[str, str, str, str]]:
    """Return the witnesses of each fact; the fact is named once, the source file not at all."""
    rows = []
    source = f"{document['model'].get('source')}: "
    for fact, entries in sorted(document["evidence"].items()):
        for number, entry in enumerate(entries):
            where = str(entry["where"]).removeprefix(source)
            value = textwrap.shorten(_value(entry["value"]), LONGEST_VALUE, placeholder=" ...")
            rows.append((fact if number == 0 else "", value, str(entry["witness"]), where))
    return rows


def print_new(document: Document, dry: Sequence[str], as_json: bool, must_pass: bool) -> int:
    """Print what `new` wrote, its support, its checks and the next steps.

    Args:
        document: `NewResult.to_json()`.
        dry: The files of a dry run, which would have been written; empty otherwise.
        as_json: Print the document itself.
        must_pass: A proof was asked for, so that anything but a pass is a failure.
    """
    failed = any(check["status"] == "failed" for check in document["checks"])
    code = FAILED if failed or (must_pass and not document["passed"]) else DONE
    if as_json:
        print_json(document)
        return code
    port = clean(document["port"])
    absent = "dry run" if dry else "a check failed" if code == FAILED else ""
    rows = [("port", f"{port} (not written: {absent})" if absent else port)]
    support = ": ".join(filter(None, _support(document["support"])))
    rows += [("package", str(document["package"])), ("support", support)]
    table([*rows, *_text_only(document)])
    if document["checks"]:
        write("", sys.stdout)
        _check_table(document["checks"])
    if dry:
        write("", sys.stdout)
        table([(name,) for name in dry], indent=2)
    elif not absent:
        write("", sys.stdout)
        first = f"cd {port} && pytest" if document["passed"] else f"trtllm-scaffold prove {port}"
        rows = [("next", first), ("", f"read {port}/README.md")]
        if "patch" in document:
            rows.append(("in tree", f"git apply {clean(document['patch'])}"))
        table(rows)
    return code


def print_checks(
    port: Path, checks: Sequence[Document], as_json: bool, template: Document | None = None
) -> int:
    """Print the result of `check`, and whether the port's template is outdated."""
    failed = any(check["status"] == "failed" for check in checks)
    passed = not failed and any(check["status"] == "passed" for check in checks)
    if as_json:
        document = {"port": str(port), "checks": checks, "passed": passed}
        print_json(document if template is None else {**document, "template": template})
    else:
        _check_table(checks)
        _verdict(passed)
        if template is not None and template["outdated"]:
            age = f"{template['version']}; {template['current']} is here"
            table([("outdated", f"made by template {age}: trtllm-scaffold update {port}")])
    return DONE if passed else FAILED


def print_proof(document: Document, as_json: bool) -> int:
    """Print the result of `prove`."""
    if as_json:
        print_json(document)
    else:
        runtime, reference = document["runtime"], document["reference"]
        table(
            [
                ("runtime", f"{runtime['name']} {runtime['version']} on {document['device']}"),
                ("reference", _value(reference)),
            ]
        )
        write("", sys.stdout)
        _check_table(document["checks"])
        _verdict(document["passed"])
    return DONE if document["passed"] else FAILED


def print_zoo(document: Document, as_json: bool) -> int:
    """Print the scoreboard; an entry that failed a check, or crashed, is a failure."""
    if as_json:
        print_json(document)
    else:
        rows = [
            (entry["name"], entry["category"], entry["status"], entry["level"], entry["reason"])
            for entry in document["entries"]
        ]
        table(rows, ("entry", "category", "outcome", "level", "why"))
        counts = ", ".join(f"{count} {status}" for status, count in document["counts"].items())
        write(f"\n{counts or 'no entries'}", sys.stdout)
    return FAILED if {"failed", "error"} & set(document["counts"]) else DONE


def print_doctor(document: Document, as_json: bool) -> int:
    """Print what is installed, which runtime will be used, and what is missing."""
    if as_json:
        print_json(document)
    else:
        rows = [(item["name"], item["status"], item["detail"]) for item in document["found"]]
        table(rows, ("what", "status", "detail"))
        write("", sys.stdout)
        runtime = document["runtime"]
        table([("runtime", f"{runtime['name']}: {runtime['why']}")])
        table([("to do", item["do"]) for item in document["missing"]])
    return DONE if document["ok"] else EnvironmentProblem.exit_code


def _check_table(checks: Sequence[Document]) -> None:
    rows = [(check["name"], check["status"], _measured(check)) for check in checks]
    table(rows, ("check", "result", "measured"))


def _verdict(passed: bool) -> None:
    word = "passed" if passed else "failed"
    write("\n" + paint(word, word, sys.stdout), sys.stdout)


def _text_only(document: Document) -> list[tuple[str, str]]:
    """Return the row that says what a port of a text decoder leaves out."""
    return [("text only", clean(document["text_only"]))] if "text_only" in document else []


def _support(support: Document) -> tuple[str, str]:
    """Return a support level and what it rests on."""
    return support["level"], "; ".join(map(str, support["because"]))


def _measured(check: Document) -> str:
    """Describe a check's figures, each with its bound, and then its reason.

    Break-downs of a check that passed are left to `--json`.
    """
    measured, bound = check.get("measured") or {}, check.get("bound") or {}
    passed = check["status"] == "passed"
    figures = []
    for key, value in measured.items():
        if passed and isinstance(value, Mapping | list | tuple) and key not in bound:
            continue
        limit = f" (bound {_value(bound[key])})" if key in bound else ""
        figures.append(f"{_words(key)} {_value(value)}{limit}")
    if not passed:
        alone = (key for key in bound if key not in measured)
        figures += [f"bound {_words(key)} {_value(bound[key])}" for key in alone]
    return "; ".join(filter(None, (", ".join(figures), str(check.get("reason") or ""))))


def _words(key: object) -> str:
    return _SHORTER.get(str(key)) or str(key).replace("_", " ")


def _value(value: Any) -> str:
    """Return a short form of a JSON value for a table cell."""
    if value is None or isinstance(value, bool):
        return "none" if value is None else "yes" if value else "no"
    if isinstance(value, float):
        whole = value.is_integer() and abs(value) < 1e15
        return str(int(value)) if whole else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(key)} {_value(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        text = ", ".join(_value(item) for item in value[:6]) or "none"
        return text if len(value) <= 6 else f"{text}, ... ({len(value)} in all)"
    return str(value)


def _axis(value: Any) -> str:
    """Describe one axis of a spec: its kind first, then whatever it has."""
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        return " | ".join(_axis(item) for item in value)
    if not isinstance(value, Mapping):
        return _value(value)
    parts = [_value(value["kind"])] if "kind" in value else []
    for key, item in value.items():
        if key == "kind" or item is None or item is False or item in ("", [], (), {}):
            continue
        nested = _axis(item) if isinstance(item, Mapping) else ""
        if item is True:
            parts.append(_words(key))
        elif nested or not isinstance(item, Mapping):
            parts.append(f"{_words(key)} " + (f"({nested})" if nested else _value(item)))
    return ", ".join(parts)
