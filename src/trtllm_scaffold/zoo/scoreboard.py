"""Zoo outcomes -> the scoreboard: a JSON document, and a Markdown page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trtllm_scaffold.zoo.run import Outcome


def to_json(outcomes: Sequence[Outcome], trtllm: str) -> dict[str, Any]:
    """The document of ``zoo --json``."""
    return {
        "trtllm": trtllm,
        "counts": dict(Counter(outcome.status for outcome in outcomes)),
        "entries": [
            {
                "name": outcome.name,
                "category": outcome.category,
                "status": outcome.status,
                "level": outcome.level,
                "axis": outcome.axis,
                "reason": outcome.reason,
                "seconds": outcome.seconds,
                "checks": list(outcome.checks),
            }
            for outcome in outcomes
        ],
    }


_HEADER = ("| entry | outcome | because of |", "| --- | --- | --- |")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def to_markdown(outcomes: Sequence[Outcome], trtllm: str, runtime: str) -> str:
    """The page ``docs/zoo.md``."""
    lines = [
        "# The zoo",
        "",
        f"Small instances of transformers' decoders, rendered for TensorRT-LLM {trtllm} and proven",
        f"on {runtime}: the contract, the load proof, parity with HF in prefill, decode, mixed",
        "batches and chunked prefill, two ranks, two pipeline stages. Written by",
        "`trtllm-scaffold zoo --page docs/zoo.md`; nothing here ran on TensorRT-LLM itself.",
        "",
        "The level is that of the family: how wide its heads are, which decides for the kernels,",
        "is a matter of the real configuration. Beside it stands what is not the library's own.",
        "",
    ]
    for category in dict.fromkeys(outcome.category for outcome in outcomes):
        rows = [outcome for outcome in outcomes if outcome.category == category]
        counts = Counter(row.status for row in rows)
        told = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        lines += [f"## {category}: {told}", "", *_HEADER]
        for row in rows:
            outcome = f"{row.status}, {row.level}" if row.status == "passed" else row.status
            lines.append(f"| {row.name} | {outcome} | {_cell(row.reason)} |")
        lines.append("")
    return "\n".join(lines)
