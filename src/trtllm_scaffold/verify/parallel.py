"""Tensor and pipeline parallelism: several real processes must give one process's logits."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trtllm_scaffold.errors import CheckFailed
from trtllm_scaffold.verify.close_calls import clear_part, routers
from trtllm_scaffold.verify.harness import Driver, Setup, build_model
from trtllm_scaffold.verify.locate import relative_error
from trtllm_scaffold.verify.parity import Case
from trtllm_scaffold.verify.pool import WorkerPool
from trtllm_scaffold.verify.port_module import (
    finding,
    import_port,
    load_config,
    quiet,
    read_checkpoint,
)
from trtllm_scaffold.verify.report import Check, skipped, verdict
from trtllm_scaffold.verify.runtime import start_runtime
from trtllm_scaffold.verify.scenarios import mixed
from trtllm_scaffold.verify.split import Split

#: Largest difference between one process and several, relative to max(1, max |logit|).
BOUND = 1e-4

#: Seconds that a collective waits for a rank that failed.
_COLLECTIVE_TIMEOUT = 60


@dataclass(frozen=True)
class Job:
    """What every rank needs to know.

    Attributes:
        package: The port's package folder.
        runtime: ``standin`` or ``tensorrt_llm``.
        generation: What the stand-in plays.
        config: The tiny configuration file.
        checkpoint: Folder with the checkpoint of it.
        max_seq_len: Of the engine.
        sequences: Token ids of the sequences of the mixed batch.
        split: How the ranks divide the model.
        clear: How many positions of each sequence come before its routers' first close call.
        rendezvous: A file that does not exist yet, where the ranks meet.
        device: ``cpu``, or ``cuda``: then the ranks share the first GPU.
    """

    package: Path
    runtime: str
    generation: str
    config: Path
    checkpoint: Path
    max_seq_len: int
    sequences: tuple[tuple[int, ...], ...]
    split: Split = Split()
    clear: tuple[int, ...] = ()
    rendezvous: str = ""
    device: str = "cpu"


def run_rank(job: Job, rank: int) -> list[tuple[int, int, Any]] | None:
    """Run the mixed batch as one rank; the last rank returns its logits as numpy arrays.

    Under attention data parallelism each does: the ranks begin at different sequences.
    """
    import datetime

    import torch.distributed as dist

    world = job.split.ranks
    if world > 1:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{job.rendezvous}",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=_COLLECTIVE_TIMEOUT),
        )
    try:
        with quiet():
            results = _logits(job, rank)
    except Exception as error:
        raise CheckFailed(f"rank {rank} of {world}: {finding(error, job.package)}") from error
    finally:
        if world > 1:
            dist.destroy_process_group()
    if rank != world - 1 and not job.split.attention_dp:
        return None
    return [(who, start, logits.numpy()) for who, start, logits in results]


def _logits(job: Job, rank: int) -> list[tuple[int, int, torch.Tensor]]:
    start_runtime(job.runtime, job.generation, job.device)
    import_port(job.package)
    sequences = [torch.tensor(tokens) for tokens in job.sequences]
    turn = rank if job.split.attention_dp else 0
    own = sequences[turn:] + sequences[:turn]
    room = max(len(tokens) for tokens in sequences)
    mapping = job.split.mapping(rank)
    setup = Setup(job.max_seq_len, device=job.device, mapping=mapping, room=room)
    weights = read_checkpoint(job.checkpoint)
    model = build_model(load_config(job.config), weights, setup)
    with Driver(model, setup) as driver:
        found = list(mixed(driver, own))
    return [((who + turn) % len(own), start, logits) for who, start, logits in found]


def check_split(
    pool: WorkerPool,
    job: Job,
    expected: Sequence[tuple[int, int, torch.Tensor]],
    split: Split,
) -> tuple[float, str]:
    """Largest relative error of the split against `expected`, and why it failed if it did."""
    with tempfile.TemporaryDirectory() as folder:
        job = replace(job, split=split, rendezvous=str(Path(folder) / "rendezvous"))
        ranks = [{"job": job, "rank": rank} for rank in range(split.ranks)]
        try:
            answers = pool.run("trtllm_scaffold.verify.parallel:run_rank", ranks)
        except CheckFailed as error:
            return float("inf"), str(error)
    whole = _whole(expected)
    worst = 0.0
    for who, start, logits in (part for answer in answers for part in answer or ()):
        value = whole[who][start : start + len(logits)]
        if start >= len(whole[who]):  # in another's place a sequence decodes one token more
            continue
        if tuple(logits.shape) != tuple(value.shape):
            return float("inf"), (
                f"sequence {who} position {start}: logits {tuple(logits.shape)}, "
                f"one process gives {tuple(value.shape)}"
            )
        kept = clear_part(job.clear[who], start, torch.from_numpy(logits))
        if len(kept):
            worst = max(worst, relative_error(kept, value[: len(kept)]))
    return worst, "" if worst <= BOUND else f"logits differ by {worst:.2e}, allowed {BOUND:.0e}"


def _whole(parts: Sequence[tuple[int, int, torch.Tensor]]) -> dict[int, torch.Tensor]:
    """Logits of whole sequences, [n, vocab_size] each, from (sequence, first position, logits)."""
    pieces: dict[int, list[torch.Tensor]] = {}
    for who, _, logits in sorted(parts, key=lambda part: part[:2]):
        pieces.setdefault(who, []).append(logits)
    return {who: torch.cat(logits) for who, logits in pieces.items()}


def check_parallel(
    pool: WorkerPool,
    jobs: Sequence[tuple[Job, Any, Sequence[tuple[int, int, torch.Tensor]]]],
    split: Split,
) -> Check:
    """Compare the split with one process for every tiny configuration that it can split.

    Args:
        pool: Has at least as many workers as the split has ranks.
        jobs: (what to run, its HF configuration, one process's logits) per configuration.
        split: How the ranks divide the model.
    """
    name = split.name
    problems, errors, passed_over = [], {}, {}
    for job, config, expected in jobs:
        obstacle = split.obstacle(config)
        if obstacle:
            passed_over[job.config.name] = obstacle
            continue
        error, reason = check_split(pool, job, expected, split)
        errors[job.config.name] = error
        if reason:
            problems.append(f"{job.config.name}: {reason}")
    if not errors:
        told = "; ".join(f"{key}: {text}" for key, text in passed_over.items())
        return skipped(name, told or "no tiny configuration")
    measured = {
        "relative_error": max(errors.values()),
        "by_config": errors,
        **({"not_split": passed_over} if passed_over else {}),
    }
    return verdict(name, problems, measured=measured, bound={"relative_error": BOUND})


def jobs_for(
    cases: Sequence[Case], runtime: str, generation: str
) -> list[tuple[Job, Any, list[tuple[int, int, torch.Tensor]]]]:
    """For each case the mixed batch as a job, and what one process makes of it."""
    found = []
    for case in cases:
        inputs = case.inputs[-1]
        setup = case.setup(inputs, "TRTLLM")
        model = case.model(setup)
        with quiet(), Driver(model, setup) as driver:
            expected = list(mixed(driver, inputs.sequences))
        job = Job(
            package=case.package,
            runtime=runtime,
            generation=generation,
            config=case.path,
            checkpoint=case.folder,
            max_seq_len=inputs.regime.max_seq_len,
            sequences=tuple(tuple(tokens.tolist()) for tokens in inputs.sequences),
            clear=tuple(case.clear_lengths(inputs)),
        )
        # The port's own configuration has experts under the names that the runtime reads.
        found.append((job, model.config if routers(model) else case.config, expected))
    return found
