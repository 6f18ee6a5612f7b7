from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from families import heed_interrupts

from trtllm_scaffold.verify import pool as pool_module
from trtllm_scaffold.verify.pool import WorkerFailed, WorkerPool, warm_pool, warm_up


@pytest.fixture
def own_pool():
    with WorkerPool(2) as pool:
        yield pool


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def gone(pid: int, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not alive(pid)


def test_workers_run_at_the_same_time_and_answer_in_order(pool):
    pids = pool.run("os:getpid", [{}, {}, {}])
    assert len({os.getpid(), *pids}) == 4
    assert pool.run("os:getpid", [{}, {}, {}]) == pids, "the same processes serve again"
    assert pool.run("os:getpid", [{}], first=2) == [pids[2]]
    start = time.monotonic()
    pool.run("subprocess:run", [{"args": ["sleep", "1"]}] * 3)
    assert time.monotonic() - start < 2.5


def test_an_error_comes_back_with_its_text_and_the_pool_lives_on(pool):
    with pytest.raises(WorkerFailed, match="FileNotFoundError.*absent") as caught:
        pool.run("os:listdir", [{"path": "/absent"}])
    assert "Traceback" in caught.value.details
    assert "Traceback" not in str(caught.value)
    assert not pool.closed
    assert pool.run("os:getcwd", [{}]) == [str(Path.cwd())]


def test_a_worker_that_dies_is_reported(own_pool):
    with pytest.raises(WorkerFailed, match="died"):
        own_pool.run("os:abort", [{}])


def test_a_hang_ends_with_the_timeout_and_leaves_nothing(own_pool):
    pids = own_pool.run("os:getpid", [{}, {}])
    with pytest.raises(WorkerFailed, match="no answer from 1 workers in 1 s"):
        own_pool.run("signal:pause", [{}], timeout=1)
    assert own_pool.closed
    assert all(gone(pid) for pid in pids)
    with pytest.raises(WorkerFailed, match="closed"):
        own_pool.run("os:getpid", [{}])


def test_a_rank_that_fails_does_not_leave_the_other_waiting(own_pool):
    pids = own_pool.run("os:getpid", [{}, {}])
    start = time.monotonic()
    with pytest.raises(WorkerFailed, match="FileNotFoundError"):
        own_pool.run("subprocess:run", [{"args": ["/absent"]}, {"args": ["sleep", "60"]}])
    assert time.monotonic() - start < 10
    assert all(gone(pid) for pid in pids)


def test_close_ends_every_process():
    pool = WorkerPool(2)
    pids = pool.run("os:getpid", [{}, {}])
    pool.close()
    pool.close()
    assert all(gone(pid) for pid in pids)


def test_closing_before_the_workers_are_up_is_quick():
    start = time.monotonic()
    WorkerPool(2).close()
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_their_owner(sign):
    code = (
        "from trtllm_scaffold.verify.pool import WorkerPool\n"
        "pool = WorkerPool(2)\n"
        "print(*pool.run('os:getpid', [{}, {}]), flush=True)\n"
        "pool.run('signal:pause', [{}], timeout=60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=heed_interrupts,
    )
    pids = [int(text) for text in owner.stdout.readline().split()]
    assert len(pids) == 2
    owner.send_signal(sign)
    owner.wait(timeout=20)
    assert all(gone(pid) for pid in pids)


def test_a_warm_pool_serves_later_proofs(monkeypatch):
    monkeypatch.setattr(pool_module, "_warm", [])  # other tests may have warmed one
    warm_up(2)
    pool = warm_pool(2)
    assert pool is not None and warm_pool(3) is None
    warm_up(2)
    assert warm_pool(2) is pool, "one is enough"
    assert len(set(pool.run("os:getpid", [{}, {}]))) == 2
    pool.close()
    assert warm_pool(2) is None


def test_more_workers_than_there_are_is_our_mistake(pool):
    with pytest.raises(ValueError, match="4 workers asked of a pool of 3"):
        pool.run("os:getpid", [{}] * 4)
