"""The rows of one model: prefill, decode and memory of the port, HF and HF's best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trtllm_scaffold.bench.floors import Machine, Weights, weights_of
from trtllm_scaffold.bench.hf_runs import HfCompiled, HfEager, HfPrefill
from trtllm_scaffold.bench.port_runs import Prefill, decoding, session
from trtllm_scaffold.bench.subject import Subject
from trtllm_scaffold.bench.timing import Timing, timed

Progress = Callable[[str], Any]

#: Decoded tokens of one timed run.
STEPS = 32


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        prompts: Prompt lengths of the prefill rows.
        batches: Batch sizes of the decode rows.
        context: Cached tokens of each sequence before decoding.
        compiled: Whether to time HF compiled too, which takes a minute for each batch size.
    """

    prompts: tuple[int, ...] = (1024, 4096)
    batches: tuple[int, ...] = (1, 8, 64)
    context: int = 512
    compiled: bool = True

    @property
    def longest(self) -> int:
        """Longest sequence of any row, with room for the steps."""
        return max(*self.prompts, self.context + 2 * STEPS)


def rows_of(
    name: str, made: Subject, machine: Machine, plan: Plan, tell: Progress
) -> Iterator[dict[str, Any]]:
    """Every row of one model, each when it is measured.

    Times are milliseconds, with their spread under ``spread``.
    """
    weights = weights_of(made.reference, made.config)
    yield agreement(name, made, min(300, plan.longest))
    for length in plan.prompts:
        tell(f"{name}: prefill of {length} tokens")
        floor = weights.operations(length, 1) / machine.matmul * 1e3
        yield {**_prefill(made, length), "model": name, "floor": round(floor, 4)}
    for batch in plan.batches:
        tell(f"{name}: decode, batch {batch}")
        for row in _decode(made, batch, plan):
            timed_row = row["unit"] == "ms/token"
            least = _decode_floor(weights, batch, machine) if timed_row else None
            yield {**row, "model": name, "floor": least}


def _decode_floor(weights: Weights, batch: int, machine: Machine) -> float:
    """The larger of reading the weights and multiplying by them, in milliseconds."""
    read = weights.read / machine.bandwidth
    return round(max(read, weights.operations(batch, batch) / machine.matmul) * 1e3, 4)


def agreement(name: str, made: Subject, length: int) -> dict[str, Any]:
    """RMS difference of the port's logits from HF's, relative: a fast wrong answer is no row."""
    prompt = _tokens(made, 1, length)[0]
    with session(made, 1, len(prompt)) as driver:
        ours = Prefill(driver, prompt)()
    theirs = HfPrefill(made.reference, prompt)()
    wide = theirs.float()
    error = (ours.float() - wide).square().mean().sqrt() / wide.square().mean().sqrt()
    return {
        "model": name,
        "metric": "logits",
        "batch": 1,
        "ours": round(float(error), 5),
        "hf_eager": None,
        "hf_best": None,
        "floor": None,
        "unit": "relative RMS difference",
    }


def _prefill(made: Subject, length: int) -> dict[str, Any]:
    prompt = _tokens(made, 1, length)[0]
    with session(made, 1, length) as driver:
        ours = timed(Prefill(driver, prompt))
    theirs = timed(HfPrefill(made.reference, prompt))
    return _row(f"prefill {length}", 1, ours, theirs, None, "ms")


def _decode(made: Subject, batch: int, plan: Plan) -> list[dict[str, Any]]:
    prompts = _tokens(made, batch, plan.context)
    peaks, timings, launches = [], [], []
    runs: list[Callable[[], Any]] = [
        lambda: _port_decode(made, prompts, plan),
        lambda: _hf_decode(HfEager(made.reference, prompts)),
    ]
    if plan.compiled:
        longest = plan.context + 2 * STEPS
        runs.append(lambda: _hf_decode(HfCompiled(made.reference, prompts, longest)))
    for run in runs:
        torch.cuda.reset_peak_memory_stats()
        timing, count = run()
        timings.append(timing)
        launches.append(count)
        peaks.append(round(torch.cuda.max_memory_allocated() / 2**30, 3))
    best = timings[2] if plan.compiled else None
    third = launches[2] if plan.compiled else None
    return [
        _row("decode", batch, timings[0], timings[1], best, "ms/token"),
        _plain("decode kernels", batch, [*launches[:2], third], "per step"),
        _plain("peak memory, both models resident", batch, [*peaks, None][:3], "GiB"),
    ]


def _port_decode(made: Subject, prompts: torch.Tensor, plan: Plan) -> tuple[Timing, int]:
    with session(made, len(prompts), plan.context + 2 * STEPS) as driver:
        decode = decoding(driver, prompts, made.captured)

        def run() -> None:
            decode.forward(STEPS)

        return _timed_steps(decode.start, run), _kernels(lambda: decode.forward(1))


def _hf_decode(decode: HfEager | HfCompiled) -> tuple[Timing, int]:
    timing = _timed_steps(decode.start, lambda: decode.forward(STEPS))
    return timing, _kernels(lambda: decode.forward(1))


def _timed_steps(start: Callable[[], Any], run: Callable[[], Any]) -> Timing:
    """As `timed` per step, going back to the prompt before every run, outside the clock."""
    found: list[Timing] = []
    for count in range(7):
        start()
        single = timed(run, runs=1, warm_ups=0, per=STEPS)
        if count >= 2:
            found.append(single)
    ordered = sorted(item.median for item in found)
    return Timing(ordered[len(ordered) // 2], ordered[0], ordered[-1])


def _kernels(step: Callable[[], Any]) -> int:
    """Kernels and copies that the device runs for one step, those inside of graphs too."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == DeviceType.CUDA for event in watched.events())


def _tokens(made: Subject, batch: int, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, made.config.vocab_size, (batch, length), generator=generator)


def _row(
    metric: str, batch: int, ours: Timing, eager: Timing, best: Timing | None, unit: str
) -> dict[str, Any]:
    timings = {"ours": ours, "hf_eager": eager, "hf_best": best}
    medians = {key: item and round(item.median, 4) for key, item in timings.items()}
    spread = {key: item.to_json() for key, item in timings.items() if item is not None}
    return {"metric": metric, "batch": batch, **medians, "unit": unit, "spread": spread}


def _plain(metric: str, batch: int, values: Sequence[Any], unit: str) -> dict[str, Any]:
    named = dict(zip(("ours", "hf_eager", "hf_best"), values, strict=True))
    return {"metric": metric, "batch": batch, **named, "unit": unit}
