"""Runtime rules: meta initialisation, registration in a fresh process, LoRA threading."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.errors import CheckFailed
from trtllm_scaffold.verify.harness import (
    Driver,
    Piece,
    Setup,
    load_model,
    model_config,
    runtime_api,
)
from trtllm_scaffold.verify.locate import relative_error
from trtllm_scaffold.verify.parity import BACKENDS, FP32_BOUND, Case
from trtllm_scaffold.verify.pool import WorkerPool
from trtllm_scaffold.verify.port_module import finding, import_port, load_config, quiet
from trtllm_scaffold.verify.report import Check, verdict
from trtllm_scaffold.verify.runtime import start_runtime
from trtllm_scaffold.verify.scenarios import position_limit


def check_meta_init(case: Case) -> Check:
    """Built under the runtime's meta mode, made real and filled, the model computes the same."""
    inputs = case.inputs[0]
    setup = case.setup(inputs, BACKENDS[0])
    problems: list[str] = []
    measured: dict[str, Any] = {}
    try:
        with quiet():
            model = _meta_model(case.config, setup)
            left = [name for name, item in model.named_parameters() if not item.is_meta]
            measured["parameters_made_early"] = len(left)
            _materialise(model, setup.device)
            load_model(model, case.weights)
            expected = prefill(case, case.model(setup), setup)
            error = relative_error(prefill(case, model, setup), expected)
        measured["relative_error"] = error
        if not error <= FP32_BOUND:
            problems.append(
                f"after meta initialisation logits differ by {error:.2e}: "
                "something computed in a constructor is lost or never set"
            )
    except Exception as error:  # whatever the port raises is a finding about the port
        problems.append(finding(error, case.package) + ": the loader would fall back to the CPU")
    return verdict(
        "meta initialisation", problems, measured=measured, bound={"relative_error": FP32_BOUND}
    )


def _meta_model(config: Any, setup: Setup) -> Any:
    api = runtime_api()
    with api.MetaInitMode():
        return api.AutoModelForCausalLM.from_config(model_config(config, setup))


def _materialise(model: nn.Module, device: str) -> None:
    """Replace meta tensors by memory full of NaN: what nobody fills will show.

    Each once, as the loader does, so that tied parameters stay tied.
    """
    fresh: dict[torch.Tensor, torch.Tensor] = {}

    def real(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_meta:
            return tensor.to(device)
        if tensor not in fresh:
            empty = torch.empty_like(tensor, device=device)
            fresh[tensor] = empty.fill_(torch.nan) if empty.is_floating_point() else empty.zero_()
        return fresh[tensor]

    model._apply(real)


def prefill(case: Case, model: Any, setup: Setup) -> torch.Tensor:
    """Logits [n, vocab_size] of the first sequence."""
    tokens = case.inputs[0].sequences[0]
    with Driver(model, setup) as driver:
        driver.reserve({0: len(tokens)})
        return driver.forward([Piece(0, tokens, 0, True)])[0]


def check_lora(case: Case) -> Check:
    """``lora_params`` given to the model reach the attention and the mlp of every layer."""
    inputs = case.inputs[0]
    setup = case.setup(inputs, BACKENDS[0])
    problems: list[str] = []
    reached: dict[str, bool] = {}
    try:
        with quiet():
            model = case.model(setup)
            with _watched(model, reached), Driver(model, setup) as driver:
                driver.reserve({0: 4})
                driver.forward(
                    [Piece(0, inputs.sequences[0][:4], 0, True)], lora_params=dict(_SENTINEL)
                )
    except Exception as error:  # whatever the port raises is a finding about the port
        problems.append(finding(error, case.package))
    missed = [name for name, seen in reached.items() if not seen]
    if missed and not problems:
        problems.append(f"lora_params never arrive at {', '.join(missed[:3])}")
    measured = {"modules": len(reached), "reached": sum(reached.values())}
    return verdict("LoRA threading", problems, measured=measured, bound={"reached": len(reached)})


#: Not real adapters: taken out again before a module could use them.
_SENTINEL: Mapping[str, Any] = {"trtllm_scaffold": True}


@contextmanager
def _watched(model: Any, reached: dict[str, bool]) -> Iterator[None]:
    """Note which attention and mlp modules receive the sentinel, and take it from them."""
    handles = []
    for index, layer in enumerate(model.model.layers):
        for part in ("self_attn", "mlp"):
            name = f"model.layers.{index}.{part}"
            reached[name] = False
            hook = _note(name, reached)
            module = getattr(layer, part)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(name: str, reached: dict[str, bool]) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = kwargs.get("lora_params")
        if isinstance(found, dict) and "trtllm_scaffold" in found:
            reached[name] = True
            kwargs = {**kwargs, "lora_params": None}
        return args, kwargs

    return hook


def check_registration(
    pool: WorkerPool, package: Path, config: Path, runtime: str, generations: Sequence[str]
) -> Check:
    """A fresh process knows the architecture after importing the package by its folder alone."""
    job = {
        "package": package,
        "config": config,
        "runtime": runtime,
        "generations": list(generations),
    }
    try:
        (found,) = pool.run("trtllm_scaffold.verify.rules:register", [job], first=pool.size - 1)
    except CheckFailed as error:
        return verdict("registration", [str(error)])
    problems = [f"TensorRT-LLM {name}: {text}" for name, text in found.items() if text]
    measured = {"generations": list(found), "architecture_found": not problems}
    return verdict("registration", problems, measured=measured)


def register(package: Path, config: Path, runtime: str, generations: list[str]) -> dict[str, str]:
    """In a worker: import the port on each generation and build its model by architecture.

    Returns:
        For each generation what went wrong, empty where nothing did.
    """
    return {name: _register(package, config, runtime, name) for name in generations}


def _register(package: Path, config: Path, runtime: str, generation: str) -> str:
    try:
        with quiet():
            start_runtime(runtime, generation)
            before = _registered(load_config(config).architectures[0])
            module = import_port(package)
            pretrained = load_config(config)
            model = runtime_api().AutoModelForCausalLM.from_config(
                model_config(pretrained, Setup(max_seq_len=position_limit(pretrained)))
            )
    except Exception as error:  # whatever the port raises is a finding about the port
        return finding(error, package)
    if before and type(model) is before:
        return f"{type(model).__name__} was registered before the port was imported"
    if not type(model).__module__.startswith(module.__name__):
        return f"the architecture gives {type(model).__module__}.{type(model).__name__}"
    return ""


def _registered(architecture: str) -> type | None:
    registry = importlib.import_module("tensorrt_llm._torch.models.modeling_utils")
    found: type | None = registry.MODEL_CLASS_MAPPING.get(architecture)
    return found
