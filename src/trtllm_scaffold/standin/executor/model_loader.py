"""From a checkpoint folder to a loaded model, in the order of the real runtime."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from trtllm_scaffold.standin.device import runtime_device
from trtllm_scaffold.standin.host_streams import host_streams
from trtllm_scaffold.standin.logger import logger
from trtllm_scaffold.standin.mapping import Mapping
from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.models.auto import AutoModelForCausalLM
from trtllm_scaffold.standin.models.checkpoints import BaseCheckpointLoader
from trtllm_scaffold.standin.models.meta_init import MetaInitMode, materialize


def build_model(config: ModelConfig[Any]) -> tuple[nn.Module, bool]:
    """The model of a config, under MetaInitMode if its constructor allows it.

    Returns:
        The model, and whether meta initialisation worked. If it did not, the reason is logged
        and the model is built plainly, as the real runtime does: slower, and with all weights
        in memory twice on a large model.
    """
    try:
        with MetaInitMode():
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # noqa: BLE001  (the real runtime falls back on anything)
        if "Unknown architecture" in str(error):
            raise
        logger.warning(f"meta initialisation failed, building plainly: {error}")
        config.extra_attrs.clear()
        return AutoModelForCausalLM.from_config(config), False
    return model, True


def load_model(
    checkpoint_dir: str,
    *,
    mapping: Mapping,
    checkpoint_loader: BaseCheckpointLoader | None = None,
    load_format: str = "auto",
    model_kwargs: dict[str, Any] | None = None,
    **config_options: Any,
) -> nn.Module:
    """Read, build, fill and finish a model.

    Args:
        checkpoint_dir: Folder with ``config.json`` and weights.
        mapping: This rank's part of the model.
        checkpoint_loader: Reader of the folder, the HF one by default.
        load_format: ``auto``, or ``dummy`` for uniform weights within 1e-3.
        model_kwargs: Values set on the HuggingFace config when it is read.
        **config_options: Fields of ``ModelConfig``.
    """
    loader = checkpoint_loader or BaseCheckpointLoader.get("HF")
    config = loader.load_config(
        checkpoint_dir, mapping=mapping, model_kwargs=model_kwargs or {}, **config_options
    )
    if config.pretrained_config.torch_dtype is None:
        config.pretrained_config.torch_dtype = config.torch_dtype
    with host_streams():
        model, was_meta = build_model(config)
    device = runtime_device()
    if was_meta:
        materialize(model, device)
    else:
        model.to(device)
    if load_format == "dummy":
        _fill_dummy(model)
    else:
        folder = getattr(model, "llm_checkpoint_dir", checkpoint_dir)
        weights = loader.load_weights(folder, mapping)
        call_load_weights(model, weights, loader, config)
    finish(model)
    return model.eval()


def call_load_weights(
    model: Any, weights: Any, loader: BaseCheckpointLoader, config: ModelConfig[Any]
) -> None:
    """Call ``model.load_weights`` with the arguments that it declares by name.

    ``**kwargs`` does not count: a mapper is only passed to a ``weight_mapper`` parameter.
    """
    declared = inspect.getfullargspec(model.load_weights).args
    options: dict[str, Any] = {}
    if "weight_mapper" in declared:
        options["weight_mapper"] = loader.get_initialized_weight_mapper(model, config)
    model.load_weights(weights, **options)


def finish(model: nn.Module) -> None:
    """Call ``post_load_weights`` of every module that has it and still has its weights."""
    for module in model.modules():
        hook = getattr(module, "post_load_weights", None)
        if callable(hook) and not _was_removed(module):
            hook()


def _was_removed(module: nn.Module) -> bool:
    """Whether pipeline parallelism took the module's weights away."""
    return module.__dict__.get("forward") is not None and not module._parameters


@torch.no_grad()
def _fill_dummy(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.element_size() > 1:
            parameter.uniform_(-1e-3, 1e-3)
        else:
            parameter.zero_()
