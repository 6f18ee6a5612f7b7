"""CUDA streams and events on a machine without CUDA: model files make them while they build."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class HostStream:
    """Work is done when it is asked for: waiting is nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: Any) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


class HostEvent:
    """See :class:`HostStream`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def record(self, stream: Any = None) -> None:
        """Everything before is done."""

    def wait(self, stream: Any = None) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


@contextmanager
def host_streams() -> Iterator[None]:
    """While active and without CUDA, ``torch.cuda.Stream`` and ``Event`` make inert objects.

    PyTorch itself refuses to make them there, so no working code changes its meaning. Where
    there is CUDA, nothing is changed.
    """
    if torch.cuda.is_available():
        yield
        return
    kept = torch.cuda.Stream, torch.cuda.Event
    torch.cuda.Stream, torch.cuda.Event = HostStream, HostEvent  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.cuda.Stream, torch.cuda.Event = kept  # type: ignore[misc]
