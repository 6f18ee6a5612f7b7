"""AutoModelForCausalLM: from a ModelConfig to the registered model."""

from __future__ import annotations

from typing import Any

from torch import nn

from trtllm_scaffold.standin.model_config import ModelConfig
from trtllm_scaffold.standin.models.modeling_utils import DecoderModelForCausalLM
from trtllm_scaffold.standin.models.registry import get_registered_model_class
from trtllm_scaffold.standin.utils import model_extra_attrs


class AutoModelForCausalLM:
    """Builds the model of ``architectures[0]``."""

    @staticmethod
    def from_config(config: ModelConfig[Any]) -> nn.Module:
        """The registered class, constructed with the ModelConfig as its one argument.

        A config with a ``draft_vocab_size`` is looked up under ``EAGLE3`` and its name. Decoder
        models get their parameters after construction, when quantization is resolved.

        Raises:
            ValueError: If the architecture is not registered.
        """
        name = config.pretrained_config.architectures[0]
        if hasattr(config.pretrained_config, "draft_vocab_size"):
            name = f"EAGLE3{name}"
        cls: Any = get_registered_model_class(name)
        if cls is None:
            raise ValueError(f"Unknown architecture for AutoModelForCausalLM: {name}")
        if issubclass(cls, DecoderModelForCausalLM):
            frozen, config._frozen = config._frozen, False
            config.skip_create_weights_in_init = True
            config._frozen = frozen
        with model_extra_attrs(config.extra_attrs):
            model: nn.Module = cls(config)
        model.extra_attrs = config.extra_attrs  # type: ignore[assignment]
        return model
