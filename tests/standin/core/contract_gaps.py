"""What the manifests list and the stand-in lacks, or the other way round, each with its reason."""

from __future__ import annotations

T = "tensorrt_llm._torch"
MOE = "mixture-of-experts names: as far as the in-tree models on the stand-in need them"
CROSS = "encoder-decoder models and cross attention"
HELIX = "context parallelism"
SPEC = "speculative decoding"
INCREMENTAL = "incremental weight updates"

#: Modules whose names may be absent.
ABSENT_MODULES: dict[str, str] = {
    f"{T}.modules.fused_moe": MOE,
    f"{T}.moe.fused_moe": MOE,
}
#: Names that may be absent.
ABSENT_NAMES: dict[str, str] = {
    f"{T}.attention.attention.maybe_slice_for_helix_cp": HELIX,
    f"{T}.attention.attention.maybe_allgather_for_helix_cp": HELIX,
    f"{T}.attention.backends.get_sparse_attn_kv_cache_manager": "sparse attention",
    "tensorrt_llm.__version__": "made when the stand-in is installed",
}
#: Methods that may be absent, by class.
ABSENT_METHODS: dict[tuple[str, str], str] = {
    ("ModelConfig", "get_bindings_model_config"): "compiled bindings",
    ("ModelConfig", "load_modelopt_quant_config"): "standin.quant_sources reads them all",
    ("ModelConfig", "load_hf_quant_config"): "standin.quant_sources reads them all",
    ("ModelConfig", "override_quant_algo"): "MXFP4",
    ("ModelConfig", "get_mxfp4_quant_algo"): "MXFP4",
    ("ModelConfig", "is_encoder_decoder_model"): CROSS,
    ("MLA", "forward_impl"): "a port calls forward",
    ("AttentionMetadata", "prepare_encoder_only"): CROSS,
    ("AttentionMetadata", "create_cross_metadata"): CROSS,
    ("AttentionMetadata", "update_cross_metadata"): CROSS,
    ("AttentionMetadata", "get_empty"): "dummy batches of the executor",
    ("AttentionMetadata", "get_empty_like"): "dummy batches of the executor",
    ("AttentionMetadata", "on_update_kv_lens"): SPEC,
    ("AttentionMetadata", "update_for_spec_dec"): SPEC,
    ("AttentionMetadata", "update_helix_param"): HELIX,
    ("AttentionBackend", "support_multi_item_scoring"): "multi-item scoring",
    ("AttentionBackend", "runtime_workspace_bytes_per_token"): "memory planning",
    ("AttentionBackend", "runtime_workspace_is_chunked_prefill_bounded"): "memory planning",
    ("AllReduce", "get_nccl_window_for_shape"): "NCCL windows",
    ("DecoderModelForCausalLM", "_resolve_lm_head_quant_config"): "quantized heads",
    ("DecoderModelForCausalLM", "_checkpoint_has_lm_head_scale"): "quantized heads",
    ("HfWeightMapper", "get_incremental_load_roots"): INCREMENTAL,
    ("QuantMode", "from_description"): "flags of the TensorRT engine backend",
    ("BaseCheckpointLoader", "open_weight_session"): INCREMENTAL,
    ("BaseCheckpointLoader", "requires_initialized_mapper_for_session"): INCREMENTAL,
    ("HfCheckpointLoader", "open_weight_session"): INCREMENTAL,
    ("HfCheckpointLoader", "requires_initialized_mapper_for_session"): INCREMENTAL,
}
#: Classes and methods whose parameters are not compared one by one.
LOOSE_PARAMETERS: dict[str, str] = {
    "SamplingParams": "keyword-only here; the manifests list part of its fields",
    "AttentionBackend.forward": "1.2: every option by keyword; 1.4: an object. Tested by calls",
    "BaseMoeRoutingMethod.apply": "abstract; token ids are in 1.4 only",
    "MoE.load_weights": "its tail was not read",
    "AttentionMetadata.update_spec_dec_param": SPEC,
    "AttentionMetadata.restore_from_spec_dec": SPEC,
    "MetaInitMode": "its base class takes an argument of torch",
}
#: Enumerations of which a manifest lists part or no values.
LOOSE_MEMBERS: dict[str, str] = {
    "LoraModuleType": "the manifests list those of dense decoders",
    "AllReduceFusionOp": "RMS_NORM is certain for 1.4 only; 1.2 refuses it where it is used",
    "QuantAlgo": "the manifests differ by how much of the file was read",
    "QuantMode": "flags: values given by auto()",
    "DataType": "compiled binding: no values known",
    "CacheType": "compiled binding: no values known",
}
