"""The stand-in on a GPU against HF: prefill, decode, memory, launches and the machine's floors.

Usage: python benchmarks/gpu.py --ports DIR [--json FILE] [--only NAME,...] [--quick]

DIR is what `tools/gpu_ports.py` writes. The sizes are those of published models, some with fewer
layers; the weights are random.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from trtllm_scaffold.bench.floors import measure_machine
from trtllm_scaffold.bench.run import Plan, rows_of
from trtllm_scaffold.bench.subject import subject

#: Name: (folder of the port, what its config.json is changed to).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 1.5B": (
        "llama_tied-1.2",
        {
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 20,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "vocab_size": 128256,
            "tie_word_embeddings": True,
        },
    ),
    "llama 8B": (
        "llama-1.2",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 128256,
            "tie_word_embeddings": False,
        },
    ),
    "qwen3, 16 layers of 4B": (
        "qwen3-1.2",
        {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
            "max_window_layers": 16,
            "layer_types": ["full_attention"] * 16,
        },
    ),
    "gemma2, 12 layers of 2B": (
        "gemma2-1.2",
        {
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "vocab_size": 256000,
            "layer_types": ["sliding_attention", "full_attention"] * 6,
        },
    ),
    "mixtral, 8 layers, 8 experts of 3584": (
        "mixtral-1.2",
        {
            "hidden_size": 2048,
            "intermediate_size": 3584,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "sliding_window": None,
            "vocab_size": 32000,
        },
    ),
}
_QUICK = Plan(prompts=(256,), batches=(1,), context=64, compiled=False)


def main() -> None:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ports", type=Path, required=True)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--only", default="", help="names, or their beginnings, comma-separated")
    parser.add_argument("--prefill", action="store_true", help="no decode rows")
    parser.add_argument("--quick", action="store_true", help="one small row of each")
    options = parser.parse_args()
    wanted = tuple(word for word in options.only.split(",") if word)
    plan = _QUICK if options.quick else Plan(batches=() if options.prefill else Plan.batches)
    machine = measure_machine()
    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for name, (folder, changes) in MODELS.items():
        if wanted and not name.startswith(wanted):
            continue
        try:
            port = options.ports / folder
            with subject(port, port / "config.json", changes, plan.longest) as made:
                for row in rows_of(name, made, machine, plan, _tell):
                    rows.append(row)
                    _write(options.json, machine, rows, failed)
        except Exception as error:  # the other models still have their rows
            failed[name] = f"{type(error).__name__}: {error}"
        _write(options.json, machine, rows, failed)
    _print(rows, failed)
    sys.exit(1 if failed else 0)


def _tell(text: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def _write(
    path: Path | None, machine: Any, rows: list[dict[str, Any]], failed: dict[str, str]
) -> None:
    if path is None:
        return
    import transformers
    import triton

    document = {
        "machine": torch.cuda.get_device_name(),
        "copy_bandwidth_GBps": round(machine.bandwidth / 1e9, 1),
        "matmul_TFLOPs": round(machine.matmul / 1e12, 1),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "triton": triton.__version__,
            "python": platform.python_version(),
        },
        "date": f"{datetime.date.today()}",
        "command": " ".join(["python", *sys.argv]),
        "runtime": "the stand-in of trtllm-scaffold; nothing here ran on TensorRT-LLM",
        "rows": rows,
        "failed": failed,
    }
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _print(rows: list[dict[str, Any]], failed: dict[str, str]) -> None:
    heads = ("model", "metric", "batch", "ours", "hf_eager", "hf_best", "floor", "unit")
    table = [heads, *(tuple(str(row.get(head, "")) for head in heads) for row in rows)]
    widths = [max(len(line[place]) for line in table) for place in range(len(heads))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)))
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}")


if __name__ == "__main__":
    main()
