"""Runs zoo entries side by side in processes of their own, resumable entry by entry."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trtllm_scaffold import __version__
from trtllm_scaffold.errors import Refused, ScaffoldError
from trtllm_scaffold.zoo.entries import Entry


@dataclass(frozen=True)
class Outcome:
    """What became of one entry.

    Attributes:
        name, category: The entry's.
        status: ``passed``, ``failed`` (a check failed), ``refused`` or ``error``.
        level: The support level where a port was planned.
        axis: The axis of a refusal.
        reason: Why it did not pass.
        checks: The checks that ran.
        seconds: Wall time.
        version: Of the tool that ran it; another version runs it again.
    """

    name: str
    category: str
    status: str
    level: str = ""
    axis: str = ""
    reason: str = ""
    checks: tuple[dict[str, Any], ...] = ()
    seconds: float = 0.0
    version: str = __version__


def _write_config(entry: Entry, folder: Path) -> Path:
    """The configuration file of the entry's small instance."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(entry.model_type, **entry.overrides)
    raw = {**config.to_dict(), "architectures": [entry.architecture]}
    raw["model_type"] = entry.model_type
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    path.write_text(json.dumps(raw, default=str), encoding="utf-8")
    return path


def run_entry(entry: Entry, folder: Path, trtllm: str) -> Outcome:
    """Renders and proves one entry under `folder`.

    Whatever goes wrong is an outcome: one family must not end the others.
    """
    import torch

    from trtllm_scaffold.pipeline import new_port
    from trtllm_scaffold.sources import load_path

    torch.set_num_threads(1)
    started = time.perf_counter()
    found: dict[str, Any] = {"status": "error"}
    try:
        source = load_path(_write_config(entry, folder / "sources" / entry.name))
        source = replace(source, text_only=entry.text_only)
        port = folder / "ports" / entry.name
        result = new_port(source, port, trtllm=trtllm, force=True)
        failed = [check for check in result.checks if check.status == "failed"]
        # A small instance has small heads, which say nothing of its family.
        level, facts = result.support.without("attention.head_dim")
        facts = (*(["text decoder alone (--text-only)"] if entry.text_only else []), *facts)
        found = {
            "status": "passed" if result.passed else "failed",
            "level": level.name,
            "checks": tuple(check.to_json() for check in result.checks),
            "reason": f"{failed[0].name}: {failed[0].reason}" if failed else "; ".join(facts),
        }
    except Refused as refusal:
        found = {"status": "refused", "axis": refusal.axis, "reason": refusal.message}
    except ScaffoldError as error:
        found["reason"] = f"{error.kind}: {error}"
    except Exception as error:  # a crash of one family is a row of the scoreboard
        found["reason"] = f"crash: {type(error).__name__}: {error}"
    return Outcome(
        entry.name, entry.category, seconds=round(time.perf_counter() - started, 1), **found
    )


def _stored(path: Path) -> Outcome | None:
    """The outcome of an earlier run of this version, if it can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        outcome = Outcome(**{**found, "checks": tuple(found["checks"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return outcome if outcome.version == __version__ else None


def run_zoo(
    entries: Sequence[Entry],
    folder: Path,
    *,
    trtllm: str = "1.2",
    jobs: int = 2,
    fresh: bool = False,
    progress: Callable[[Outcome, int, int], None] = lambda *_: None,
) -> list[Outcome]:
    """Runs `entries`, keeping each outcome in `folder` as soon as it is known.

    Args:
        entries: What to run.
        folder: Ports and outcomes; a second call with it runs only what is missing.
        trtllm: The generation.
        jobs: Processes side by side.
        fresh: Run again what `folder` has already.
        progress: Told each outcome, how many are done and how many there are.
    """
    results = folder / f"outcomes-{trtllm}"
    results.mkdir(parents=True, exist_ok=True)
    outcomes: dict[str, Outcome] = {}
    for entry in entries:
        found = None if fresh else _stored(results / f"{entry.name}.json")
        if found is not None:
            outcomes[entry.name] = found
    waiting = [entry for entry in entries if entry.name not in outcomes]
    for outcome in _run_all(waiting, folder, trtllm, jobs):
        outcomes[outcome.name] = outcome
        path = results / f"{outcome.name}.json"
        path.write_text(json.dumps(asdict(outcome), indent=1), encoding="utf-8")
        progress(outcome, len(outcomes), len(entries))
    return [outcomes[entry.name] for entry in entries]


def _run_all(entries: Sequence[Entry], folder: Path, trtllm: str, jobs: int) -> Iterator[Outcome]:
    if not entries:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(jobs, len(entries)), mp_context=context) as pool:
        waiting = [pool.submit(run_entry, entry, folder, trtllm) for entry in entries]
        try:
            for future in as_completed(waiting):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
