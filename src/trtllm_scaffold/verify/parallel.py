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
        tp_size, pp_size: The split; their product is the number of ranks.
        ep_size: Of the tp_size ranks, how many divide the experts; the rest divide their width.
        clear: How many positions of each sequence come before its routers' first close call.
        rendezvous: A file that does not exist yet, where the ranks meet.
    """

    package: Path
    runtime: str
    generation: str
    config: Path
    checkpoint: Path
    max_seq_len: int
    sequences: tuple[tuple[int, ...], ...]
    tp_size: int = 1
    pp_size: int = 1
    ep_size: int = 1
    clear: tuple[int, ...] = ()
    rendezvous: str = ""


def run_rank(job: Job, rank: int) -> list[tuple[int, int, Any]] | None:
    """Run the mixed batch as one rank; the last rank returns its logits as numpy arrays."""
    import datetime

    import torch.distributed as dist

    world = job.tp_size * job.pp_size
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
    if rank != world - 1:
        return None
    return [(who, start, logits.numpy()) for who, start, logits in results]


def _logits(job: Job, rank: int) -> list[tuple[int, int, torch.Tensor]]:
    start_runtime(job.runtime, job.generation)
    import_port(job.package)
    sequences = [torch.tensor(tokens) for tokens in job.sequences]
    mapping = {
        "world_size": job.tp_size * job.pp_size,
        "rank": rank,
        "tp_size": job.tp_size,
        "pp_size": job.pp_size,
    }
    if job.ep_size > 1:
        mapping |= {"moe_ep_size": job.ep_size, "moe_tp_size": job.tp_size // job.ep_size}
    setup = Setup(job.max_seq_len, mapping=mapping, room=max(len(tokens) for tokens in sequences))
    weights = read_checkpoint(job.checkpoint)
    model = build_model(load_config(job.config), weights, setup)
    with Driver(model, setup) as driver:
        return list(mixed(driver, sequences))


def check_split(
    pool: WorkerPool,
    job: Job,
    expected: Sequence[tuple[int, int, torch.Tensor]],
    *,
    tp_size: int,
    pp_size: int,
    ep_size: int = 1,
) -> tuple[float, str]:
    """Largest relative error of the split against `expected`, and why it failed if it did."""
    with tempfile.TemporaryDirectory() as folder:
        split = {"tp_size": tp_size, "pp_size": pp_size, "ep_size": ep_size}
        job = replace(job, **split, rendezvous=str(Path(folder) / "rendezvous"))  # type: ignore[arg-type]
        ranks = [{"job": job, "rank": rank} for rank in range(tp_size * pp_size)]
        try:
            results = pool.run("trtllm_scaffold.verify.parallel:run_rank", ranks)[-1]
        except CheckFailed as error:
            return float("inf"), str(error)
    worst = 0.0
    for (who, start, logits), (_, _, value) in zip(results, expected, strict=True):
        if tuple(logits.shape) != tuple(value.shape):
            return float("inf"), (
                f"sequence {who} position {start}: logits {tuple(logits.shape)}, "
                f"one process gives {tuple(value.shape)}"
            )
        kept = clear_part(job.clear[who], start, torch.from_numpy(logits))
        if len(kept):
            worst = max(worst, relative_error(kept, value[: len(kept)]))
    return worst, "" if worst <= BOUND else f"logits differ by {worst:.2e}, allowed {BOUND:.0e}"


def check_parallel(
    pool: WorkerPool,
    jobs: Sequence[tuple[Job, Any, Sequence[tuple[int, int, torch.Tensor]]]],
    *,
    tp_size: int,
    pp_size: int = 1,
    ep_size: int = 1,
) -> Check:
    """Compare the split with one process for every tiny configuration that it can split.

    Args:
        pool: Has at least tp_size * pp_size workers.
        jobs: (what to run, its HF configuration, one process's logits) per configuration.
        tp_size: Ranks that share each layer.
        pp_size: Ranks that share the layers out.
        ep_size: Ranks among the tp_size that share the experts out instead of their width.
    """
    name = f"parallel TP {tp_size}" if pp_size == 1 else f"parallel PP {pp_size}"
    if ep_size > 1:
        name = f"parallel EP {ep_size}"
    problems, errors, passed_over = [], {}, {}
    for job, config, expected in jobs:
        obstacle = _obstacle(config, tp_size, pp_size, ep_size)
        if obstacle:
            passed_over[job.config.name] = obstacle
            continue
        error, reason = check_split(
            pool, job, expected, tp_size=tp_size, pp_size=pp_size, ep_size=ep_size
        )
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


def _obstacle(config: Any, tp_size: int, pp_size: int, ep_size: int = 1) -> str:
    """Why the runtime itself cannot split `config` so, empty where it can."""
    heads = int(config.num_attention_heads)
    if heads % tp_size:
        return f"{heads} heads cannot be split {tp_size} ways"
    width, experts = (
        getattr(config, name, None) for name in ("moe_intermediate_size", "num_experts")
    )
    if isinstance(width, int) and width % (tp_size // ep_size):
        return f"experts of width {width} cannot be split {tp_size // ep_size} ways"
    if isinstance(experts, int) and experts % ep_size:
        return f"{experts} experts cannot be shared out {ep_size} ways"
    if int(config.num_hidden_layers) < pp_size:
        return f"{config.num_hidden_layers} layers cannot be split {pp_size} ways"
    return ""


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
