from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_and_nothing_left(request, monkeypatch):
    from trtllm_scaffold.standin.generation import active, set_active
    from trtllm_scaffold.standin.install import uninstall

    torch.set_num_threads(1)
    torch.manual_seed(5)
    on_gpu = request.node.get_closest_marker("gpu")
    monkeypatch.setenv("TRTLLM_SCAFFOLD_DEVICE", "cuda" if on_gpu else "cpu")
    before = active()
    yield
    uninstall()
    set_active(before)


@pytest.fixture(params=["1.2", "1.4"])
def generation(request):
    from trtllm_scaffold.standin.install import install

    install(request.param, force=True)
    return request.param
