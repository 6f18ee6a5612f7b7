from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def pools() -> Iterator[dict[int, object]]:
    """Worker pools by size, started when first asked for and replaced when one was closed."""
    held: dict[int, object] = {}
    yield held
    for pool in held.values():
        pool.close()


@pytest.fixture
def pool(pools):
    """A pool of three workers that serves the whole session."""
    from trtllm_scaffold.verify.pool import WorkerPool

    if 3 not in pools or pools[3].closed:
        pools[3] = WorkerPool(3)
    return pools[3]


@pytest.fixture(autouse=True)
def restored_runtime() -> Iterator[None]:
    """Leave no stand-in and no port behind for other tests."""
    yield
    standin = sys.modules.get("trtllm_scaffold.standin")
    if standin is not None:
        standin.uninstall()
    for name in [name for name in sys.modules if name.split(".")[0] == "mistral_port"]:
        del sys.modules[name]
