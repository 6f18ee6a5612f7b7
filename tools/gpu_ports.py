"""Render the ports of the GPU suite, on a machine that has all of trtllm-scaffold's requirements.

    python tools/gpu_ports.py OUT

writes OUT/<family>-<generation>, a port for each family of tests/gpu/families.py and each
generation, and OUT/llama_tied-1.2, which benchmarks/gpu.py times too. The machine with the GPU then
needs torch, transformers and pytest alone:

    python -m pytest -m gpu tests/gpu --gpu-ports OUT
    python benchmarks/gpu.py --ports OUT
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from gpu.families import FAMILIES, GENERATIONS  # noqa: E402

from trtllm_scaffold.pipeline import new_port  # noqa: E402
from trtllm_scaffold.sources import load_path  # noqa: E402

#: Ports that are only timed.
TIMED = {"llama_tied": {**FAMILIES["llama"], "tie_word_embeddings": True}}


def render(family: str, generation: str, out: Path) -> str:
    """Write the port of one family; returns what `inspect` calls its support."""
    config = TIMED.get(family) or FAMILIES[family]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(config), encoding="utf-8")
        dest = out / f"{family}-{generation}"
        made = new_port(load_path(path), dest, name=family, trtllm=generation, prove=False)
    return made.support.level.name


def main() -> None:
    """Parse the command line and render."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a new or empty folder")
    parser.add_argument("--only", default="", help="families to render, separated by commas")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",") if arguments.only else [*FAMILIES, *TIMED]
    for family in wanted:
        for generation in GENERATIONS[:1] if family in TIMED else GENERATIONS:
            level = render(family, generation, arguments.out)
            print(f"{family} {generation}: {level}", flush=True)


if __name__ == "__main__":
    main()
