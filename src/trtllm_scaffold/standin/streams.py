"""Running two functions side by side on CUDA streams, or one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from trtllm_scaffold.standin.generation import contract

_local = threading.local()


def do_multi_stream() -> bool:
    """Whether side streams are in use in this thread."""
    return getattr(_local, "enabled", False)


def set_do_multi_stream(enable: bool) -> None:
    """Switch side streams on or off in this thread."""
    _local.enabled = enable


@contextmanager
def with_multi_stream(enable: bool) -> Iterator[None]:
    """Switch side streams for a while."""
    before = do_multi_stream()
    set_do_multi_stream(enable)
    try:
        yield
    finally:
        set_do_multi_stream(before)


@contract("maybe_execute_in_parallel")
def maybe_execute_in_parallel(
    fn0: Callable[[], Any],
    fn1: Callable[[], Any],
    event0: Any,
    event1: Any,
    aux_stream: torch.cuda.Stream | None = None,
    disable_on_compile: bool = False,
) -> tuple[Any, Any]:
    """Results of both functions; ``fn1`` runs on ``aux_stream`` if side streams are in use."""
    if not do_multi_stream() or aux_stream is None:
        return fn0(), fn1()
    event0.record()
    first = fn0()
    with torch.cuda.stream(aux_stream):
        event0.wait()
        second = fn1()
        event1.record()
    event1.wait()
    return first, second
