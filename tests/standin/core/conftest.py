from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from trtllm_scaffold.standin import generation as generations


@pytest.fixture(autouse=True)
def one_thread_and_a_seed() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(20)
    before = generations.active()
    yield
    generations.set_active(before)


@pytest.fixture(params=["1.2", "1.4"])
def generation(request: pytest.FixtureRequest) -> str:
    generations.set_active(request.param)
    return request.param
