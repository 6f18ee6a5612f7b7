from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _leave_nothing_behind(request, monkeypatch):
    from trtllm_scaffold.standin.install import uninstall

    torch.set_num_threads(1)
    on_gpu = request.node.get_closest_marker("gpu")
    monkeypatch.setenv("TRTLLM_SCAFFOLD_DEVICE", "cuda" if on_gpu else "cpu")
    yield
    uninstall()


@pytest.fixture(params=["1.2", "1.4"])
def generation(request):
    from trtllm_scaffold.standin.install import install

    install(request.param, force=True)
    return request.param
