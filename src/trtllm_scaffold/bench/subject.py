"""One model twice: HF's class and the port, with the same random weights, on the GPU."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trtllm_scaffold.errors import EnvironmentProblem
from trtllm_scaffold.verify.cuda_graph import is_capturable
from trtllm_scaffold.verify.harness import Setup, build_model
from trtllm_scaffold.verify.port_files import read_port
from trtllm_scaffold.verify.port_module import (
    as_checkpoint,
    describe,
    import_port,
    load_config,
    quiet,
)
from trtllm_scaffold.verify.runtime import start_runtime

DTYPE = torch.bfloat16


@dataclass
class Subject:
    """What is timed.

    Attributes:
        config: The HF configuration.
        reference: HF's model, bf16, attention by sdpa where it has that.
        port: The port's model on the stand-in, bf16.
        setup: How the port was built.
        runtime: Name and version of what the port runs on.
        captured: Whether its decode step can be in a CUDA graph.
    """

    config: Any
    reference: torch.nn.Module
    port: Any
    setup: Setup
    runtime: dict[str, str]
    captured: bool


def require_gpu() -> None:
    """Raise an EnvironmentProblem where there is no CUDA device."""
    if not torch.cuda.is_available():
        raise EnvironmentProblem("no CUDA device", hint="a benchmark's times are those of a GPU")


@contextmanager
def subject(
    port: Path, config_path: Path, changes: dict[str, Any], max_seq_len: int
) -> Iterator[Subject]:
    """Build both models; their memory is given back at the end.

    Args:
        port: What ``trtllm-scaffold new`` wrote.
        config_path: The configuration to build, one that the port serves.
        changes: Keys of the configuration to set, for another size of the same family.
        max_seq_len: Longest sequence.

    Raises:
        EnvironmentProblem: If there is no CUDA device, or HF cannot build the model.
    """
    require_gpu()
    files = read_port(port)
    generation = files.answers.get("trtllm", "1.2")
    runtime = start_runtime("standin", generation, "cuda")
    import_port(files.package)
    config = load_config(config_path)
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    with quiet(), torch.inference_mode():
        reference = _reference(config)
        setup = Setup(max_seq_len=max_seq_len, dtype=DTYPE, device="cuda")
        model = build_model(config, as_checkpoint(reference), setup)
    try:
        captured = is_capturable(files)
        yield Subject(config, reference, model, setup, runtime.to_json(), captured)
    finally:
        del reference, model
        gc.collect()
        torch.cuda.empty_cache()


def _reference(config: Any) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.torch_dtype = DTYPE
    problem: Exception | None = None
    for attention in ("sdpa", "eager"):
        try:
            with torch.device("cuda"):
                model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        except Exception as error:  # model constructors fail in their own ways
            problem = error
            continue
        _randomise(model)
        found: torch.nn.Module = model.eval().requires_grad_(False)
        return found
    assert problem is not None
    raise EnvironmentProblem(f"HF cannot build the model: {describe(problem)}") from problem


def _randomise(model: torch.nn.Module) -> None:
    """Random matrices and vectors: a benchmark on zeros draws less power, and runs faster."""
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            parameter.data.normal_(0.0, 0.7 / parameter.shape[-1] ** 0.5)
        else:
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
