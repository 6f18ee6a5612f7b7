"""A llama by hand: RMSNorm with the residual carried along, GQA, rope, SwiGLU."""

from torch import nn

from . import api


def plain_rope(config):
    params = api.RopeParams(
        dim=config.head_dim,
        theta=config.rope_parameters["rope_theta"],
        max_positions=config.max_position_embeddings,
    )
    return api.PositionalEmbeddingParams(
        type=api.PositionEmbeddingType.rope_gpt_neox, rope=params, is_neox=True
    )


class LlamaLayer(api.DecoderLayer):
    def __init__(self, model_config, layer_idx):
        super().__init__()
        config = model_config.pretrained_config
        self.self_attn = self.attention(model_config, layer_idx)
        self.mlp = api.GatedMLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            bias=False,
            dtype=config.torch_dtype,
            config=model_config,
            layer_idx=layer_idx,
        )
        norm = {
            "hidden_size": config.hidden_size,
            "eps": config.rms_norm_eps,
            "dtype": config.torch_dtype,
        }
        self.input_layernorm = api.RMSNorm(**norm)
        self.post_attention_layernorm = api.RMSNorm(**norm)

    def attention(self, model_config, layer_idx):
        config = model_config.pretrained_config
        return api.Attention(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            bias=config.attention_bias,
            pos_embd_params=plain_rope(config),
            layer_idx=layer_idx,
            dtype=config.torch_dtype,
            config=model_config,
        )

    def forward(self, position_ids, hidden_states, attn_metadata, residual=None, **kwargs):
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
        return self.mlp(hidden_states), residual


class LlamaModel(api.DecoderModel):
    layer_class = LlamaLayer

    def __init__(self, model_config):
        super().__init__(model_config)
        config = model_config.pretrained_config
        self.embed_tokens = api.Embedding(
            config.vocab_size,
            config.hidden_size,
            dtype=config.torch_dtype,
            mapping=model_config.mapping,
            tensor_parallel_mode=api.TensorParallelMode.COLUMN,
            gather_output=True,
        )
        self.layers = nn.ModuleList(
            [self.layer_class(model_config, i) for i in range(config.num_hidden_layers)]
        )
        self.norm = api.RMSNorm(
            hidden_size=config.hidden_size, eps=config.rms_norm_eps, dtype=config.torch_dtype
        )

    def forward(
        self, attn_metadata, input_ids=None, position_ids=None, inputs_embeds=None, **kwargs
    ):
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        residual = None
        for layer in self.layers:
            hidden_states, residual = layer(
                position_ids=position_ids,
                hidden_states=hidden_states,
                attn_metadata=attn_metadata,
                residual=residual,
            )
        hidden_states, _ = self.norm(hidden_states, residual)
        return hidden_states


@api.register_auto_model("HandLlamaForCausalLM")
class HandLlamaForCausalLM(api.DecoderModelForCausalLM):
    model_class = LlamaModel

    def __init__(self, model_config):
        config = model_config.pretrained_config
        super().__init__(
            self.model_class(model_config),
            config=model_config,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
        )


class WindowedLlamaAttention(api.Attention):
    """Every layer sees ``config.sliding_window`` keys."""

    window: int

    def forward(self, *args, **kwargs):
        return super().forward(*args, attention_window_size=self.window, **kwargs)


class WindowedLlamaLayer(LlamaLayer):
    def attention(self, model_config, layer_idx):
        made = super().attention(model_config, layer_idx)
        made.__class__ = WindowedLlamaAttention
        made.window = model_config.pretrained_config.sliding_window
        return made


class WindowedLlamaModel(LlamaModel):
    layer_class = WindowedLlamaLayer


@api.register_auto_model("HandMistralForCausalLM")
class HandMistralForCausalLM(HandLlamaForCausalLM):
    model_class = WindowedLlamaModel


__all__ = ["HandLlamaForCausalLM", "HandMistralForCausalLM"]
