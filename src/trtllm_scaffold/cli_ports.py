"""The commands that keep an existing port current: parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer

from trtllm_scaffold import console
from trtllm_scaffold.options import Checkpoint, Generation, Json, Port, Trust

MoveTo = Annotated[
    Generation | None, typer.Option(help="Generation to move to; the port's own by default.")
]


def add_port_commands(app: typer.Typer) -> None:
    """Adds `diff`, `update` and `adopt` to the command line."""
    app.command(help="Preview what `update` would change in a port.")(diff)
    app.command(help="Bring a port to today's template and inference.")(update)
    app.command(help="Make a port updatable that has no usable record of its template.")(adopt)


def diff(
    port: Port,
    trtllm: MoveTo = None,
    checkpoint: Checkpoint = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> int:
    """Print a patch of the owner's files; write nothing."""
    from trtllm_scaffold import console_ports
    from trtllm_scaffold.lifecycle.derive import deriver
    from trtllm_scaffold.lifecycle.history import open_history
    from trtllm_scaffold.lifecycle.update import plan_update

    derive = deriver(checkpoint, trust_remote_code, console.progress)
    with open_history() as history:
        plan = plan_update(port, history, derive, None if trtllm is None else trtllm.value)
    return console_ports.print_diff({**plan.to_json(), "diff": plan.diff}, as_json)


def update(
    port: Port,
    trtllm: MoveTo = None,
    allow_delete: Annotated[
        bool,
        typer.Option("--allow-delete", help="Delete files that you edited and the template drops."),
    ] = False,
    checkpoint: Checkpoint = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> int:
    """Show the diffstat, apply it, and report conflicts."""
    from trtllm_scaffold import console_ports
    from trtllm_scaffold.lifecycle.derive import deriver
    from trtllm_scaffold.lifecycle.history import open_history
    from trtllm_scaffold.lifecycle.record import read_record
    from trtllm_scaffold.lifecycle.update import apply_update, plan_update
    from trtllm_scaffold.lifecycle.worktree import require_clean

    require_clean(read_record(port).root)  # before the long part
    derive = deriver(checkpoint, trust_remote_code, console.progress)
    with open_history() as history:
        plan = plan_update(port, history, derive, None if trtllm is None else trtllm.value)
    document = plan.to_json()
    console_ports.print_stats(document, as_json)
    apply_update(plan, allow_delete=allow_delete)
    return console_ports.print_update(document, as_json)


def adopt(
    port: Port,
    trtllm: Annotated[
        Generation | None, typer.Option(help="Generation it was made for; both by default.")
    ] = None,
    checkpoint: Checkpoint = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> int:
    """Write the answers file of the nearest render."""
    from trtllm_scaffold import console_ports
    from trtllm_scaffold.lifecycle.adopt import find_nearest, write_adoption
    from trtllm_scaffold.lifecycle.derive import deriver
    from trtllm_scaffold.lifecycle.history import open_history

    derive = deriver(checkpoint, trust_remote_code, console.progress)
    with open_history() as history:
        found = find_nearest(port, history, derive, None if trtllm is None else trtllm.value)
    write_adoption(found)
    return console_ports.print_adoption(found.to_json(), as_json)
