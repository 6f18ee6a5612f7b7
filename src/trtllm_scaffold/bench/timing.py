"""Timing on a GPU by device events: medians of repeated runs, with their spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated runs."""

    median: float
    least: float
    most: float

    def to_json(self) -> dict[str, float]:
        """Three numbers, in milliseconds."""
        return {
            "median": round(self.median, 4),
            "min": round(self.least, 4),
            "max": round(self.most, 4),
        }


def timed(work: Callable[[], object], *, runs: int = 7, warm_ups: int = 2, per: int = 1) -> Timing:
    """Time ``work`` between two device events, ``runs`` times.

    Args:
        work: Queues its kernels on the current stream.
        runs: Timed repetitions.
        warm_ups: Repetitions before, not timed.
        per: What one repetition is divided by, such as its number of steps.
    """
    for _ in range(warm_ups):
        work()
    found = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / per)
    return Timing(statistics.median(found), min(found), max(found))
