"""Import paths of the runtime half: attention, executor, models, LLM API."""

from __future__ import annotations

from trtllm_scaffold.standin.paths import Row, T, row

MU = f"{T}.models.modeling_utils"
CHECKPOINTS = f"{T}.models.checkpoints"
OLD_BACKENDS, NEW_BACKENDS = f"{T}.attention_backend", f"{T}.attention.backends"

RUNTIME: tuple[Row, ...] = (
    # attention
    row(
        "attention.attention",
        "Attention",
        old=f"{T}.modules.attention",
        new=f"{T}.attention.attention",
    ),
    row(
        "attention.build",
        "extract_extra_attrs",
        old=f"{T}.modules.attention",
        new=f"{T}.attention.attention",
    ),
    row(
        "attention.qk_norm",
        "QKNormRoPEAttention compute_yarn_parameters",
        old=f"{T}.modules.qk_norm_attention",
        new=f"{T}.attention.qk_norm_attention",
    ),
    row("attention.mla", "MLA", old=f"{T}.modules.attention", new=f"{T}.attention.mla"),
    row(
        "attention.metadata",
        "AttentionMetadata",
        old=f"{OLD_BACKENDS} {OLD_BACKENDS}.interface",
        new=f"{NEW_BACKENDS} {NEW_BACKENDS}.interface",
    ),
    row(
        "attention.backend",
        "AttentionBackend",
        old=f"{OLD_BACKENDS} {OLD_BACKENDS}.interface",
        new=f"{NEW_BACKENDS} {NEW_BACKENDS}.interface",
    ),
    row(
        "attention.backend_metadata",
        "TrtllmAttentionMetadata FlashInferAttentionMetadata",
        old=OLD_BACKENDS,
        new=NEW_BACKENDS,
    ),
    row("attention.backend_metadata", "VanillaAttentionMetadata", new=NEW_BACKENDS),
    row("attention.backends", "TrtllmAttention", old=OLD_BACKENDS, new=NEW_BACKENDS),
    row("attention.backends", "VanillaAttention FlashInferAttention", new=NEW_BACKENDS),
    row("attention.backends", "TrtllmAttention", old=f"{OLD_BACKENDS}.trtllm"),
    row(
        "attention.backend_metadata",
        "TrtllmAttentionMetadata",
        old=f"{OLD_BACKENDS}.trtllm",
        new=f"{NEW_BACKENDS}.trtllm",
    ),
    row("attention.backends", "VanillaAttention", old=f"{OLD_BACKENDS}.vanilla"),
    row("attention.forward_args", "AttentionForwardArgs", new=NEW_BACKENDS),
    row(
        "attention.forward_args",
        "AttentionForwardArgs merge_attention_forward_args",
        new=f"{NEW_BACKENDS}.interface",
    ),
    row(
        "attention.selection",
        "get_attention_backend create_attention",
        old=f"{OLD_BACKENDS}.utils",
        new=f"{NEW_BACKENDS}.utils",
    ),
    # models
    row(
        "models.modeling_utils",
        "DecoderModel DecoderModelForCausalLM EagerFusionConfig",
        both=MU,
    ),
    row("models.meta_init", "MetaInitMode MetaInitException", both=MU),
    row(
        "models.loading",
        "duplicate_kv_weight filter_weights rename_weights_with_regex run_concurrently"
        " _load_weights_impl _load_weights_impl_v2",
        both=MU,
    ),
    row("models.loading", "timing_metric", new=MU),
    row("models.pipeline", "iter_modules remove_weights skip_forward", both=MU),
    row(
        "models.registry",
        "register_auto_model register_vision_encoder register_mapper"
        " register_checkpoint_weight_loader register_checkpoint_loader register_config_loader"
        " get_checkpoint_weight_loader get_config_loader get_model_architecture"
        " MODEL_CLASS_MAPPING MODEL_CLASS_VISION_ENCODER_MAPPING MODEL_CLASS_MAPPER_MAPPING"
        " MODEL_CLASS_CHECKPOINT_WEIGHT_LOADER_DEFAULT_MAPPING"
        " MODEL_CLASS_CONFIG_LOADER_DEFAULT_MAPPING CHECKPOINT_LOADER_FORMAT_DEFAULT_MAPPING",
        both=MU,
    ),
    row(
        "models.registry",
        "register_draft_model get_registered_model_class get_registered_vision_encoder"
        " get_registered_draft_model_builder export_external_model_modules"
        " register_external_model_modules DRAFT_MODEL_BUILDER_MAPPING",
        new=MU,
    ),
    row("models.auto", "AutoModelForCausalLM", both=f"{T}.models {T}.models.modeling_auto"),
    row("models.mappers", "BaseWeightMapper", both=f"{CHECKPOINTS}.base_weight_mapper"),
    row("models.mappers", "HfWeightMapper", both=f"{CHECKPOINTS}.hf.weight_mapper"),
    row("models.mappers", "AutoCheckpointMapper", both=f"{CHECKPOINTS}.auto_mapper"),
    row("models.checkpoints", "BaseCheckpointLoader", both=f"{CHECKPOINTS}.base_checkpoint_loader"),
    row("models.checkpoints", "BaseWeightLoader", both=f"{CHECKPOINTS}.base_weight_loader"),
    row("models.checkpoints", "BaseConfigLoader", both=f"{CHECKPOINTS}.base_config_loader"),
    row("models.checkpoints", "HfCheckpointLoader", both=f"{CHECKPOINTS}.hf.checkpoint_loader"),
    row("models.checkpoints", "HfConfigLoader", both=f"{CHECKPOINTS}.hf.config_loader"),
    row("models.checkpoints", "HfWeightLoader", both=f"{CHECKPOINTS}.hf.weight_loader"),
    row("models.consumable", "ConsumableWeightsDict", new=f"{CHECKPOINTS}.base_weight_loader"),
    row(
        "speculative",
        "SpecMetadata",
        both=f"{T}.speculative {T}.speculative.interface",
    ),
    # executor
    row("executor.kv_cache", "KVCacheManager", both=f"{T}.pyexecutor.resource_manager"),
    row("executor.bindings", "DataType", both="tensorrt_llm.bindings"),
    row("executor.bindings", "KvCacheConfig", both="tensorrt_llm.bindings.executor"),
    row(
        "executor.bindings",
        "CacheType",
        both="tensorrt_llm.bindings.internal.batch_manager",
    ),
    # LLM API
    row("llm", "LLM", both="tensorrt_llm tensorrt_llm.llmapi tensorrt_llm.llmapi.llm"),
    row(
        "sampling",
        "SamplingParams",
        both="tensorrt_llm tensorrt_llm.llmapi tensorrt_llm.sampling_params",
    ),
    row(
        "llm_args",
        "KvCacheConfig",
        both="tensorrt_llm.llmapi tensorrt_llm.llmapi.llm_args",
    ),
    row(
        "custom_modules",
        "import_custom_module_from_dir import_custom_module_from_file import_custom_module",
        both="tensorrt_llm.tools.importlib_utils",
    ),
)
