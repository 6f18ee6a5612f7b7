"""Import paths that model files of the public tree name besides those of a plain port."""

from __future__ import annotations

from trtllm_scaffold.standin.paths import Row, T, row

OLD, NEW = f"{T}.modules.fused_moe", f"{T}.moe.fused_moe"
MODELS_AT = f"{T}.models"

_ROUTING = (
    "BaseMoeRoutingMethod DefaultMoeRoutingMethod RenormalizeMoeRoutingMethod"
    " RenormalizeNaiveMoeRoutingMethod Llama4RenormalizeMoeRoutingMethod"
    " SparseMixerMoeRoutingMethod StaticMoeRoutingMethod"
    " LoadBalancedMoeRoutingMethod"
)
_BIASED_NEW = (
    "DeepSeekV4MoeRoutingMethod MiniMaxM2MoeRoutingMethod MiniMaxM3MoeRoutingMethod"
    " SqrtSoftplusMoeRoutingMethod"
)
_ACTIVATIONS = (
    "ACTIVATION_PAYLOAD DEFAULT_MOE_ACTIVATION MoEActivation SimpleActivation SiTuActivation"
    " SwigluActivation SwigluBiasActivation ActivationParamShape MoEActivationSupport"
)

MODELS: tuple[Row, ...] = (
    # mixture of experts
    row("moe.create", "create_moe", old=f"{OLD} {OLD}.create_moe", new=f"{NEW} {NEW}.create_moe"),
    row("moe.create", "get_moe_cls", old=f"{OLD} {OLD}.create_moe"),
    row("moe.create", "resolve_moe_cls resolve_moe_impl", new=f"{NEW} {NEW}.moe_resolution"),
    row("moe.create", "MoEImplClass", new=NEW),
    row(
        "moe.interface",
        "MoE MoEWeightLoadingMode",
        old=f"{OLD} {OLD}.interface",
        new=f"{NEW} {NEW}.interface",
    ),
    row(
        "moe.interface",
        "VanillaMoE CutlassFusedMoE TRTLLMGenFusedMoE TritonFusedMoE",
        old=OLD,
        new=NEW,
    ),
    row("moe.interface", "ConfigurableMoE", new=NEW),
    row("moe.interface", "is_moe_weight_owner", new=f"{NEW} {NEW}.weight_owner"),
    row("moe.routing", _ROUTING, old=f"{OLD} {OLD}.routing", new=f"{NEW} {NEW}.routing"),
    row("moe.routing", "SigmoidRenormMoeRoutingMethod", new=f"{NEW} {NEW}.routing"),
    row(
        "moe.routing_biased",
        "DeepSeekV3MoeRoutingMethod",
        old=f"{OLD} {OLD}.routing",
        new=f"{NEW} {NEW}.routing",
    ),
    row("moe.routing_biased", "MiniMaxM2MoeRoutingMethod", old=f"{OLD}.routing"),
    row("moe.routing_biased", _BIASED_NEW, new=f"{NEW} {NEW}.routing"),
    row("moe.routing_biased", "Deepseekv3RoutingImpl", new=f"{NEW}.routing"),
    row("moe.kinds_1_2", "RoutingMethodType", old=f"{OLD} {OLD}.routing"),
    row("moe.kinds", "RoutingMethodType", new=f"{NEW} {NEW}.routing"),
    row("moe.activation", _ACTIVATIONS, new=f"{NEW} {NEW}.activation"),
    row("moe.activation", "ActivationConstant", new=f"{NEW}.activation"),
    row("moe.kinds_1_2", "ActivationType", old=f"{T}.utils"),
    row("utils", "ActivationType", new=f"{T}.utils"),
    # the rest of what model files import
    row(
        "models.one_engine", "SpecDecOneEngineForCausalLM", both=f"{MODELS_AT}.modeling_speculative"
    ),
    row("model_config", "ModelConfig", both=f"{MODELS_AT}.modeling_utils"),
    row("model_config", "TConfig", both=f"{T}.model_config"),
    row("moe.all_reduce", "MoEAllReduce", both=f"{T}.distributed"),
    row("functional", "MoEAllReduceParams", old=f"{T}.distributed tensorrt_llm.functional"),
    row("model_helpers", "Fp4QuantizedTensor", both=f"{T}.utils"),
    row("model_helpers", "inference_mode_unless_compiling", new=f"{T}.utils"),
    row("model_helpers", "IS_FLASHINFER_AVAILABLE", both=f"{T}.flashinfer_utils"),
    row("model_helpers", "maybe_alias_or_copy_tensor", new=f"{MODELS_AT}.modeling_utils"),
    row("model_helpers", "can_access_peer", both="tensorrt_llm._ipc_utils"),
    row("model_helpers", "split_matrix_tp", both="tensorrt_llm.models.convert_utils"),
    row("model_helpers", "HfLoraLoader", both="tensorrt_llm.lora_manager"),
    row("models.legacy", "DecoderModelForCausalLM", old="tensorrt_llm.models.modeling_utils"),
    row("model_helpers", "nvtx_range", both="tensorrt_llm._utils"),
)
