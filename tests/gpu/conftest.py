"""The ports of the GPU suite, with HF's models of them."""

from __future__ import annotations

import contextlib
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
from .sizes import DRY, FULL, Sizes
from .subject import Reference, Subject, make_reference

_FOLDER = Path(__file__).parent


def pytest_itemcollected(item: Any) -> None:
    """Skip the suite where it cannot run, before anything is built for it."""
    if _FOLDER in item.path.parents and "subject" in item.fixturenames:
        reason = _obstacle(item.config)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _obstacle(config: Any) -> str:
    if not config.getoption("--gpu-dry-run") and not torch.cuda.is_available():
        return "needs a CUDA device"
    if config.getoption("--gpu-ports") is None:
        return "needs ports for the GPU suite: --gpu-ports DIR, rendered by tools/gpu_ports.py"
    return ""


@pytest.fixture(scope="session")
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return DRY if request.config.getoption("--gpu-dry-run") else FULL


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
