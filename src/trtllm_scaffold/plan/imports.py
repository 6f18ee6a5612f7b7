"""Where each TensorRT-LLM symbol of a port lives in the two generations."""

from __future__ import annotations

from collections.abc import Iterable

_T = "tensorrt_llm._torch"

#: Symbol -> (import path in 1.4, import path in 1.2). A test holds this against the manifests.
PATHS: dict[str, tuple[str, str]] = {
    **{
        name: (f"{_T}.moe.fused_moe", f"{_T}.modules.fused_moe")
        for name in (
            "BaseMoeRoutingMethod",
            "DeepSeekV3MoeRoutingMethod",
            "DefaultMoeRoutingMethod",
            "Llama4RenormalizeMoeRoutingMethod",
            "RenormalizeMoeRoutingMethod",
            "RoutingMethodType",
            "SparseMixerMoeRoutingMethod",
            "create_moe",
        )
    },
    "AllReduce": (f"{_T}.distributed", f"{_T}.distributed"),
    "AllReduceStrategy": ("tensorrt_llm.functional", "tensorrt_llm.functional"),
    "Attention": (f"{_T}.attention.attention", f"{_T}.modules.attention"),
    "AttentionMetadata": (f"{_T}.attention.backends", f"{_T}.attention_backend"),
    "DecoderLayer": (f"{_T}.modules.decoder_layer", f"{_T}.modules.decoder_layer"),
    "DecoderModel": (f"{_T}.models.modeling_utils", f"{_T}.models.modeling_utils"),
    "DecoderModelForCausalLM": (f"{_T}.models.modeling_utils", f"{_T}.models.modeling_utils"),
    "Embedding": (f"{_T}.modules.embedding", f"{_T}.modules.embedding"),
    "GatedMLP": (f"{_T}.modules.gated_mlp", f"{_T}.modules.gated_mlp"),
    "LayerNorm": (f"{_T}.modules.layer_norm", f"{_T}.modules.layer_norm"),
    "Linear": (f"{_T}.modules.linear", f"{_T}.modules.linear"),
    "MLA": (f"{_T}.attention.mla", f"{_T}.modules.attention"),
    "MLP": (f"{_T}.modules.mlp", f"{_T}.modules.mlp"),
    "Mapping": ("tensorrt_llm.mapping", "tensorrt_llm.mapping"),
    "ModelConfig": (f"{_T}.model_config", f"{_T}.model_config"),
    "PositionEmbeddingType": ("tensorrt_llm.functional", "tensorrt_llm.functional"),
    "PositionalEmbeddingParams": (
        f"{_T}.attention.backends.interface",
        f"{_T}.attention_backend.interface",
    ),
    "QKNormRoPEAttention": (
        f"{_T}.attention.qk_norm_attention",
        f"{_T}.modules.qk_norm_attention",
    ),
    "RMSNorm": (f"{_T}.modules.rms_norm", f"{_T}.modules.rms_norm"),
    "RopeParams": (f"{_T}.attention.backends.interface", f"{_T}.attention_backend.interface"),
    "RotaryEmbedding": (f"{_T}.attention.rotary_embedding", f"{_T}.modules.rotary_embedding"),
    "RotaryScalingType": ("tensorrt_llm.functional", "tensorrt_llm.functional"),
    "TensorParallelMode": (f"{_T}.modules.linear", f"{_T}.modules.linear"),
    "register_auto_model": (f"{_T}.models.modeling_utils", f"{_T}.models.modeling_utils"),
}

#: Symbols of 1.4 that 1.2 has in no place -> path. A port finds None for them there.
NEW: dict[str, str] = {
    "SwigluActivation": f"{_T}.moe.fused_moe",
    "SwigluBiasActivation": f"{_T}.moe.fused_moe",
}


def import_order(symbol: str) -> tuple[bool, bool, str]:
    """Ruff's order within one import: constants, then classes, then functions."""
    return (not symbol.isupper(), symbol[0].islower(), symbol.lower())


def import_answers(modeling: Iterable[str], configuration: Iterable[str]) -> dict[str, list[str]]:
    """The answers from which ``_trtllm.py`` and the import blocks are rendered."""
    modeling, configuration = set(modeling), set(configuration)
    everything = sorted((modeling | configuration) - set(NEW), key=import_order)
    new = sorted((modeling | configuration) & set(NEW))
    moved = [name for name in everything if PATHS[name][0] != PATHS[name][1]]
    stable = sorted({PATHS[name][0] for name in everything if name not in moved})
    by_path = [[name for name in everything if PATHS[name][0] == path] for path in stable]
    return {
        "modeling_imports": sorted(modeling, key=import_order),
        "stable_paths": stable,
        "stable_symbols": [", ".join(names) for names in by_path],
        "moved_symbols": moved,
        "moved_new": [PATHS[name][0] for name in moved],
        "moved_old": [PATHS[name][1] for name in moved],
        "new_symbols": new,
        "new_paths": [NEW[name] for name in new],
        "import_all": sorted([*everything, *new]),
    }
