"""Experts beside a gated shared expert with one all-reduce, which carries the next norm.

The checkpoint is Qwen2-MoE's. Under tensor parallelism the sums of attention and of the experts
are left to fused all-reduces that add the residual and apply the norm that follows: the last one
is the *next* layer's, wired in after loading. Every import goes through ``api``.
"""

import torch
from torch import nn

from . import api


class Block(nn.Module):
    def __init__(self, model_config, streams, layer_idx):
        super().__init__()
        config, mapping = model_config.pretrained_config, model_config.mapping
        self.dp = mapping.enable_attention_dp
        plain = {"bias": False, "dtype": config.torch_dtype}
        self.gate = api.Linear(config.hidden_size, config.num_experts, quant_config=None, **plain)
        self.experts = api.create_moe(
            routing_method=api.DefaultMoeRoutingMethod(top_k=config.num_experts_per_tok),
            num_experts=config.num_experts,
            hidden_size=config.hidden_size,
            intermediate_size=config.moe_intermediate_size,
            dtype=config.torch_dtype,
            reduce_results=False,
            model_config=model_config,
            aux_stream_dict=streams,
            layer_idx=layer_idx,
        )
        self.shared_expert = api.GatedMLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.shared_expert_intermediate_size,
            config=model_config,
            overridden_tp_size=1 if self.dp else None,
            reduce_output=False,
            is_shared_expert=True,
            **plain,
        )
        self.shared_expert_gate = api.Linear(config.hidden_size, 1, **plain)
        self.stream = streams[api.AuxStreamType.MoeShared]
        self.events = [torch.cuda.Event(), torch.cuda.Event()]

    def forward(self, x, attn_metadata):
        def routed():
            return self.experts(
                x,
                self.gate(x),
                all_rank_num_tokens=attn_metadata.all_rank_num_tokens,
                use_dp_padding=False,
            )

        def shared():
            return torch.sigmoid(self.shared_expert_gate(x)) * self.shared_expert(x)

        first, second = api.maybe_execute_in_parallel(routed, shared, *self.events, self.stream)
        return first + second


class Layer(api.DecoderLayer):
    def __init__(self, model_config, streams, layer_idx):
        super().__init__()
        config, mapping = model_config.pretrained_config, model_config.mapping
        self.layer_idx = layer_idx
        self.self_attn = api.Attention(
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            bias=True,
            dense_bias=False,
            pos_embd_params=api.PositionalEmbeddingParams(
                type=api.PositionEmbeddingType.rope_gpt_neox,
                rope=api.RopeParams(
                    dim=config.hidden_size // config.num_attention_heads,
                    theta=config.rope_parameters["rope_theta"],
                    max_positions=config.max_position_embeddings,
                ),
            ),
            layer_idx=layer_idx,
            dtype=config.torch_dtype,
            config=model_config,
        )
        self.mlp = Block(model_config, streams, layer_idx)
        norm = {"hidden_size": config.hidden_size, "eps": config.rms_norm_eps}
        self.input_layernorm = api.RMSNorm(dtype=config.torch_dtype, **norm)
        self.post_attention_layernorm = api.RMSNorm(dtype=config.torch_dtype, **norm)
        self.next_layer_layernorm = None
        self.all_reduce = api.AllReduce(mapping=mapping, strategy=model_config.allreduce_strategy)
        self.moe_all_reduce = api.MoEAllReduce(mapping)
        self.fusion = api.EagerFusionConfig()
        fused = mapping.has_tp() and not mapping.enable_attention_dp
        self.fusion.PRE_MOE_FUSION = self.fusion.POST_MOE_FUSION = fused

    def reduce(self, hidden_states, residual, norm, fused):
        if not fused:
            return norm(hidden_states, residual)
        params = api.AllReduceParams(
            fusion_op=api.AllReduceFusionOp.RESIDUAL_RMS_NORM,
            residual=residual,
            norm_weight=norm.weight,
            eps=norm.variance_epsilon,
        )
        return self.all_reduce(hidden_states, all_reduce_params=params)

    def forward(
        self,
        position_ids,
        hidden_states,
        attn_metadata,
        residual,
        spec_metadata: api.SpecMetadata | None = None,
        **kwargs,
    ):
        if residual is None:
            residual = hidden_states
            hidden_states = self.input_layernorm(hidden_states)
        hidden_states = self.self_attn(
            position_ids=position_ids,
            hidden_states=hidden_states,
            attn_metadata=attn_metadata,
            all_reduce_params=api.AllReduceParams(
                enable_allreduce=not (self.fusion.PRE_MOE_FUSION or self.mlp.experts.use_dp)
                and self.self_attn.tp_size > 1
            ),
            **kwargs,
        )
        hidden_states, residual = self.reduce(
            hidden_states, residual, self.post_attention_layernorm, self.fusion.PRE_MOE_FUSION
        )
        hidden_states = self.mlp(hidden_states, attn_metadata)
        if spec_metadata is not None:
            spec_metadata.maybe_capture_hidden_states(self.layer_idx, hidden_states, residual)
        return self.reduce(
            hidden_states, residual, self.next_layer_layernorm, self.fusion.POST_MOE_FUSION
        )


class Inner(api.DecoderModel):
    def __init__(self, model_config):
        super().__init__(model_config)
        config, mapping = model_config.pretrained_config, model_config.mapping
        streams = {
            kind: torch.cuda.Stream()
            for kind in (api.AuxStreamType.MoeShared, api.AuxStreamType.MoeChunkingOverlap)
        }
        split = {}
        if not mapping.enable_attention_dp:
            split = {
                "mapping": mapping,
                "tensor_parallel_mode": api.TensorParallelMode.COLUMN,
                "gather_output": True,
            }
        self.embed_tokens = api.Embedding(
            config.vocab_size, config.hidden_size, dtype=config.torch_dtype, **split
        )
        self.layers = nn.ModuleList(
            [Layer(model_config, streams, i) for i in range(config.num_hidden_layers)]
        )
        self.norm = api.RMSNorm(
            hidden_size=config.hidden_size, eps=config.rms_norm_eps, dtype=config.torch_dtype
        )

    def forward(
        self,
        attn_metadata,
        input_ids=None,
        position_ids=None,
        inputs_embeds=None,
        spec_metadata=None,
        **kwargs,
    ):
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        residual = None
        for layer in self.layers:
            hidden_states, residual = layer(
                position_ids=position_ids,
                hidden_states=hidden_states,
                attn_metadata=attn_metadata,
                residual=residual,
                spec_metadata=spec_metadata,
            )
        return hidden_states


@api.register_auto_model("HandSharedMoeForCausalLM")
class HandSharedMoeForCausalLM(api.SpecDecOneEngineForCausalLM):
    def __init__(self, model_config):
        super().__init__(Inner(model_config), model_config)

    def post_load_weights(self):
        layers = list(self.model.layers)
        following = [layer.input_layernorm for layer in layers[1:]] + [self.model.norm]
        for layer, norm in zip(layers, following, strict=True):
            layer.next_layer_layernorm = norm


@api.register_mapper("HF", "HandSharedMoeForCausalLM")
class SharedMoeMapper(api.HfWeightMapper):
    """Renames the experts, and undoes what the test did to the norms: they are stored minus 1."""

    def init_model_and_config(self, model, config):
        super().init_model_and_config(model, config)
        self._num_kv_heads = model.config.num_key_value_heads

    def is_special_instance_module(self, module):
        return isinstance(module, api.MoE)

    def handle_special_instance_module(
        self, module, module_name, module_weights, allow_partial_loading=False
    ):
        renamed = {}
        for name, value in module_weights.items():
            for old, new in (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")):
                name = name.replace(old, new)
            renamed[name] = value
        module.load_weights(weights=[renamed])

    def handle_manual_copy(self, module_name, module_weights, n, p, allow_partial_loading=False):
        if "norm" in module_name:
            p.data.copy_(module_weights[n][:] + 1)
        else:
            super().handle_manual_copy(module_name, module_weights, n, p)
