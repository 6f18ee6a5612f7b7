"""A `new` that is stopped leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from families import heed_interrupts


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", ["reading the architecture", "rendering", "parity"])
def test_interrupted_new_leaves_nothing(tmp_path, write_config, llama, number, stage):
    folder = tmp_path / "cwd"
    folder.mkdir()
    path = write_config(llama)
    command = [sys.executable, "-m", "trtllm_scaffold.cli", "new", "port", "--config", str(path)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        preexec_fn=heed_interrupts,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if stage in line:
                process.send_signal(number)
                break
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130, "".join(said) + rest
    assert "Traceback" not in rest
    assert list(folder.iterdir()) == []
