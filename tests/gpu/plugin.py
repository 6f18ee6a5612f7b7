"""The GPU suite's options, its document and table, and its division among processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from .families import FAMILIES
from .rows import Row, row_of, table, write_json


def add_options(parser: Any) -> None:
    """Declare the options; called from the conftest.py that pytest reads first."""
    group = parser.getgroup("GPU suite")
    group.addoption(
        "--gpu-ports",
        type=Path,
        metavar="DIR",
        help="ports that tools/gpu_ports.py rendered; without them tests/gpu is skipped",
    )
    group.addoption(
        "--gpu-json", type=Path, metavar="FILE", help="write what tests/gpu measured as JSON"
    )
    group.addoption(
        "--gpu-dry-run",
        action="store_true",
        help="run tests/gpu on the CPU with tiny models, to see that it runs",
    )


def share_out_devices() -> None:
    """Give each process of ``-n`` one of the machine's GPUs, before anything asks for them."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    every = sorted(Path("/dev").glob("nvidia[0-9]*"))
    devices = given.split(",") if given else [path.name.removeprefix("nvidia") for path in every]
    if worker and len(devices) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[int(worker[2:]) % len(devices)]


class Report:
    """A plugin of the process that reports: it sees the results of all others."""

    def __init__(self, config: pytest.Config) -> None:
        self.config, self.started = config, time.monotonic()
        self.rows: list[Row] = []
        self.skipped = 0

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: Any, log: Any) -> Any:
        """With ``-n`` the tests of a family share a process: its models are built there once."""
        if config.getoption("--gpu-ports") is None:
            return None
        from xdist.scheduler import LoadScopeScheduling

        class ByFamily(LoadScopeScheduling):
            def _split_scope(self, nodeid: str) -> str:
                return nodeid.partition("[")[2].partition("-")[0] or nodeid

        return ByFamily(config, log)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the row of a finished test."""
        row = row_of(report)
        if row is not None:
            self.rows.append(row)
        if report.skipped and "needs a CUDA device" in str(report.longrepr):
            self.skipped += 1

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Write the document and print the table, the last of what is printed by the suite."""
        if self.skipped:
            terminalreporter.write_line(
                f"{self.skipped} GPU test(s) skipped for want of a CUDA device"
            )
        path = self.config.getoption("--gpu-json")
        if not self.rows or hasattr(self.config, "workerinput"):
            return
        order = list(FAMILIES)
        self.rows.sort(key=lambda row: (row.generation, order.index(row.port)))
        if path is not None:
            device = "cpu" if self.config.getoption("--gpu-dry-run") else "cuda"
            write_json(path, device, self.rows, time.monotonic() - self.started)
        terminalreporter.section("GPU suite: the bounded figure of each check")
        for line in table(self.rows):
            terminalreporter.write_line(line)
