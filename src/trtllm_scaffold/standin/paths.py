"""Where each generation keeps each name: import path and symbol -> object of the stand-in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module

HERE = "trtllm_scaffold.standin"
T = "tensorrt_llm._torch"


@dataclass(frozen=True)
class Row:
    """Names that one implementation module provides, and the import paths that show them.

    Attributes:
        module: Implementation module, below ``trtllm_scaffold.standin``.
        names: Names, equal in the implementation and at the import paths.
        old: Import paths in generation 1.2.
        new: Import paths in generation 1.4.
    """

    module: str
    names: tuple[str, ...]
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()


def row(module: str, names: str, *, both: str = "", old: str = "", new: str = "") -> Row:
    """A row from blank-separated names and import paths; ``both`` is in either generation."""
    return Row(
        f"{HERE}.{module}",
        tuple(names.split()),
        tuple(both.split()) + tuple(old.split()),
        tuple(both.split()) + tuple(new.split()),
    )


CORE: tuple[Row, ...] = (
    row(
        "modules.linear",
        "Linear",
        both=f"{T}.modules.linear",
    ),
    row(
        "weight_shards",
        "TensorParallelMode WeightMode WeightsLoadingConfig load_weight_shard",
        both=f"{T}.modules.linear",
    ),
    row("lora", "LoraLayer LoraModuleType", both=f"{T}.peft.lora.layer"),
    row("quant_linear", "get_quant_method", both=f"{T}.modules.linear"),
    row("quant_linear", "is_static_nvfp4_input_eligible", new=f"{T}.modules.linear"),
    row("modules.embedding", "Embedding LMHead", both=f"{T}.modules.embedding"),
    row("modules.norms", "RMSNorm", both=f"{T}.modules.rms_norm"),
    row("modules.norms", "LayerNorm", both=f"{T}.modules.layer_norm"),
    row("modules.mlp", "GatedMLP", both=f"{T}.modules.gated_mlp"),
    row("modules.mlp", "MLP", both=f"{T}.modules.mlp"),
    row("modules.swiglu", "swiglu", both=f"{T}.modules.swiglu"),
    row("modules.swiglu", "swiglu_2in", new=f"{T}.modules.swiglu"),
    row(
        "modules.rotary",
        "RotaryEmbedding MRotaryEmbedding",
        old=f"{T}.modules.rotary_embedding",
        new=f"{T}.attention.rotary_embedding",
    ),
    row("modules.decoder_layer", "DecoderLayer", both=f"{T}.modules.decoder_layer"),
    row("logits_processor", "LogitsProcessor", both=f"{T}.modules.logits_processor"),
    row(
        "streams",
        "maybe_execute_in_parallel do_multi_stream with_multi_stream",
        both=f"{T}.modules.multi_stream_utils",
    ),
    row("streams", "set_do_multi_stream", old=f"{T}.modules.multi_stream_utils"),
    row(
        "interface",
        "RopeParams PositionalEmbeddingParams PredefinedAttentionMask CustomAttentionMask"
        " AttentionMask AttentionInputType AttentionRuntimeFeatures MLAParams",
        old=f"{T}.attention_backend.interface",
        new=f"{T}.attention.backends.interface",
    ),
    row(
        "interface",
        "AttentionInputType",
        old=f"{T}.attention_backend",
        new=f"{T}.attention.backends",
    ),
    row("interface", "KVCacheParams", both=f"{T}.metadata"),
    row(
        "functional",
        "PositionEmbeddingType RotaryScalingType AttentionMaskType AllReduceStrategy"
        " AllReduceFusionOp AllReduceParams",
        both="tensorrt_llm.functional",
    ),
    row("functional", "MoEAllReduceParams", new="tensorrt_llm.functional"),
    row(
        "functional",
        "AllReduceParams AllReduceFusionOp AllReduceStrategy",
        both=f"{T}.distributed",
    ),
    row("functional", "MoEAllReduceParams", new=f"{T}.distributed"),
    row("distributed", "AllReduce allgather reducescatter", both=f"{T}.distributed"),
    row("mapping", "Mapping", both="tensorrt_llm tensorrt_llm.mapping"),
    row("model_config", "ModelConfig", both=f"{T}.model_config"),
    row("quantization", "QuantAlgo QuantMode", both="tensorrt_llm.quantization.mode"),
    row("quantization", "QuantAlgo QuantMode", both="tensorrt_llm.quantization"),
    row(
        "quantization",
        "QuantConfig",
        both="tensorrt_llm.models.modeling_utils tensorrt_llm.llmapi",
    ),
    row("quantization", "QuantAlgo", both="tensorrt_llm.llmapi"),
    row("logger", "logger", both="tensorrt_llm tensorrt_llm.logger"),
    row(
        "utils",
        "AuxStreamType EventType get_model_extra_attrs model_extra_attrs",
        both=f"{T}.utils",
    ),
    row("utils", "relu2 gelu_tanh", new=f"{T}.utils"),
    row("utils", "str_dtype_to_torch mpi_rank mpi_world_size", both="tensorrt_llm"),
    row(
        "utils",
        "str_dtype_to_torch torch_dtype_to_str get_sm_version mpi_rank mpi_world_size mpi_disabled",
        both="tensorrt_llm._utils",
    ),
)


#: Runtime names that the first reading of the manifests had missed.
LATE: tuple[Row, ...] = (
    row(
        "attention.backends",
        "VanillaAttention FlashInferAttention",
        old=f"{T}.attention_backend",
    ),
    row("attention.backend_metadata", "VanillaAttentionMetadata", old=f"{T}.attention_backend"),
    row("llm_args", "KvCacheConfig", both="tensorrt_llm"),
)


def rows() -> tuple[Row, ...]:
    """Rows of the core, of the runtime half, and of what model files of the tree name."""
    more = (
        import_module(f"{HERE}.paths_runtime").RUNTIME,
        import_module(f"{HERE}.paths_models").MODELS,
    )
    return CORE + LATE + more[0] + more[1]


@cache
def table(generation: str) -> Mapping[str, Mapping[str, str]]:
    """Import path -> name -> ``"module:attribute"`` of every name of ``generation``."""
    return _table(rows(), generation)


def _table(source: Iterable[Row], generation: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for item in source:
        for path in item.old if generation == "1.2" else item.new:
            names = found.setdefault(path, {})
            names.update({name: f"{item.module}:{name}" for name in item.names})
    return found
