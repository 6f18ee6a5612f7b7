"""The ports of the GPU suite, and the rows that it leaves behind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trtllm_scaffold.errors import EnvironmentProblem
from trtllm_scaffold.verify.pool import WorkerPool
from trtllm_scaffold.verify.port_files import read_port
from trtllm_scaffold.verify.port_module import forget_port, import_port
from trtllm_scaffold.verify.runtime import start_runtime

from .families import FAMILIES, GENERATIONS
from .rows import Row, row_of, table, write_json
from .sizes import DRY, FULL, Sizes
from .subject import Reference, Subject, make_reference

_FOLDER = Path(__file__).parent
_rows: list[Row] = []
_started = time.monotonic()
_skipped_for_want = {"count": 0}


def _sizes(config: Any) -> Sizes:
    return DRY if config.getoption("--gpu-dry-run") else FULL


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Skip the suite where it cannot run, before anything is built for it."""
    reason = _obstacle(config)
    for item in items:
        if _FOLDER in item.path.parents and "subject" in item.fixturenames:
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
            elif config.pluginmanager.hasplugin("xdist"):
                family, _ = item.callspec.params["subject"]
                item.add_marker(pytest.mark.xdist_group(family))


def _obstacle(config: Any) -> str:
    if not config.getoption("--gpu-dry-run") and not torch.cuda.is_available():
        return "needs a CUDA device"
    if config.getoption("--gpu-ports") is None:
        return "needs ports for the GPU suite: --gpu-ports DIR, rendered by tools/gpu_ports.py"
    return ""


@pytest.fixture(scope="session")
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return _sizes(request.config)


@pytest.fixture(scope="session")
def references(sizes: Sizes) -> Iterator[Callable[[str, Path], Reference]]:
    """HF's model of a family; the one asked for last is kept for the other generation."""
    held: dict[str, Reference] = {}
    with contextlib.ExitStack() as stack:

        def get(family: str, path: Path) -> Reference:
            if family not in held:
                held.clear()
                stack.close()
                if sizes.device == "cuda":
                    torch.cuda.empty_cache()
                held[family] = stack.enter_context(make_reference(path, sizes))
            return held[family]

        yield get


@pytest.fixture(
    scope="session",
    params=[(family, generation) for family in FAMILIES for generation in GENERATIONS],
    ids="-".join,
)
def subject(
    request: pytest.FixtureRequest, sizes: Sizes, references: Callable[[str, Path], Reference]
) -> Iterator[Subject]:
    """A port, imported, with HF's model on the device."""
    family, generation = request.param
    folder = request.config.getoption("--gpu-ports") / f"{family}-{generation}"
    if not folder.is_dir():
        pytest.skip(f"--gpu-ports has no {folder.name}")
    files = read_port(folder)
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        reference = references(family, files.root / sizes.config)
    except EnvironmentProblem as problem:
        pytest.skip(f"transformers here cannot build it: {problem}")
    start_runtime("standin", generation, sizes.device)
    import_port(files.package)
    yield Subject(files, family, generation, sizes, reference)
    forget_port(files.package)


@pytest.fixture(scope="session")
def ranks() -> Iterator[WorkerPool]:
    """Two processes for tensor parallelism."""
    with WorkerPool(2) as pool:
        yield pool


@pytest.fixture
def measure(request: pytest.FixtureRequest, subject: Subject) -> Callable[..., Callable[..., None]]:
    """Name the check; what it returns notes figures and fails the test beyond their bounds."""

    def begin(check: str, **bound: float) -> Callable[..., None]:
        facts: dict[str, Any] = {
            "port": subject.family,
            "generation": subject.generation,
            "check": check,
            "measured": {},
            "bound": bound,
        }
        request.node.user_properties.append(("gpu", facts))

        def note(**figures: Any) -> None:
            facts["measured"].update(figures)
            for name, limit in bound.items():
                value = figures[name]
                assert value <= limit, f"{check}: {name} is {value:.3g}, allowed {limit:.3g}"

        return note

    return begin


def pytest_runtest_logreport(report: Any) -> None:
    row = row_of(report)
    if row is not None:
        _rows.append(row)
    if report.skipped and "needs a CUDA device" in str(report.longrepr):
        _skipped_for_want["count"] += 1


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    if _skipped_for_want["count"]:
        count = _skipped_for_want["count"]
        terminalreporter.write_line(f"{count} GPU test(s) skipped for want of a CUDA device")
    if not _rows:
        return
    order = list(FAMILIES)
    _rows.sort(key=lambda row: (row.generation, order.index(row.port)))
    path = config.getoption("--gpu-json")
    if path is not None:
        write_json(path, _sizes(config).device, _rows, time.monotonic() - _started)
    terminalreporter.section("GPU suite: the bounded figure of each check")
    for line in table(_rows):
        terminalreporter.write_line(line)
