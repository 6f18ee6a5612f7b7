"""An OPT by hand: learned positions, LayerNorm with bias, plain MLP, names of its own."""

import re

from torch import nn

from . import api

RENAMES = (
    (re.compile(r"^model\.decoder\."), "model."),
    (re.compile(r"\.out_proj\."), ".o_proj."),
    (re.compile(r"\.fc1\."), ".mlp.up_proj."),
    (re.compile(r"\.fc2\."), ".mlp.down_proj."),
    (re.compile(r"^model\.final_layer_norm\."), "model.norm."),
)


class OPTLayer(api.DecoderLayer):
    def __init__(self, model_config, layer_idx):
        super().__init__()
        config = model_config.pretrained_config
        self.self_attn = api.Attention(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            bias=True,
            layer_idx=layer_idx,
            dtype=config.torch_dtype,
            config=model_config,
        )
        norm = {"hidden_size": config.hidden_size, "eps": 1e-5, "dtype": config.torch_dtype}
        self.self_attn_layer_norm = api.LayerNorm(**norm)
        self.final_layer_norm = api.LayerNorm(**norm)
        self.mlp = api.MLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.ffn_dim,
            bias=True,
            activation=nn.functional.relu,
            dtype=config.torch_dtype,
            config=model_config,
            layer_idx=layer_idx,
        )

    def forward(self, position_ids, hidden_states, attn_metadata, **kwargs):
        normed = self.self_attn_layer_norm(hidden_states)
        hidden_states = hidden_states + self.self_attn(
            position_ids=None, hidden_states=normed, attn_metadata=attn_metadata
        )
        return hidden_states + self.mlp(self.final_layer_norm(hidden_states))


class OPTModel(api.DecoderModel):
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
        self.embed_positions = api.Embedding(
            config.max_position_embeddings + 2, config.hidden_size, dtype=config.torch_dtype
        )
        self.layers = nn.ModuleList(
            [OPTLayer(model_config, i) for i in range(config.num_hidden_layers)]
        )
        self.norm = api.LayerNorm(
            hidden_size=config.hidden_size, eps=1e-5, dtype=config.torch_dtype
        )

    def forward(
        self, attn_metadata, input_ids=None, position_ids=None, inputs_embeds=None, **kwargs
    ):
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        hidden_states = hidden_states + self.embed_positions(position_ids.squeeze(0) + 2)
        for layer in self.layers:
            hidden_states = layer(
                position_ids=position_ids,
                hidden_states=hidden_states,
                attn_metadata=attn_metadata,
            )
        return self.norm(hidden_states)


@api.register_auto_model("HandOPTForCausalLM")
class HandOPTForCausalLM(api.DecoderModelForCausalLM):
    def __init__(self, model_config):
        config = model_config.pretrained_config
        super().__init__(
            OPTModel(model_config),
            config=model_config,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
        )

    def load_weights(self, weights, weight_mapper=None):
        renamed = {}
        for name in list(weights):
            new = name
            for pattern, replacement in RENAMES:
                new = pattern.sub(replacement, new)
            renamed[new] = weights[name]
        super().load_weights(renamed, weight_mapper)
