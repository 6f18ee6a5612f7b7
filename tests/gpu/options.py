"""Command line options of the GPU suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
