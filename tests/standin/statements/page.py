"""Makes docs/explanation/stand-in-statements.md from the statements and the tests that name them.

Run ``python tests/standin/statements/page.py --write`` after changing either.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from standin.statements import Statement, sections, statements
    from standin.statements.sources import SOURCES
else:
    from . import Statement, sections, statements
    from .sources import SOURCES

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parents[1] / "docs" / "explanation" / "stand-in-statements.md"

INTRODUCTION = """\
# What the stand-in is tested on

One row per statement about TensorRT-LLM that a model file can observe, read from its public
source and documentation, with the test that holds the stand-in to it, or the reason why the
stand-in does not model it. Nothing here was checked by running TensorRT-LLM. A correction says
where the source, read again, shows otherwise than the first reading, or settles a doubt.
"Stored text N" is one stored version of a file whose commit is not known.

This page is generated from `tests/standin/statements` and the tests; do not edit it.
"""


def proofs() -> dict[str, list[str]]:
    """Statement key -> ``file::test`` of the tests that name it in ``@states(...)``."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef):
                continue
            for key in _keys(node):
                name = f"{path.relative_to(TESTS).as_posix()}::{node.name}"
                found.setdefault(key, []).append(name)
    return found


def _keys(node: ast.FunctionDef) -> list[str]:
    return [
        ast.literal_eval(argument)
        for item in node.decorator_list
        if isinstance(item, ast.Call) and getattr(item.func, "id", "") == "states"
        for argument in item.args
    ]


def page() -> str:
    """The text of the page."""
    tests, every = proofs(), statements()
    tested = [item for item in every if item.key in tests]
    corrected = [item for item in every if item.correction]
    lines = [
        INTRODUCTION,
        f"{len(every)} statements: {len(tested)} tested, "
        f"{len(every) - len(tested)} not modelled; {len(corrected)} with a correction.",
    ]
    for section, title in sections().items():
        rows = [item for item in every if item.section == section]
        lines += ["", f"## {section} {title}", ""]
        lines += ["| | Generation | Statement | Source | Test, or why not modelled |"]
        lines += ["| --- | --- | --- | --- | --- |"]
        lines += [_row(item, tests.get(item.key, [])) for item in rows]
    lines += ["", "## Corrections", "", "| | Correction | Read |", "| --- | --- | --- |"]
    lines += [f"| {c.key} | {_cell(c.correction)} | {_cell(c.read)} |" for c in corrected]
    lines += ["", "## Keys of the sources", "", "| Key | NVIDIA/TensorRT-LLM |", "| --- | --- |"]
    lines += [f"| {key} | {_cell(text)} |" for key, text in SOURCES.items()]
    return "\n".join(lines) + "\n"


def _row(item: Statement, tests: list[str]) -> str:
    proof = "<br>".join(f"`{test}`" for test in tests) or f"not modelled: {item.why_not}"
    mark = " (corrected)" if item.correction else ""
    cells = (item.key, item.generation, item.text + mark, item.sources, proof)
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Write the page, or say whether it is up to date."""
    if arguments == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page():
        return 0
    print(f"{PAGE} is out of date: run this with --write", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
