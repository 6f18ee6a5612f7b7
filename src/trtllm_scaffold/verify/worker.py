"""A rank of the worker pool: waits for tasks on its socket, runs them, sends back the result.

``main`` runs in the pool's one parent process. It imports the slow libraries once and forks the
ranks, so that eight ranks cost one import.
"""

from __future__ import annotations

import importlib
import os
import signal
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from trtllm_scaffold.errors import ScaffoldError

#: Imported once, before the ranks are forked.
_PRELOAD = (
    "torch",
    "torch.distributed",
    "transformers.models.auto.configuration_auto",
    "trtllm_scaffold.standin",
    "trtllm_scaffold.verify.parallel",
)


@dataclass(frozen=True)
class Task:
    """What a rank is asked to run: ``function`` is "module:name", called with the arguments."""

    function: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """What a rank sends back instead of a result."""

    summary: str
    details: str


def main(descriptors: Sequence[int]) -> None:
    """Import the libraries, fork one rank per socket, and end with the pool's owner.

    The owner holds the other end of the standard input and never writes: the end of it is the
    end of the owner, however it came, and no rank outlives that.
    """
    for name in _PRELOAD:
        importlib.import_module(name)
    for descriptor in descriptors:
        if os.fork() == 0:
            for other in descriptors:
                if other != descriptor:
                    os.close(other)
            _serve(Connection(descriptor))
            os._exit(0)
    for descriptor in descriptors:
        os.close(descriptor)
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def _serve(connection: Connection) -> None:
    """Run tasks until the other end is closed."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    while True:
        try:
            task = connection.recv()
        except (EOFError, ConnectionError):
            return
        try:
            answer = _run(task)
        except BaseException as error:  # whatever it is, the pool's owner must hear of it
            summary = " ".join(str(error).split())
            if not isinstance(error, ScaffoldError):
                summary = f"{type(error).__name__}: {summary}"
            answer = Failure(summary, traceback.format_exc())
        try:
            connection.send(answer)
        except ConnectionError:
            return


def _run(task: Task) -> Any:
    module, _, name = task.function.partition(":")
    return getattr(importlib.import_module(module), name)(**task.arguments)
