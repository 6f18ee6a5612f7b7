"""A qwen3 by hand: the llama with norms of the query and key heads."""

from . import api
from .llama import HandLlamaForCausalLM, LlamaLayer, LlamaModel, plain_rope


class Qwen3Layer(LlamaLayer):
    fuse_qk_norm_rope = True

    def attention(self, model_config, layer_idx):
        config = model_config.pretrained_config
        return api.QKNormRoPEAttention(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            bias=config.attention_bias,
            pos_embd_params=plain_rope(config),
            fuse_qk_norm_rope=self.fuse_qk_norm_rope,
            layer_idx=layer_idx,
            dtype=config.torch_dtype,
            config=model_config,
        )


class UnfusedQwen3Layer(Qwen3Layer):
    fuse_qk_norm_rope = False


class Qwen3Model(LlamaModel):
    layer_class = Qwen3Layer


class UnfusedQwen3Model(LlamaModel):
    layer_class = UnfusedQwen3Layer


@api.register_auto_model("HandQwen3ForCausalLM")
class HandQwen3ForCausalLM(HandLlamaForCausalLM):
    model_class = Qwen3Model


@api.register_auto_model("HandUnfusedQwen3ForCausalLM")
class HandUnfusedQwen3ForCausalLM(HandLlamaForCausalLM):
    model_class = UnfusedQwen3Model
