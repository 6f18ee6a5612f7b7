"""The repository's own code is formatted, linted and typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [["ruff", "format", "--check"], ["ruff", "check"], ["mypy"]], ids=" ".join
)
def test_tool_has_nothing_to_say(command: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_decision_by_a_models_name() -> None:
    """infer/, plan/ and the template decide by traits: none compares model_type or a class name."""
    places = [ROOT / "src/trtllm_scaffold/infer", ROOT / "src/trtllm_scaffold/plan"]
    places += [ROOT / "template", ROOT / "includes"]
    for folder in places:
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix in (".py", ".jinja"):
                text = path.read_text(encoding="utf-8")
                for name in (
                    "model_type ==",
                    "model_type in",
                    "architecture ==",
                    "architecture in",
                ):
                    assert name not in text, f"{path}: {name}"
