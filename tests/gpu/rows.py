"""What the GPU suite measured: one JSON document, and a table at the end of the run."""

from __future__ import annotations

import datetime
import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_WIDTH = 12


@dataclass(frozen=True)
class Row:
    """One test.

    Attributes:
        port: The family.
        generation: TensorRT-LLM's, as the stand-in plays it.
        check: What was checked.
        measured: Figures by name.
        bound: What the figures of the same name must not exceed.
        outcome: ``passed``, ``failed``, ``skipped`` or ``expected failure``.
        seconds: Of the test, with what it was the first to build.
        reason: Why it did not pass.
    """

    port: str
    generation: str
    check: str
    measured: dict[str, Any]
    bound: dict[str, Any]
    outcome: str
    seconds: float
    reason: str = ""


def row_of(report: Any) -> Row | None:
    """The row of a finished test; None of a part of it that says nothing, or of another test."""
    facts = dict(report.user_properties).get("gpu")
    if facts is None or (report.when != "call" and report.passed):
        return None
    outcome = report.outcome
    reason = "" if report.passed else _reason(report)
    if hasattr(report, "wasxfail"):
        outcome, reason = "expected failure", str(report.wasxfail)
    return Row(**facts, outcome=outcome, seconds=round(report.duration, 2), reason=reason)


def _reason(report: Any) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2])
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr)[:2000]


def machine(device: str) -> dict[str, Any]:
    """Where and with what the rows were measured."""
    import torch
    import transformers

    found: dict[str, Any] = {
        "machine": platform.platform(),
        "device": "cpu (dry run)",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m pytest", *sys.argv[1:]]),
    }
    if device == "cuda":
        found["device"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
        found["driver"] = _driver()
    return found


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip().splitlines()[0]


def write_json(path: Path, device: str, rows: list[Row], seconds: float) -> None:
    """One document: the machine, then the rows."""
    document = {
        **machine(device),
        "seconds": round(seconds, 1),
        "rows": [asdict(row) for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def table(rows: list[Row]) -> list[str]:
    """For each generation a table, a line per check and a column per port."""
    lines: list[str] = []
    checks = list(dict.fromkeys(row.check for row in rows))
    for generation in dict.fromkeys(row.generation for row in rows):
        cells = {(row.check, row.port): _cell(row) for row in rows if row.generation == generation}
        ports = list(dict.fromkeys(port for _, port in cells))
        lines.append(f"{generation:20}" + "".join(f"{port:>{_WIDTH}}" for port in ports))
        for check in checks:
            found = [cells.get((check, port), "-") for port in ports]
            lines.append(f"{check:20}" + "".join(f"{cell:>{_WIDTH}}" for cell in found))
        lines.append("")
    return lines


def _cell(row: Row) -> str:
    """The figure that is bounded; a capital word where something failed."""
    word = {"passed": "", "expected failure": "expected"}.get(row.outcome, row.outcome.upper())
    name = next(iter(row.bound), None)
    if row.outcome == "expected failure" or name not in row.measured:
        return word or "ok"
    value = row.measured[name]
    figure = f"{value:.2f}" if 0.01 <= value < 100 else f"{value:.0e}"
    return f"{word[:4]} {figure}".strip()
