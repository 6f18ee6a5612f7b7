"""Builds a tiny randomised instance of a model from a tiny configuration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trtllm_scaffold.errors import Refused
from trtllm_scaffold.infer.effective import one_line
from trtllm_scaffold.infer.layer_configs import opened

#: Shape of the traced input: several sequences, longer than every window of a tiny configuration.
BATCH, SEQUENCE = 2, 12

_NOISE = 0.3
_FIRST_TOKEN = 3  # ids below are often padding or other special tokens


def build(
    raw: dict[str, Any], config_class: type, model_class: type, *, seed: int, eager: bool = True
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Build and randomise `model_class` on the CPU, fp32, eval mode.

    Args:
        raw: A tiny configuration as a config.json would hold it.
        config_class: The HF configuration class.
        model_class: The HF causal language model class.
        seed: Of the generator that draws every parameter.
        eager: Take the attention that is written out, not the class's default one.

    Returns:
        The model, and what its class put into each stored buffer of one element: such a buffer
        may be a constant that nobody trains.

    Raises:
        Refused: The classes do not accept the configuration.
    """
    try:
        config = opened(config_class.from_dict(dict(raw)))  # type: ignore[attr-defined]
        if eager:
            config._attn_implementation = "eager"
        config._experts_implementation = "eager"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = model_class(config)
    except Exception as err:  # HF classes raise whatever a hostile value provokes
        raise Refused(
            "model",
            f"{model_class.__name__} cannot be built at a tiny size, so nothing can be observed: "
            f"{one_line(err)}",
            where=f"{config_class.__module__}.{config_class.__name__}",
        ) from err
    model = model.float().eval()
    stored = set(model.state_dict())
    constants = {
        name: buffer.clone()
        for name, buffer in model.named_buffers()
        if name in stored and buffer.numel() == 1
    }
    randomise(model, seed)
    return model, constants


def randomise(model: nn.Module, seed: int) -> None:
    """Draw every parameter and every float buffer that a checkpoint stores.

    Neutral values hide structure (a norm of ones, a bias of zeros), so vectors and constant
    tensors get noise around what they were; matrices are drawn anew at unit gain. Buffers that
    a checkpoint does not store (rotary frequencies, masks) are derived, and stay.
    """
    generator = torch.Generator().manual_seed(seed)
    buffers = dict(model.named_buffers())
    stored = [buffers[name] for name in model.state_dict() if name in buffers]
    with torch.no_grad():
        for tensor in [*model.parameters(), *stored]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if tensor.dim() < 2 or bool((tensor == tensor.flatten()[0]).all()):
                tensor.copy_(tensor.nan_to_num(0.0).clamp(-10.0, 10.0) + _NOISE * noise)
            else:
                tensor.copy_(noise * tensor.shape[-1] ** -0.5)


def token_ids(model: nn.Module, seed: int) -> torch.Tensor:
    """Random ids [BATCH, SEQUENCE], clear of the special tokens at the start."""
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    vocabulary = int(embedding.weight.shape[0])
    generator = torch.Generator().manual_seed(seed + 1)
    low = min(_FIRST_TOKEN, vocabulary - 1)
    return torch.randint(low, vocabulary, (BATCH, SEQUENCE), generator=generator)
