"""Write a proof's report as one HTML page that needs nothing but a browser."""

from __future__ import annotations

import json
import math
from html import escape
from pathlib import Path
from typing import Any

from trtllm_scaffold.errors import InputError
from trtllm_scaffold.verify.plot import error_plot
from trtllm_scaffold.verify.report import Check, ProofReport

_MARKS = {"passed": "✓", "failed": "✗", "skipped": "–"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --line: #d9dee4;
  --paper: #fff; --panel: #f6f8fa; --good: #1a7f37; --bad: #c62828; --idle: #8a6d00;
  --mark: #2f6fde; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebef; --soft: #9aa4af; --line: #333b44;
  --paper: #14181d; --panel: #1c2229; --good: #4cc26b; --bad: #ff6b63; --idle: #d7b23c;
  --mark: #78a9ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.5rem 4rem; background: var(--paper);
  color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.55rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .8rem; }
code, .num { font: .86em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
header { display: flex; flex-wrap: wrap; gap: .8rem 1.2rem; align-items: center; }
.verdict { padding: .15rem .75rem; border-radius: 1rem; color: #fff; font-weight: 600; }
.verdict.passed { background: #1a7f37; } .verdict.failed { background: #c62828; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .6rem 1.5rem;
  margin: 1.3rem 0 0; padding: 1rem 1.2rem; background: var(--panel); border-radius: .6rem; }
dt { color: var(--soft); font-size: .8rem; } dd { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-size: .8rem; font-weight: 500; color: var(--soft); }
th, td { padding: .5rem .8rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child, td.num { white-space: nowrap; }
.passed .mark { color: var(--good); } .failed .mark { color: var(--bad); }
.skipped .mark { color: var(--idle); }
.mark { display: inline-block; width: 1.3em; font-weight: 700; }
.reason { overflow-wrap: anywhere; } .failed .reason { color: var(--bad); }
.skipped .reason { color: var(--soft); }
details { color: var(--soft); } summary { cursor: pointer; font-size: .85rem; }
pre { margin: .4rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .78rem; }
figure { margin: 1rem 0 0; padding: 1rem 1.2rem .6rem; background: var(--panel);
  border-radius: .6rem; overflow-x: auto; }
figcaption { font-weight: 600; } figcaption span { font-weight: 400; color: var(--soft); }
svg { display: block; width: 100%; min-width: 36rem; height: auto; }
svg text { fill: var(--soft); font: 10.5px system-ui, sans-serif; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
"""


def write_html(report: ProofReport, path: Path) -> None:
    """Write `report` to the file `path`, replacing it.

    Raises:
        InputError: If the file cannot be written.
    """
    try:
        path.write_text(render_html(report), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the report: {error.strerror}", where=str(path)) from error


def render_html(report: ProofReport) -> str:
    """The page. Every text of the report is escaped."""
    status = "passed" if report.passed else "failed"
    name = escape(Path(report.port).name or report.port)
    rows = "\n".join(_row(check) for check in report.checks)
    plots = "\n".join(error_plot(item) for item in report.layers)
    section = f"<h2>Distance from HF, stage by stage</h2>\n{plots}" if plots else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Proof of {name}</title>
<style>{_STYLE}</style>
</head>
<body>
<header><h1>Proof of {name}</h1><span class="verdict {status}">{status}</span></header>
{_facts(report)}
<h2>Checks</h2>
<div class="scroll"><table>
<thead><tr><th>Check</th><th>Measured</th><th>Bound</th><th>What it says</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
{section}
<footer>{_caveat(report)}</footer>
</body>
</html>
"""


def _facts(report: ProofReport) -> str:
    runtime = f"{report.runtime.get('name', '?')} {report.runtime.get('version', '')}".strip()
    counts = {
        status: sum(check.status == status for check in report.checks)
        for status in ("passed", "failed", "skipped")
    }
    facts = {
        "Runtime": runtime,
        "Device": report.device,
        "Reference": ", ".join(f"{name} {text}" for name, text in report.reference.items()),
        "Checks": ", ".join(f"{count} {status}" for status, count in counts.items() if count),
    }
    rows = "".join(f"<div><dt>{k}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items())
    return f"<dl>{rows}</dl>"


def _caveat(report: ProofReport) -> str:
    if report.runtime.get("name") == "standin":
        return (
            "Ran on the stand-in runtime, an independent implementation of TensorRT-LLM's "
            "port-facing interface in PyTorch. Nothing here ran on TensorRT-LLM itself."
        )
    return "Ran on an installed TensorRT-LLM."


def _row(check: Check) -> str:
    measured = {key: value for key, value in check.measured.items() if key in check.bound}
    return (
        f'<tr class="{check.status}"><td><span class="mark">{_MARKS[check.status]}</span>'
        f"{escape(check.name)}</td>"
        f'<td class="num">{_figures(measured)}</td><td class="num">{_figures(check.bound)}</td>'
        f'<td class="reason">{escape(check.reason)}{_details(check)}</td></tr>'
    )


def _figures(values: Any) -> str:
    return "<br>".join(
        f"{escape(key.replace('_', ' '))} {_figure(value)}" for key, value in values.items()
    )


def _figure(value: Any) -> str:
    if isinstance(value, list):
        return str(len(value))
    if value is None:
        return "∞"
    if isinstance(value, float) and math.isfinite(value) and value:
        return f"{value:.2e}" if not 0.01 <= abs(value) < 1000 else f"{value:.3g}"
    return escape(str(value))


def _details(check: Check) -> str:
    if not check.measured:
        return ""
    text = json.dumps(dict(check.measured), indent=1, ensure_ascii=False, default=str)
    return f"<details><summary>all figures</summary><pre>{escape(text)}</pre></details>"
