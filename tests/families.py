"""Which published configurations and variants must become ports, and which must be refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from published_configs import FOLDER, PUBLISHED, VARIANTS, load

#: Published files of other dense families.
FURTHER = (
    "EleutherAI__gpt-j-6b",
    "bigscience__bloom-560m",
    "google__gemma-2-9b",
    "google__gemma-3-1b-it",
    "ibm-granite__granite-3.3-8b-instruct",
    "microsoft__phi-2",
)
PORTED = (*PUBLISHED, *FURTHER, *VARIANTS)

#: What must be refused -> the axis that the refusal names.
REFUSED = {
    "google-t5__t5-small": "encoder-decoder",
    "ai21labs__Jamba-v0.1": "attention",
    "mistralai__Devstral-2-123B-Instruct-2512": "quantization",
}


def config_file(name: str, folder: Path) -> Path:
    """The file of a published name, or one written into a folder beside `folder` for a variant."""
    if name not in VARIANTS:
        return FOLDER / f"{name}.json"
    source = folder.with_name(f"{folder.name}-source")
    source.mkdir(exist_ok=True)
    path = source / "config.json"
    path.write_text(json.dumps(load(name)))
    return path


def heed_interrupts() -> None:
    """For a child that is to be interrupted: what a shell runs in the background ignores it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run_in(port: Path, *command: str) -> str:
    """The output of ``python -m command``, run in a port as its owner would; it must succeed."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    for variable in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"):
        environment.pop(variable, None)
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=port, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    return result.stdout
