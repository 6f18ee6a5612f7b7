"""A pool of worker processes that is started once and serves many checks and ports."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any

from trtllm_scaffold.errors import CheckFailed, EnvironmentProblem
from trtllm_scaffold.verify.worker import Failure, Task

#: Seconds that a task may take, the start of the pool included.
TIMEOUT = 120.0


class WorkerFailed(CheckFailed):
    """A task raised in a worker. `details` is its traceback, for a log; never for a user."""

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class WorkerPool:
    """Processes that run one task at a time each, as ranks of a job or on their own.

    The constructor returns at once: the processes start while the caller goes on. Close the
    pool, or use it as a context manager; it is closed at interpreter exit in any case. Its
    processes have a session of their own, so that Ctrl-C reaches the caller alone, and they
    end with the caller, even if it is killed.
    """

    def __init__(self, size: int) -> None:
        if not hasattr(os, "fork"):
            raise EnvironmentProblem("checks in several processes need a system with fork")
        self.size = size
        pairs = [socket.socketpair() for _ in range(size)]
        descriptors = [child.fileno() for _, child in pairs]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the pool)
        start = f"from trtllm_scaffold.verify.worker import main; main({descriptors})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", start],
            pass_fds=descriptors,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
            env={**os.environ, **_environment()},
        )
        for _, child in pairs:
            child.close()
        self._connections = [Connection(parent.detach()) for parent, _ in pairs]
        atexit.register(self.close)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Whether the pool can serve no more."""
        return not self._connections

    def close(self) -> None:
        """End every process of the pool. Safe to call twice."""
        if self.closed:
            return
        atexit.unregister(self.close)
        for connection in self._connections:
            connection.close()
        self._connections = []
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._log.close()

    def run(
        self,
        function: str,
        arguments: Sequence[dict[str, Any]],
        *,
        first: int = 0,
        timeout: float = TIMEOUT,
    ) -> list[Any]:
        """Call `function` in as many workers as there are `arguments`, all at the same time.

        Args:
            function: ``module:name``; results must pickle.
            arguments: Keywords of each call, for the workers `first`, `first` + 1, ...
            first: The first worker to use.
            timeout: Seconds for all of them.

        Returns:
            The results, in the order of `arguments`.

        Raises:
            WorkerFailed: If a call raised, a worker died or the time ran out. The pool is
                closed then, unless every worker answered: the others may hang in a collective.
        """
        if self.closed:
            raise WorkerFailed("the worker pool was closed by an earlier failure")
        chosen = self._connections[first : first + len(arguments)]
        if len(chosen) < len(arguments):
            raise ValueError(f"{first + len(arguments)} workers asked of a pool of {self.size}")
        try:
            for connection, keywords in zip(chosen, arguments, strict=True):
                connection.send(Task(function, keywords))
            answers = self._collect(chosen, timeout)
        except BaseException:
            self.close()
            raise
        failures = [item for item in answers.values() if isinstance(item, Failure)]
        if failures:
            if len(answers) < len(chosen):
                self.close()
            raise WorkerFailed(failures[0].summary, failures[0].details)
        return [answers[connection] for connection in chosen]

    def _collect(self, chosen: Sequence[Connection], timeout: float) -> dict[Connection, Any]:
        """Answers of all, or of those that answered until shortly after the first failure."""
        answers: dict[Connection, Any] = {}
        deadline = time.monotonic() + timeout
        while len(answers) < len(chosen):
            pending = [item for item in chosen if item not in answers]
            ready = wait(pending, timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                if any(isinstance(item, Failure) for item in answers.values()):
                    return answers
                raise WorkerFailed(f"no answer from {len(pending)} workers in {timeout:.0f} s")
            for connection in ready:
                assert isinstance(connection, Connection)
                answers[connection] = self._receive(connection)
                if isinstance(answers[connection], Failure):
                    deadline = min(deadline, time.monotonic() + 2.0)
        return answers

    def _receive(self, connection: Connection) -> Any:
        try:
            return connection.recv()
        except (EOFError, ConnectionError):
            return Failure("a worker process died", self._tail())

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-4000:].decode(errors="replace")


_warm: list[WorkerPool] = []


def warm_up(size: int = 3) -> None:
    """Start a pool for later proofs, while their caller does something else; ended at exit."""
    if not any(not pool.closed and pool.size >= size for pool in _warm):
        _warm.append(WorkerPool(size))


def warm_pool(size: int) -> WorkerPool | None:
    """The pool that `warm_up` started, if it is open and large enough. Not to be closed."""
    return next((pool for pool in _warm if not pool.closed and pool.size >= size), None)


def _environment() -> dict[str, str]:
    """One thread each, rendezvous on the loopback device, and this package importable."""
    source = str(Path(__file__).resolve().parents[2])
    paths = [source, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", _loopback()),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONSAFEPATH": "1",  # a file of the working directory must not replace a library
    }


def _loopback() -> str:
    names = [name for _, name in socket.if_nameindex()]
    return "lo" if "lo" in names else next((name for name in names if name.startswith("lo")), "")
