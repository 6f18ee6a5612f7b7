"""The command that times a port: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trtllm_scaffold import console
from trtllm_scaffold.errors import UsageError
from trtllm_scaffold.options import Json, Port

_HEADS = ("metric", "batch", "ours", "hf_eager", "hf_best", "floor", "unit")


def add_bench_command(app: typer.Typer) -> None:
    """Adds `bench` to the command line."""
    app.command(help="Time a port on the stand-in against HF, on a GPU.")(bench)


def bench(
    port: Port,
    config: Annotated[
        Path | None, typer.Option(help="What to build; the port's config.json by default.")
    ] = None,
    prompts: Annotated[
        str, typer.Option(help="Prompt lengths of the prefill rows.", metavar="N,...")
    ] = "1024,4096",
    batches: Annotated[
        str, typer.Option(help="Batch sizes of the decode rows.", metavar="N,...")
    ] = "1,8,64",
    no_compiled: Annotated[
        bool, typer.Option("--no-compiled", help="Leave HF compiled out: it takes minutes.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Measure the same random weights in both, in one run."""
    lengths, sizes = numbers("--prompts", prompts), numbers("--batches", batches)
    from trtllm_scaffold.bench.floors import measure_machine
    from trtllm_scaffold.bench.run import Plan, rows_of
    from trtllm_scaffold.bench.subject import require_gpu, subject

    require_gpu()
    plan = Plan(prompts=lengths, batches=sizes, compiled=not no_compiled)
    machine = measure_machine()
    with subject(port, config or port / "config.json", {}, plan.longest) as made:
        rows = rows_of(port.name, made, machine, plan, console.progress)
        return print_rows(list(rows), made.runtime, as_json)


def print_rows(rows: list[dict[str, Any]], runtime: dict[str, str], as_json: bool) -> int:
    """Print what was measured, and on what."""
    if as_json:
        console.print_json({"runtime": runtime, "rows": rows})
        return console.DONE
    console.table([tuple(_cell(row.get(head)) for head in _HEADS) for row in rows], _HEADS)
    console.write(
        f"\nruntime {runtime['name']} {runtime['version']}; HF in the same process", sys.stdout
    )
    return console.DONE


def _cell(value: Any) -> str:
    return "" if value is None else str(value)


def numbers(option: str, text: str) -> tuple[int, ...]:
    """Counts such as ``1,8,64``.

    Raises:
        UsageError: If a part is no number from 1 to 1,000,000.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < int(part[:8]) <= 10**6 for part in parts):
        raise UsageError(f"{option} {text!r} is no list of counts", hint="such as 1,8,64")
    return tuple(int(part) for part in parts)
