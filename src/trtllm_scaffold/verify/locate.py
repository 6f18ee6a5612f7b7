"""Find where a port's forward pass first leaves HF's, by comparing module outputs in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.verify.harness import Driver, Piece
from trtllm_scaffold.verify.report import LayerErrors


def compare_stages(
    driver: Driver, reference: nn.Module, tokens: torch.Tensor, *, title: str, bound: float
) -> LayerErrors:
    """Prefill `tokens` [n] on both models and compare what each stage puts out.

    Stages: the embedding, in each layer the parts that both models have, the layer, the final
    norm and the logits, in the order in which the port runs them.
    """
    ours: dict[str, torch.Tensor] = {}
    theirs: dict[str, torch.Tensor] = {}
    layers = _layer_list(reference)
    with _recorded(_port_stages(driver.model, layers), ours):
        driver.reserve({90: len(tokens)})
        ours["logits"] = driver.forward([Piece(90, tokens, 0, True)])[0]
    with torch.inference_mode(), _recorded(_reference_stages(reference, layers), theirs):
        theirs["logits"] = reference(input_ids=tokens[None]).logits[0]
    names, errors = [], []
    for name, value in ours.items():
        expected = theirs.get(name)
        if expected is not None and expected.numel() == value.numel():
            names.append(name)
            errors.append(relative_error(value.reshape(expected.shape), expected))
    return LayerErrors(title, tuple(names), tuple(errors), bound)


def first_departure(stages: LayerErrors) -> str:
    """The first stage beyond the bound, with its error; empty if none is."""
    for name, error in zip(stages.stages, stages.errors, strict=True):
        if not error <= stages.bound:
            return f"{name} (error {error:.2e})"
    return ""


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Max |value - expected| / max(1, max |expected|); infinite where either is not finite."""
    value, expected = value.float().cpu(), expected.float().cpu()
    error = float((value - expected).abs().max()) / max(1.0, float(expected.abs().max()))
    return error if error == error else float("inf")


def _layer_list(reference: nn.Module) -> list[nn.Module]:
    """HF's decoder layers: its longest list of modules."""
    lists = [list(item) for item in reference.modules() if isinstance(item, nn.ModuleList)]
    return max(lists, key=len, default=[])


def _port_stages(model: Any, layers: list[nn.Module]) -> Iterator[tuple[str, nn.Module, str]]:
    """(stage, module, what to keep of its call) of the port."""
    inner = model.model
    yield "model.embed_tokens", inner.layers[0], "input"
    for index, (layer, twin) in enumerate(zip(inner.layers, layers, strict=False)):
        for name, child in layer.named_children():
            if _twin_child(twin, name) is not None:
                yield f"model.layers.{index}.{name}", child, "output"
        yield f"model.layers.{index}", layer, "stream"
    yield "model.norm", inner, "output"


def _reference_stages(
    reference: nn.Module, layers: list[nn.Module]
) -> Iterator[tuple[str, nn.Module, str]]:
    """The same stages of HF's model."""
    if layers:
        yield "model.embed_tokens", layers[0], "input"
    for index, layer in enumerate(layers):
        for name in ("self_attn", "mlp", *(key for key, _ in layer.named_children())):
            child = _twin_child(layer, name)
            if child is not None:
                yield f"model.layers.{index}.{name}", child, "output"
        yield f"model.layers.{index}", layer, "output"
    head = reference.get_output_embeddings()  # type: ignore[operator]
    if head is not None:
        yield "model.norm", head, "input"


def _twin_child(layer: nn.Module, name: str) -> nn.Module | None:
    """The part of an HF layer that a port calls `name`: norms keep their names, two do not."""
    children = dict(layer.named_children())
    if name in children:
        return children[name]
    kind = {"self_attn": "attention", "mlp": "mlp"}.get(name)
    if kind is None:
        return None
    return next((part for part in children.values() if kind in type(part).__name__.lower()), None)


@contextmanager
def _recorded(
    stages: Iterator[tuple[str, nn.Module, str]], found: dict[str, torch.Tensor]
) -> Iterator[None]:
    handles = []
    for name, module, kind in stages:
        if kind == "input":
            hook = _input_hook(name, found)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        else:
            handles.append(module.register_forward_hook(_output_hook(name, kind, found)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input_hook(name: str, found: dict[str, torch.Tensor]) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = kwargs.get("hidden_states", args[0] if args else None)
        if isinstance(value, torch.Tensor):
            found[name] = value.detach().clone()

    return hook


def _output_hook(name: str, kind: str, found: dict[str, torch.Tensor]) -> Any:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        if not isinstance(parts[0], torch.Tensor):
            return
        value = parts[0].detach().clone()
        if kind == "stream" and len(parts) == 2 and isinstance(parts[1], torch.Tensor):
            value = value + parts[1]  # the layer hands on (hidden, residual), HF their sum
        found[name] = value

    return hook
