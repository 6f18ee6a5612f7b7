"""The command line: parses, calls one function, prints. Nothing else."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from trtllm_scaffold import __version__, console
from trtllm_scaffold.cli_bench import add_bench_command
from trtllm_scaffold.cli_ports import add_port_commands
from trtllm_scaffold.errors import ScaffoldError, UsageError
from trtllm_scaffold.options import (
    Checkpoint,
    Device,
    Dtype,
    Generation,
    Generations,
    Json,
    Port,
    Revision,
    Runtime,
    TextOnly,
    Trust,
)

# The parser's UsageError, which some releases of typer keep to themselves.
_PARSER_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

# What libraries may print beside our own lines, unless the user's environment says otherwise.
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

# Help without rich: importing it would double the time of --help.
app = typer.Typer(
    name="trtllm-scaffold",
    help="From a HuggingFace config.json to a proven TensorRT-LLM port.",
    epilog="Start with: trtllm-scaffold new my-port --hf-id Qwen/Qwen3-0.6B",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"trtllm-scaffold {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Hold the options that belong to no command."""


@app.command(help="Infer a model, render its port, and prove it.")
def new(
    dest: Annotated[
        Path | None,
        typer.Argument(
            help="Folder to make; MODEL-trtllm by default.", metavar="DEST", show_default=False
        ),
    ] = None,
    hf_id: Annotated[
        str | None, typer.Option(help="A model on the hub.", metavar="ORG/MODEL")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A config.json, or a model's folder.", metavar="PATH")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name in the port's module names.")] = None,
    package: Annotated[str | None, typer.Option(help="Name of the port's package.")] = None,
    trtllm: Annotated[
        Generation, typer.Option(help="TensorRT-LLM generation to write for.")
    ] = Generation.v1_2,
    revision: Revision = None,
    no_prove: Annotated[bool, typer.Option("--no-prove", help="Skip the proof.")] = False,
    allow_unproven: Annotated[
        bool, typer.Option("--allow-unproven", help="Accept a model that has no HF class to run.")
    ] = False,
    trust_remote_code: Trust = False,
    text_only: TextOnly = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write into a non-empty folder.")] = False,
    in_tree: Annotated[
        Path | None,
        typer.Option(help="A TensorRT-LLM checkout: add a patch against it.", metavar="TREE"),
    ] = None,
    as_json: Json = False,
) -> int:
    """Infer, plan, render and prove one model."""
    if (hf_id is None) == (config is None):
        raise UsageError("give exactly one of --hf-id and --config", hint="see `new --help`")
    if revision is not None and hf_id is None:
        raise UsageError("--revision belongs to --hf-id", hint="see `new --help`")
    from trtllm_scaffold.sources import load_hub, load_path

    sources = load_hub(hf_id, revision) if hf_id is not None else load_path(config or Path())
    from trtllm_scaffold.pipeline import new_port

    result = new_port(
        replace(sources, text_only=text_only),
        dest or Path(sources.default_name),
        name=name,
        package=package,
        trtllm=trtllm.value,
        prove=not no_prove,
        allow_unproven=allow_unproven,
        trust_remote_code=trust_remote_code,
        dry_run=dry_run,
        force=force,
        in_tree=in_tree,
        progress=console.progress,
    )
    must_pass = not (no_prove or dry_run or allow_unproven)
    files = result.files if dry_run else ()
    return console.print_new(result.to_json(), files, as_json, must_pass)


@app.command(help="Show what a model is, and how it can be ported.")
def inspect(
    model: Annotated[
        str, typer.Argument(help="A config.json, its folder, or ORG/MODEL.", metavar="MODEL")
    ],
    explain: Annotated[
        bool, typer.Option("--explain", help="Add the evidence for each fact.")
    ] = False,
    revision: Revision = None,
    trust_remote_code: Trust = False,
    text_only: TextOnly = False,
    as_json: Json = False,
) -> int:
    """Infer one model and print the result."""
    from trtllm_scaffold.sources import load_sources

    sources = replace(load_sources(model, revision), text_only=text_only)
    from trtllm_scaffold.pipeline import inspect_model

    inspection = inspect_model(sources, trust_remote_code=trust_remote_code)
    return console.print_inspection(inspection.to_json(), as_json, explain)


@app.command(help="Check API use and weight map, without torch or weights.")
def check(
    port: Port,
    checkpoint: Checkpoint = None,
    trtllm: Annotated[
        Generations | None,
        typer.Option(help="Generation to check against; the port's own by default."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Run the contract check and the load proof."""
    from trtllm_scaffold.lifecycle.status import template_status
    from trtllm_scaffold.verify.check import check_port

    generation = None if trtllm is None else trtllm.value
    checks = check_port(port, checkpoint=checkpoint, trtllm=generation)
    documents = [item.to_json() for item in checks]
    return console.print_checks(port, documents, as_json, template_status(port))


@app.command(help="Prove that a port computes what its HF model computes.")
def prove(
    port: Port,
    checkpoint: Checkpoint = None,
    tp: Annotated[
        str, typer.Option(help="Tensor-parallel sizes, comma-separated.", metavar="N,...")
    ] = "1,2",
    device: Annotated[Device, typer.Option(help="Where to run.")] = Device.cpu,
    dtype: Annotated[Dtype, typer.Option(help="Parity in which types.")] = Dtype.both,
    runtime: Annotated[Runtime, typer.Option(help="What to run the port on.")] = Runtime.auto,
    trtllm: Annotated[
        Generation | None, typer.Option(help="Generation; the port's own by default.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Write an HTML report here.", metavar="FILE")
    ] = None,
    as_json: Json = False,
) -> int:
    """Run parity, tensor parallel and the other proofs."""
    sizes = _sizes(tp)
    from trtllm_scaffold.verify.prove import prove_port

    proof = prove_port(
        port,
        checkpoint=checkpoint,
        tp=sizes,
        device=device.value,
        dtype=dtype.value,
        runtime=runtime.value,
        trtllm=None if trtllm is None else trtllm.value,
        progress=console.progress,
    )
    if report is not None:
        from trtllm_scaffold.verify.html import write_html

        write_html(proof, report)
    return console.print_proof(proof.to_json(), as_json)


add_port_commands(app)
add_bench_command(app)


@app.command(help="Render and prove many families; keep the score.")
def zoo(
    only: Annotated[
        str,
        typer.Option(help="Categories (dense, moe, mla) or model types.", metavar="WORD,..."),
    ] = "",
    jobs: Annotated[int, typer.Option(help="Families side by side.", min=1, max=64)] = 2,
    trtllm: Annotated[
        Generation, typer.Option(help="TensorRT-LLM generation to write for.")
    ] = Generation.v1_2,
    folder: Annotated[
        Path, typer.Option(help="Ports and outcomes; run again to resume.", metavar="DIR")
    ] = Path("zoo-run"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget earlier outcomes.")] = False,
    entries: Annotated[
        Path | None, typer.Option(help="Families of your own, as a JSON list.", metavar="FILE")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write the scoreboard here.", metavar="FILE.md")
    ] = None,
    as_json: Json = False,
) -> int:
    """Run many small instances and print the scoreboard."""
    from trtllm_scaffold.zoo.entries import load_entries, select
    from trtllm_scaffold.zoo.run import run_zoo
    from trtllm_scaffold.zoo.scoreboard import to_json, to_markdown

    chosen = select(load_entries(entries), only)
    outcomes = run_zoo(
        chosen,
        folder,
        trtllm=trtllm.value,
        jobs=jobs,
        fresh=fresh,
        progress=lambda outcome, done, total: console.progress(
            f"{done}/{total}  {outcome.name}  {outcome.status}"
        ),
    )
    if page is not None:
        page.write_text(to_markdown(outcomes, trtllm.value, "the stand-in"), encoding="utf-8")
    return console.print_zoo(to_json(outcomes, trtllm.value), as_json)


@app.command(help="Show what is installed, and what is missing.")
def doctor(as_json: Json = False) -> int:
    """Look at this machine."""
    from trtllm_scaffold.doctor import examine

    return console.print_doctor(examine(), as_json)


def _sizes(text: str) -> tuple[int, ...]:
    """Return tensor-parallel sizes, such as 1,2,4."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part[:4]) <= 64 for part in parts):
        hint = "write sizes from 1 to 64, for example --tp 1,2,4"
        raise UsageError(f"--tp {text!r} is not a list of sizes", hint=hint)
    return tuple(int(part) for part in parts)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; no exception leaves it.

    Every ScaffoldError becomes one line or one JSON document. Set TRTLLM_SCAFFOLD_DEBUG=1 to see
    the traceback of an error that is ours.
    """
    as_json = "--json" in arguments
    try:
        code = app(list(arguments), prog_name="trtllm-scaffold", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except ScaffoldError as error:
        return console.fail(error, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return console.INTERRUPTED
    except BrokenPipeError:
        return console.reader_gone()
    except Exception as error:
        if isinstance(error, _PARSER_ERROR):
            return console.usage(error, as_json)
        if os.environ.get("TRTLLM_SCAFFOLD_DEBUG") == "1":
            raise
        return console.fail(console.unexpected(error), as_json)


def main() -> None:
    """Entry point of the `trtllm-scaffold` script."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # Unwinding on SIGTERM too removes what was rendered aside.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
