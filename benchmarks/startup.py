"""Measures what each command costs, as ratios to bare imports taken in the same run.

    python benchmarks/startup.py --config config.json [--rounds 5] [--json startup.json]

The commands of one round run one after the other, so that a machine that slows down slows all of
them. A ratio is the median over the rounds of the ratio within each round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

TYPER = "import typer"
HEAVY = "import torch, transformers, copier"


@dataclass(frozen=True)
class Row:
    """One measured command.

    Attributes:
        command: What was run.
        seconds: Median wall time.
        against: What it is compared with; empty where the budget is in seconds.
        ratio: Median of its time over that of `against`, or the seconds themselves.
        least, most: The extremes of the same over the rounds.
        cpu_ratio: The same by processor time, which other work on the machine disturbs less.
        budget: What `ratio` must not exceed.
    """

    command: str
    seconds: float
    against: str
    ratio: float
    least: float
    most: float
    cpu_ratio: float
    budget: float

    @property
    def within(self) -> bool:
        """Whether the budget holds."""
        return self.ratio <= self.budget


@dataclass(frozen=True)
class Cost:
    """What one run of a command took: wall time, and processor time with its children's."""

    wall: float
    cpu: float


def timed(folder: Path, *command: str) -> Cost:
    """Run a command to its end in `folder`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} exited {done.returncode}: {done.stderr or done.stdout}")
    return Cost(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def one_round(config: Path, number: int, folder: Path, prove: bool) -> dict[str, Cost]:
    """Time every command once."""
    python = sys.executable
    cli = (python, "-m", "trtllm_scaffold.cli")
    port = str(folder / f"port-{number}")
    new = (*cli, "new", port, "--config", str(config), "--no-prove")
    times = {
        TYPER: timed(folder, python, "-c", TYPER),
        "--help": timed(folder, *cli, "--help"),
        HEAVY: timed(folder, python, "-c", HEAVY),
        "inspect": timed(folder, *cli, "inspect", str(config)),
        "new --no-prove": timed(folder, *new),
    }
    if prove:
        times["new"] = timed(folder, *cli, "new", f"{port}-proven", "--config", str(config))
    return times


def row(rounds: list[dict[str, Cost]], command: str, against: str, budget: float) -> Row:
    """Summarise one command over the rounds."""
    runs = [(costs[command], costs.get(against)) for costs in rounds if command in costs]
    walls = [cost.wall / (base.wall if base else 1.0) for cost, base in runs]
    cpus = [cost.cpu / (base.cpu if base else 1.0) for cost, base in runs]
    return Row(
        command=command,
        seconds=statistics.median(cost.wall for cost, _ in runs),
        against=against,
        ratio=statistics.median(walls),
        least=min(walls),
        most=max(walls),
        cpu_ratio=statistics.median(cpus),
        budget=budget,
    )


def show(rows: list[Row]) -> None:
    """Print the table."""
    print(f"{'command':<16}{'seconds':>8}{'result':>9}{'spread':>16}{'by cpu':>9}{'budget':>8}")
    for item in rows:
        unit = "x" if item.against else "s"
        spread = f"{item.least:.2f}-{item.most:.2f}{unit}"
        print(
            f"{item.command:<16}{item.seconds:>8.2f}{item.ratio:>8.2f}{unit}{spread:>16}"
            f"{item.cpu_ratio:>8.2f}{unit}{item.budget:>7.0f}{unit}"
            f"{'  of ' + item.against if item.against else ''}{'' if item.within else '  OVER'}"
        )


def main() -> int:
    """Run the rounds; the exit code is 1 when a budget is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="a published config.json")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of every command")
    parser.add_argument("--proofs", type=int, default=1, help="rounds that also run `new`")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    rounds, config = [], options.config.resolve()
    with tempfile.TemporaryDirectory() as folder:
        one_round(config, -1, Path(folder), prove=False)  # fills the disk cache
        for number in range(options.rounds):
            prove = number < options.proofs
            rounds.append(one_round(config, number, Path(folder), prove))
    rows = [
        row(rounds, "--help", TYPER, 2.0),
        row(rounds, "inspect", HEAVY, 2.0),
        row(rounds, "new --no-prove", HEAVY, 2.0),
    ]
    if options.proofs > 0:
        rows.append(row(rounds, "new", "", 20.0))
    show(rows)
    if options.json:
        machine = {"python": platform.python_version(), "cores": os.cpu_count()}
        figures = [asdict(item) | {"within": item.within} for item in rows]
        document = {"config": options.config.name, "machine": machine, "rows": figures}
        options.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return 0 if all(item.within for item in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
