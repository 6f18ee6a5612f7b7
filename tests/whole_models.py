"""Small whole models around text decoders, as configurations and as stored by HF's classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch

from trtllm_scaffold.infer.tiny import randomise

_TEXT = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 96,
    "rms_norm_eps": 1e-5,
}
_VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 40,
    "image_size": 28,
    "patch_size": 14,
}


def gemma3(**text: Any) -> dict[str, Any]:
    """A whole model whose file says little of its decoder, and gives it windows."""
    inner = {"model_type": "gemma3_text", "sliding_window": 5, "layer_types": _LAYERS, **text}
    return {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "torch_dtype": "float32",
        "image_token_index": 118,
        "mm_tokens_per_image": 4,
        "text_config": {**_TEXT, **inner},
        "vision_config": {"model_type": "siglip_vision_model", **_VISION},
    }


_LAYERS = ["sliding_attention", "sliding_attention", "full_attention"]


def mistral3(**outer: Any) -> dict[str, Any]:
    """A whole model whose class has another default for the head than its decoder's class."""
    return {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "torch_dtype": "float32",
        "image_token_index": 10,
        "vision_feature_layer": -1,
        "text_config": {"model_type": "mistral", **_TEXT, "sliding_window": None},
        "vision_config": {"model_type": "pixtral", **_VISION},
        **outer,
    }


def saved(raw: dict[str, Any], folder: Path) -> torch.nn.Module:
    """The whole model, every weight random, stored in `folder` as its class stores it."""
    import transformers

    model_class = getattr(transformers, raw["architectures"][0])
    config = model_class.config_class.from_dict(dict(raw))
    config._attn_implementation = "eager"
    model: torch.nn.Module = model_class(config).float().eval()
    randomise(model, 5)
    transformers.logging.disable_progress_bar()
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def private(raw: dict[str, Any], factor: float = 1.0) -> tuple[type[Any], type[Any]]:
    """(configuration, class) of a whole model that exists nowhere else, of other module names.

    Args:
        raw: Its configuration, whose model_type and architecture the classes get.
        factor: On the embeddings of every token, which its decoder alone does not know.
    """
    from torch import nn
    from transformers import MistralModel, PreTrainedConfig, PreTrainedModel
    from transformers.modeling_outputs import CausalLMOutput

    class Config(PreTrainedConfig):
        model_type = raw["model_type"]
        sub_configs: ClassVar[dict[str, Any]] = {"text_config": MistralModel.config_class}

        def __init__(self, text_config: Any = None, **kwargs: Any) -> None:
            values = text_config or {}
            if isinstance(values, dict):
                values = MistralModel.config_class(**values)
            self.text_config = values
            self.tie_word_embeddings = kwargs.pop("tie_word_embeddings", False)
            super().__init__(**kwargs)

    class Whole(PreTrainedModel):
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.reader = MistralModel(config.text_config)
            self.writer = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size)
            self.writer.register_parameter("bias", None)
            self.eye = nn.Linear(9, config.text_config.hidden_size)
            self.post_init()

        def get_input_embeddings(self) -> Any:
            return self.reader.embed_tokens

        def get_output_embeddings(self) -> Any:
            return self.writer

        def forward(self, input_ids: Any, use_cache: bool = False) -> Any:
            embedded = self.reader.embed_tokens(input_ids) * factor
            read = self.reader(inputs_embeds=embedded, use_cache=use_cache)
            return CausalLMOutput(logits=self.writer(read.last_hidden_state))

    Whole.__name__ = Whole.__qualname__ = raw["architectures"][0]
    return Config, Whole
