"""A mistral written by hand for TensorRT-LLM, top to bottom."""

import torch
from torch import nn

from ._trtllm import (
    Attention,
    DecoderLayer,
    DecoderModel,
    DecoderModelForCausalLM,
    Embedding,
    GatedMLP,
    ModelConfig,
    PositionalEmbeddingParams,
    PositionEmbeddingType,
    RMSNorm,
    RopeParams,
    RotaryScalingType,
    TensorParallelMode,
    register_auto_model,
)
from .configuration_mistral import canonicalize
from .weights_mistral import canonical_weights


def rope_params(config):
    """Rotary parameters, from either spelling of the configuration."""
    parameters = getattr(config, "rope_parameters", None) or {}
    theta = parameters.get("rope_theta", getattr(config, "rope_theta", 10000.0))
    return RopeParams(
        dim=config.head_dim,
        theta=theta,
        scale_type=RotaryScalingType.none,
        max_positions=config.max_position_embeddings,
    )


class MistralAttention(Attention):
    """Grouped-query attention, sliding window where the configuration has one."""

    def __init__(self, model_config: ModelConfig, layer_idx: int):
        config = model_config.pretrained_config
        super().__init__(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            bias=False,
            pos_embd_params=PositionalEmbeddingParams(
                type=PositionEmbeddingType.rope_gpt_neox,
                rope=rope_params(config),
                is_neox=True,
            ),
            layer_idx=layer_idx,
            dtype=config.torch_dtype,
            dense_bias=False,
            config=model_config,
        )
        self.window = getattr(config, "sliding_window", None)

    def forward(self, position_ids, hidden_states, attn_metadata, **kwargs):
        """[num_tokens, hidden] -> [num_tokens, hidden]."""
        return super().forward(
            position_ids=position_ids,
            hidden_states=hidden_states,
            attn_metadata=attn_metadata,
            attention_window_size=self.window,
            **kwargs,
        )


class MistralDecoderLayer(DecoderLayer):
    """Pre-norm block."""

    def __init__(self, model_config: ModelConfig, layer_idx: int):
        super().__init__()
        config = model_config.pretrained_config
        self.layer_idx = layer_idx
        self.input_layernorm = RMSNorm(
            hidden_size=config.hidden_size, eps=config.rms_norm_eps, dtype=config.torch_dtype
        )
        self.self_attn = MistralAttention(model_config, layer_idx)
        self.post_attention_layernorm = RMSNorm(
            hidden_size=config.hidden_size, eps=config.rms_norm_eps, dtype=config.torch_dtype
        )
        self.mlp = GatedMLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            bias=False,
            dtype=config.torch_dtype,
            config=model_config,
            layer_idx=layer_idx,
        )

    def forward(self, position_ids, hidden_states, attn_metadata, residual=None, **kwargs):
        """Take and give (hidden_states, residual), both [num_tokens, hidden]."""
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        else:
            hidden_states, residual = self.input_layernorm(hidden_states, residual)
        hidden_states = self.self_attn(
            position_ids=position_ids,
            hidden_states=hidden_states,
            attn_metadata=attn_metadata,
            **kwargs,
        )
        hidden_states, residual = self.post_attention_layernorm(hidden_states, residual)
        hidden_states = self.mlp(hidden_states, lora_params=kwargs.get("lora_params"))
        return hidden_states, residual


class MistralModel(DecoderModel):
    """Embedding, layers, final norm."""

    def __init__(self, model_config: ModelConfig):
        super().__init__(model_config)
        config = model_config.pretrained_config
        self.embed_tokens = Embedding(
            config.vocab_size,
            config.hidden_size,
            dtype=config.torch_dtype,
            mapping=model_config.mapping,
            tensor_parallel_mode=TensorParallelMode.COLUMN,
            gather_output=True,
        )
        self.layers = nn.ModuleList(
            [MistralDecoderLayer(model_config, index) for index in range(config.num_hidden_layers)]
        )
        self.norm = RMSNorm(
            hidden_size=config.hidden_size, eps=config.rms_norm_eps, dtype=config.torch_dtype
        )

    def forward(
        self,
        attn_metadata,
        input_ids: torch.IntTensor | None = None,
        position_ids: torch.IntTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        lora_params=None,
        **kwargs,
    ):
        """[num_tokens] -> [num_tokens, hidden]."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        hidden_states, residual = inputs_embeds, None
        for layer in self.layers:
            hidden_states, residual = layer(
                position_ids=position_ids,
                hidden_states=hidden_states,
                attn_metadata=attn_metadata,
                residual=residual,
                lora_params=lora_params,
            )
        hidden_states, _ = self.norm(hidden_states, residual)
        return hidden_states


@register_auto_model("MistralForCausalLM")
class MistralForCausalLM(DecoderModelForCausalLM):
    """The whole model."""

    def __init__(self, model_config: ModelConfig):
        canonicalize(model_config.pretrained_config)
        super().__init__(
            MistralModel(model_config),
            config=model_config,
            hidden_size=model_config.pretrained_config.hidden_size,
            vocab_size=model_config.pretrained_config.vocab_size,
        )

    def load_weights(self, weights):
        """Split the checkpoint into canonical parts and fill every parameter."""
        super().load_weights(canonical_weights(weights, self.config))
